"""Losses of Gaussian diffusion: denoising objectives, and the variational bound in nats.

All are pure and per example. A training step draws t and eps, calls the denoiser on
`q_sample(schedule, x0, t, eps)` and hands its output to `denoising_loss` or `hybrid_loss`;
`variational_bound` calls the denoiser itself.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxgen.distributions import discretized_gaussian_log_prob, gaussian_kl
from jaxgen.gaussian_diffusion import (
    PREDICTIONS,
    Denoise,
    p_mean_variance,
    posterior,
    prediction_target,
    q_sample,
)
from jaxgen.primitives import check_choice, standard_normal
from jaxgen.schedules import DiscreteSchedule

WEIGHTINGS = ("simple", "snr", "snr_plus_one", "truncated_snr", "min_snr")


def loss_weight(
    log_snr: Float[Array, "*dims"],
    prediction: str = "eps",
    weighting: str = "simple",
    gamma: float = 5.0,
) -> Float[Array, "*dims"]:
    """Weight of the squared error of a prediction, at a noise level.

    A weighting is defined by its weight on the error of x0. As `|x0 error|^2 = |eps error|^2 / SNR
    = |v error|^2 / (SNR + 1)`, the weight on the prediction's own error follows on dividing:

        weighting         on x0           on eps              on v
        "simple"          -               1 on the prediction's own error, whichever it is
        "snr"             SNR             1                   SNR / (SNR + 1)
        "snr_plus_one"    SNR + 1         (SNR + 1) / SNR     1
        "truncated_snr"   max(SNR, 1)     max(1, 1 / SNR)     max(SNR, 1) / (SNR + 1)
        "min_snr"         min(SNR, g)     min(1, g / SNR)     min(SNR, g) / (SNR + 1)

    Simple is Ho et al. 2020, eq. 14; SNR + 1 and truncated SNR are Salimans & Ho 2022, section 4;
    min-SNR is Hang et al. 2023, section 3.4.

    Args:
        log_snr: log signal-to-noise ratio.
        prediction: "eps", "x0" or "v".
        weighting: one of the table's names.
        gamma: g of "min_snr", positive.

    Returns:
        Positive weights, of the shape of `log_snr`.

    Raises:
        ValueError: if a name is unknown or gamma is not positive.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    if weighting == "simple":
        return jnp.ones_like(log_snr)
    log_weight = {
        "snr": log_snr,
        "snr_plus_one": jax.nn.softplus(log_snr),
        "truncated_snr": jnp.maximum(log_snr, 0.0),
        "min_snr": jnp.minimum(log_snr, math.log(gamma)),
    }[weighting]
    log_ratio = {
        "eps": log_snr,
        "x0": jnp.zeros_like(log_snr),
        "v": jax.nn.softplus(log_snr),
    }[prediction]
    return jnp.exp(log_weight - log_ratio)


def denoising_loss(
    schedule: DiscreteSchedule,
    output: Float[Array, "batch *dims"],
    x0: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *dims"],
    *,
    prediction: str = "eps",
    weighting: str = "simple",
    gamma: float = 5.0,
) -> Float[Array, " batch"]:
    """`weight(t) * mean((output - target)^2)`, the mean over an example's dimensions.

    The target is eps, x0 or v; with the defaults this is L_simple (Ho et al. 2020, eq. 14).

        >>> t = jax.random.randint(key_t, (batch,), 0, num_steps)
        >>> eps = jax.random.normal(key_eps, x0.shape)
        >>> output = denoise(q_sample(schedule, x0, t, eps), t, condition)
        >>> loss = denoising_loss(schedule, output, x0, t, eps)

    Args:
        schedule: the chain.
        output: what the denoiser said of `q_sample(schedule, x0, t, eps)`, of any float type.
        x0: data.
        t: noise level of each example, 0..T-1.
        eps: the noise that was added.
        prediction: "eps", "x0" or "v".
        weighting: see `loss_weight`.
        gamma: the bound of "min_snr".

    Returns:
        f32[B]; not a likelihood, so without a unit.

    Raises:
        ValueError: if a name is unknown or gamma is not positive.
    """
    weight = loss_weight(jnp.asarray(schedule.log_snr)[t], prediction, weighting, gamma)
    error = output.astype(jnp.float32) - prediction_target(schedule, x0, t, eps, prediction)
    return weight * jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)


def hybrid_loss(
    schedule: DiscreteSchedule,
    output: Float[Array, "batch *output_dims"],
    x0: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *dims"],
    *,
    prediction: str = "eps",
    weighting: str = "simple",
    gamma: float = 5.0,
    vb_weight: float = 1e-3,
) -> Float[Array, " batch"]:
    """`denoising_loss + vb_weight * T * vb_term`, for a learned variance.

    The bound's term is in bits per dimension, and its gradient reaches only the variance: the mean
    is trained by the denoising loss alone (Nichol & Dhariwal 2021, eq. 16). With t uniform,
    `T * vb_term` estimates the whole bound.

    Args:
        schedule: the chain of T steps.
        output: the denoiser's output [B, ..., 2C]: prediction, then variance.
        x0: data [B, ..., C].
        t: noise level of each example, 0..T-1.
        eps: the noise that was added.
        prediction: "eps", "x0" or "v".
        weighting: see `loss_weight`.
        gamma: the bound of "min_snr".
        vb_weight: the paper's lambda.

    Returns:
        f32[B], without a unit.

    Raises:
        ValueError: if a name is unknown, gamma is not positive or the output has not 2C channels.
    """
    channels = x0.shape[-1]
    mean, spread = output[..., :channels], output[..., channels:]
    frozen = jnp.concatenate([jax.lax.stop_gradient(mean), spread], axis=-1)
    x_t = q_sample(schedule, x0, t, eps)
    nats = vb_term(schedule, frozen, x0, x_t, t, prediction=prediction, variance="learned_range")
    bits = nats / (math.prod(x0.shape[1:]) * math.log(2))
    simple = denoising_loss(
        schedule, mean, x0, t, eps, prediction=prediction, weighting=weighting, gamma=gamma
    )
    return simple + vb_weight * schedule.betas.shape[0] * bits


def prior_kl(schedule: DiscreteSchedule, x0: Float[Array, "batch *dims"]) -> Float[Array, " batch"]:
    """`KL(q(x_{T-1} | x0) || N(0, I))`, the bound's L_T (Ho et al. 2020, eq. 5).

    Args:
        schedule: the chain.
        x0: data.

    Returns:
        f32[B], nats summed over an example's dimensions.
    """
    signal = jnp.asarray(schedule.alphas_cumprod)[-1]
    log_noise = jax.nn.log_sigmoid(-jnp.asarray(schedule.log_snr)[-1])
    return _sum(gaussian_kl(jnp.sqrt(signal) * x0, log_noise, 0.0, 0.0))


def vb_term(
    schedule: DiscreteSchedule,
    output: Float[Array, "batch *output_dims"],
    x0: Float[Array, "batch *dims"],
    x_t: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    *,
    prediction: str = "eps",
    variance: str = "large",
    clip_x0: bool = False,
) -> Float[Array, " batch"]:
    """One term of the bound: L_t for t >= 1, the decoder's L_0 for t = 0 (Ho et al. 2020, eq. 5).

    `KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))` for t >= 1, and for t = 0 `-log p(x0 | x_t)`, the
    mass of x0's bin under a Gaussian of the model's mean and variance (eq. 13).

    Args:
        schedule: the chain.
        output: what the denoiser said of `x_t` at t, [B, ..., C], or 2C with "learned_range".
        x0: 8-bit data u as `2 u / 255 - 1`.
        x_t: noisy data.
        t: noise level of each example, 0..T-1.
        prediction: "eps", "x0" or "v".
        variance: "small", "large" or "learned_range".
        clip_x0: clip the predicted data to [-1, 1]; usual in evaluation, not in training.

    Returns:
        f32[B], nats summed over an example's dimensions.

    Raises:
        ValueError: if a name is unknown or the output has the wrong number of channels.
    """
    model = p_mean_variance(
        schedule, output, x_t, t, prediction=prediction, variance=variance, clip_x0=clip_x0
    )
    mean, log_variance = posterior(schedule, x0, x_t, t)
    kl = _sum(gaussian_kl(mean, log_variance, model.mean, model.log_variance))
    decoder_nll = -_sum(discretized_gaussian_log_prob(x0, model.mean, model.log_variance))
    return jnp.where(t == 0, decoder_nll, kl)


def variational_bound(
    denoise: Denoise,
    schedule: DiscreteSchedule,
    x0: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    *,
    num_timesteps: int | None = None,
    prediction: str = "eps",
    variance: str = "large",
    clip_x0: bool = True,
    condition: Any = None,
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    """An upper bound on `-log p(x0)` of 8-bit data (Ho et al. 2020, eq. 5), one noise per term.

    The sum of the prior's KL, the KL of the steps t = 1..T-1 and the decoder's negative
    log-likelihood at t = 0. With K = `num_timesteps` < T the decoder's term is taken as it is, and
    the steps are parted into K - 1 strata of (nearly) equal size, from each of which every example
    draws one t, weighted by the stratum's size: unbiased, with K calls of the denoiser.
    Pure: call it under `jit`, where it is a single scan.

        >>> bound = jax.jit(lambda params, x0, key: variational_bound(
        ...     lambda x_t, t, _: model.apply(params, x_t, t), schedule, x0, key))
        >>> nats, terms = bound(params, x0, key)

    Args:
        denoise: see `jaxgen.gaussian_diffusion`.
        schedule: the chain of T steps.
        x0: 8-bit data u as `2 u / 255 - 1`.
        key: PRNG key, for the noise and the timesteps.
        num_timesteps: K, from 2 to T, or None for T: every step.
        prediction: "eps", "x0" or "v".
        variance: "small", "large" or "learned_range".
        clip_x0: clip the predicted data to [-1, 1].
        condition: passed on to `denoise`.

    Returns:
        The bound, f32[B], in nats summed over an example's dimensions, and its parts, each f32[B]:
        "prior_kl", "diffusion_kl" and "decoder_nll".

    Raises:
        ValueError: if a name is unknown, `num_timesteps` out of range or the denoiser's output of
            the wrong shape.
    """
    (total_steps,) = schedule.betas.shape
    num = total_steps if num_timesteps is None else num_timesteps
    if not min(2, total_steps) <= num <= total_steps:
        raise ValueError(
            f"num_timesteps must be from {min(2, total_steps)} to T = {total_steps}, got {num}"
        )
    edges = 1 + np.arange(num) * (total_steps - 1) // max(num - 1, 1)
    edges = np.concatenate([[0], edges]).astype(np.int32)  # the first stratum is t = 0 alone

    def estimate(carry, stratum):
        key, low, high = stratum
        key_t, key_eps = jax.random.split(key)
        t = jax.random.randint(key_t, x0.shape[:1], low, high)
        x_t = q_sample(schedule, x0, t, standard_normal(key_eps, x0.shape))
        nats = vb_term(
            schedule,
            denoise(x_t, t, condition),
            x0,
            x_t,
            t,
            prediction=prediction,
            variance=variance,
            clip_x0=clip_x0,
        )
        return carry, nats * (high - low)

    strata = (jax.random.split(key, num), jnp.asarray(edges[:-1]), jnp.asarray(edges[1:]))
    _, nats = jax.lax.scan(estimate, None, strata)
    terms = {
        "prior_kl": prior_kl(schedule, x0),
        "diffusion_kl": nats[1:].sum(axis=0),
        "decoder_nll": nats[0],
    }
    return sum(terms.values()), terms


def _sum(values: Array) -> Float[Array, " batch"]:
    return values.reshape(values.shape[0], -1).sum(axis=1)
