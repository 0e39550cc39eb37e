"""Losses of Gaussian diffusion: denoising objectives, and the variational bound in nats.

All are pure and per example. A training step draws t and eps, asks the network of
`q_sample(x0, eps, level)` and hands its output to `denoising_loss`, `hybrid_loss` or `bound_loss`;
`variational_bound` calls the denoiser itself.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from jaxgen.checks import check_batch, check_same_shape
from jaxgen.distributions.elementwise import (
    discretized_gaussian_log_prob,
    gaussian_kl,
    standard_normal,
)
from jaxgen.noise.chain import Chain, Variance, large_variance, learned_variance, posterior_mean
from jaxgen.noise.parametrization import EPS, Denoise, Denoised, Parametrization, interpret
from jaxgen.noise.process import Level, Process, expand, log_snr_of, q_sample, sde

# (level of each example, what the network predicts) -> the weight of its squared error
Weighting = Callable[[Level, Parametrization], Float[Array, "*levels"]]


def simple(level: Level, parametrization: Parametrization) -> Float[Array, "*levels"]:
    """Weight 1 of the network's own squared error, whichever it predicts (Ho et al. 2020)."""
    return jnp.ones_like(level.alpha)


def of_x0(log_weight: Callable[[Level], Float[Array, "*levels"]]) -> Weighting:
    """The weighting whose weight of the squared error of the data is given.

    As `x0 = skip x + out F`, the weight of the network's own error is `out^2` times that: the same
    predicted data cost the same, whichever way a network says them. With the signal-to-noise ratio
    SNR, `out^2` is `1 / SNR` of eps, 1 of x0, `1 / (SNR + 1)` of v, and the weights are

        weighting       of x0           of eps              of v
        simple          -               1 of the network's own error, whichever it is
        snr             SNR             1                   SNR / (SNR + 1)
        snr_plus_one    SNR + 1         (SNR + 1) / SNR     1
        truncated_snr   max(SNR, 1)     max(1, 1 / SNR)     max(SNR, 1) / (SNR + 1)
        min_snr(g)      min(SNR, g)     min(1, g / SNR)     min(SNR, g) / (SNR + 1)
        p2(g, k)        SNR / (k+SNR)^g (k + SNR)^-g        SNR (k + SNR)^-g / (SNR + 1)
        edm_weight(d)   SNR + d^-2      1 + d^-2 / SNR      (SNR + d^-2) / (SNR + 1)

    Args:
        log_weight: The log of the weight, a function of the level.
    """

    def weighting(level: Level, parametrization: Parametrization) -> Float[Array, "*levels"]:
        log_ratio = 2 * jnp.log(jnp.abs(parametrization.out(level)))
        return jnp.exp(log_weight(level) + log_ratio)

    return weighting


snr = of_x0(log_snr_of)
"""Weight SNR of the squared error of the data: that of eps alike at all levels."""

snr_plus_one = of_x0(lambda level: jax.nn.softplus(log_snr_of(level)))
"""Weight SNR + 1 of it (Salimans & Ho 2022, section 4): that of v alike at all levels."""

truncated_snr = of_x0(lambda level: jnp.maximum(log_snr_of(level), 0.0))
"""Weight max(SNR, 1) of it (Salimans & Ho 2022, section 4)."""


def min_snr(gamma: float = 5.0) -> Weighting:
    """Weight min(SNR, gamma) of the squared error of the data (Hang et al. 2023, section 3.4).

    Args:
        gamma: The greatest weight, positive.

    Raises:
        ValueError: if gamma is not positive.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    return of_x0(lambda level: jnp.minimum(log_snr_of(level), math.log(gamma)))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Weight `1 / (k + SNR)^gamma` of the squared error of eps (Choi et al. 2022, P2, eq. 8).

    Args:
        gamma: The power; 0 is the weight 1 of eps.
        k: The number that keeps the weight of clean data finite, positive.

    Raises:
        ValueError: if k is not positive.
    """
    if not k > 0:
        raise ValueError(f"k must be positive, got {k}")

    def log_weight(level: Level) -> Array:
        log_snr = log_snr_of(level)
        return log_snr - gamma * jnp.logaddexp(math.log(k), log_snr)

    return of_x0(log_weight)


def edm_weight(sigma_data: float = 0.5) -> Weighting:
    """Weight `(s^2 + sigma_data^2) / (s sigma_data)^2` of the data's, `s = sigma / alpha`.

    Karras et al. 2022 (EDM), table 1; with EDM's own preconditioning it is `simple`.

    Args:
        sigma_data: The deviation of the data, positive.

    Raises:
        ValueError: if it is not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    return of_x0(lambda level: jnp.logaddexp(log_snr_of(level), -2 * math.log(sigma_data)))


def likelihood(process: Process) -> Weighting:
    """Weight `g^2` of the squared error of the score (Song et al. 2021, maximum likelihood, eq. 7).

    Half of the loss's sum over dimensions, integrated over times, bounds the negative
    log-likelihood in nats but for a constant; with t uniform the variance is large, for the weight
    of eps is `g^2 / sigma^2`.

    Args:
        process: The process, whose time the level must know.
    """

    def log_weight(level: Level) -> Array:
        _, spread = sde(process, level.time)
        return jnp.log(spread) + 2 * jnp.log(level.alpha) - 4 * jnp.log(level.sigma)

    return of_x0(log_weight)


def denoising_loss(
    output: Float[Array, "batch *dims"],
    x0: Float[Array, "batch *dims"],
    eps: Float[Array, "batch *dims"],
    level: Level,
    parametrization: Parametrization = EPS,
    weighting: Weighting = simple,
) -> Float[Array, " batch"]:
    """`weight(level) * mean((output - target)^2)`, the mean over an example's dimensions.

    The target is what the network should predict; with the defaults this is L_simple (Ho et al.
    2020, eq. 14).

        >>> from jaxgen.noise.chain import chain, cosine_betas
        >>> from jaxgen.noise.parametrization import ask
        >>> from jaxgen.noise.process import q_sample
        >>> network = lambda x, time, condition: jnp.zeros_like(x)
        >>> level = chain(cosine_betas(1000)).at(jnp.array([0, 500]))
        >>> x0, eps = jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1))
        >>> output = ask(network, EPS, q_sample(x0, eps, level), level)
        >>> denoising_loss(output, x0, eps, level)
        Array([1., 1.], dtype=float32)

    Args:
        output: The network's output for `q_sample(x0, eps, level)`, of any float type.
        x0: Data.
        eps: The noise that was added.
        level: The level of each example.
        parametrization: What the network predicts.
        weighting: The weights of the levels, see `of_x0`.

    Returns:
        f32[B]; not a likelihood, so without a unit.

    Raises:
        ValueError: Shapes of output, data and noise that differ, or another number of levels than
            examples.
    """
    check_same_shape(output=output, x0=x0, eps=eps)
    check_batch(len(x0), alpha=level.alpha, sigma=level.sigma, time=level.time)
    error = output.astype(jnp.float32) - parametrization.target(x0, eps, level)
    mean = jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)
    return weighting(level, parametrization) * mean


def hybrid_loss(
    chain: Chain,
    output: Float[Array, "batch *output_dims"],
    x0: Float[Array, "batch *dims"],
    eps: Float[Array, "batch *dims"],
    t: Integer[Array, " batch"],
    parametrization: Parametrization = EPS,
    weighting: Weighting = simple,
    *,
    vb_weight: float = 1e-3,
) -> Float[Array, " batch"]:
    """`denoising_loss + vb_weight * T * vb_term`, for a learned variance.

    The bound's term is in bits per dimension, and its gradient reaches only the variance: the mean
    is trained by the denoising loss alone (Nichol & Dhariwal 2021, eq. 16). With t uniform,
    `T * vb_term` estimates the whole bound.

    Args:
        chain: The chain of T steps.
        output: The network's output [B, ..., 2C]: prediction, then variance.
        x0: Data [B, ..., C].
        eps: The noise that was added.
        t: The timestep of each example, 0..T-1.
        parametrization: What the network predicts.
        weighting: The weights of the levels, see `of_x0`.
        vb_weight: The weight of the bound, the paper's lambda.

    Returns:
        f32[B], without a unit.

    Raises:
        ValueError: if the output has not 2C channels, data and noise differ in shape, or there are
            other numbers of timesteps than examples.
    """
    check_same_shape(x0=x0, eps=eps)
    check_batch(len(x0), t=t)
    level = chain.at(t)
    x_t = q_sample(x0, eps, level)
    denoised = interpret(parametrization, output, x_t, level)
    frozen = denoised._replace(x0=jax.lax.stop_gradient(denoised.x0))
    nats = vb_term(chain, frozen, x0, x_t, t, variance=learned_variance)
    bits = nats / (math.prod(x0.shape[1:]) * math.log(2))
    predicted = output[..., : x0.shape[-1]]
    error = denoising_loss(predicted, x0, eps, level, parametrization, weighting)
    return error + vb_weight * chain.num_timesteps * bits


def bound_loss(
    chain: Chain,
    output: Float[Array, "batch *output_dims"],
    x0: Float[Array, "batch *dims"],
    eps: Float[Array, "batch *dims"],
    t: Integer[Array, " batch"],
    parametrization: Parametrization = EPS,
    *,
    variance: Variance = learned_variance,
) -> Float[Array, " batch"]:
    """`T vb_term`, whose mean over uniform t is the bound without its `prior_kl`: L_vlb.

    Mean and variance are both trained by it (Nichol & Dhariwal 2021, section 3.3).

    Args:
        chain: The chain of T steps.
        output: The network's output, [B, ..., 2C] for a learned variance.
        x0: 8-bit data u as `2 u / 255 - 1`, [B, ..., C].
        eps: The noise that was added.
        t: The timestep of each example, 0..T-1.
        parametrization: What the network predicts.
        variance: The variance of the reverse steps, see `jaxgen.noise.chain`.

    Returns:
        f32[B], nats summed over an example's dimensions.

    Raises:
        ValueError: if data and noise differ in shape, the output has not theirs but for further
            channels, or there are other numbers of timesteps than examples.
    """
    check_same_shape(x0=x0, eps=eps)
    level = chain.at(t)
    x_t = q_sample(x0, eps, level)
    denoised = interpret(parametrization, output, x_t, level)
    return chain.num_timesteps * vb_term(chain, denoised, x0, x_t, t, variance=variance)


def prior_kl(chain: Chain, x0: Float[Array, "batch *dims"]) -> Float[Array, " batch"]:
    """`KL(q(x_{T-1} | x0) || N(0, I))`, the bound's L_T (Ho et al. 2020, eq. 5).

    Args:
        chain: The chain.
        x0: Data.

    Returns:
        f32[B], nats summed over an example's dimensions.
    """
    signal = jnp.asarray(chain.alphas_cumprod)[-1]
    log_noise = jax.nn.log_sigmoid(-jnp.asarray(chain.log_snr)[-1])
    return _sum(gaussian_kl(jnp.sqrt(signal) * x0, log_noise, 0.0, 0.0))


def vb_term(
    chain: Chain,
    denoised: Denoised,
    x0: Float[Array, "batch *dims"],
    x_t: Float[Array, "batch *dims"],
    t: Integer[Array, " batch"],
    *,
    variance: Variance = large_variance,
) -> Float[Array, " batch"]:
    """One term of the bound: L_t for t >= 1, the decoder's L_0 for t = 0 (Ho et al. 2020, eq. 5).

    `KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))` for t >= 1, and for t = 0 `-log p(x0 | x_t)`, the
    mass of x0's bin under a Gaussian of the model's mean and variance (eq. 13).

    Args:
        chain: The chain.
        denoised: What the denoiser says of `x_t` at t.
        x0: 8-bit data u as `2 u / 255 - 1`.
        x_t: Noisy data.
        t: The timestep of each example, 0..T-1.
        variance: The variance of the reverse steps, see `jaxgen.noise.chain`.

    Returns:
        f32[B], nats summed over an example's dimensions.

    Raises:
        ValueError: if a variance is learned that the denoiser does not say, data, noisy data and
            predicted data differ in shape, or there are other numbers of timesteps than examples.
    """
    check_same_shape(x0=x0, x_t=x_t, predicted=denoised.x0)
    check_batch(len(x0), t=t)
    posterior = chain.posterior(t)
    mean, log_variance = posterior_mean(posterior, x0, x_t), variance(posterior, denoised)
    model_mean = posterior_mean(posterior, denoised.x0, x_t)
    log_small = expand(posterior.log_variance, x_t.ndim)
    kl = _sum(gaussian_kl(mean, log_small, model_mean, log_variance))
    decoder_nll = -_sum(discretized_gaussian_log_prob(x0, model_mean, log_variance))
    return jnp.where(t == 0, decoder_nll, kl)


def variational_bound(
    denoise: Denoise,
    chain: Chain,
    x0: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    *,
    num_timesteps: int | None = None,
    variance: Variance = large_variance,
    condition: Any = None,
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    """An upper bound on `-log p(x0)` of 8-bit data (Ho et al. 2020, eq. 5), one noise per term.

    The sum of the prior's KL, the KL of the steps t = 1..T-1 and the decoder's negative
    log-likelihood at t = 0. With K = `num_timesteps` < T the decoder's term is taken as it is, and
    the steps are parted into K - 1 strata of (nearly) equal size, from each of which every example
    draws one t, weighted by the stratum's size: unbiased, with K calls of the denoiser.
    Pure: call it under `jit`, where it is a single scan.

        >>> from jaxgen.noise.chain import chain, cosine_betas
        >>> from jaxgen.noise.parametrization import denoiser
        >>> from jaxgen.sampling.guidance import clip_x0
        >>> denoise = clip_x0(denoiser(lambda x, time, condition: 0.1 * x, EPS))
        >>> bound = jax.jit(
        ...     lambda x0, key: variational_bound(denoise, chain(cosine_betas(10)), x0, key)
        ... )
        >>> nats, terms = bound(jnp.zeros((2, 4, 4, 1)), jax.random.key(0))
        >>> nats.shape
        (2,)

    Args:
        denoise: The denoiser, usually with its data clipped to their range
            (`jaxgen.sampling.guidance.clip_x0`).
        chain: The chain of T steps.
        x0: 8-bit data u as `2 u / 255 - 1`.
        key: The PRNG key of the noise and the timesteps.
        num_timesteps: The number of noise levels K, from 2 to T, or None for T: every step.
        variance: The variance of the reverse steps, see `jaxgen.noise.chain`.
        condition: What the denoiser is told.

    Returns:
        The bound, f32[B], in nats summed over an example's dimensions, and its parts, each f32[B]:
        "prior_kl", "diffusion_kl" and "decoder_nll".

    Raises:
        ValueError: if `num_timesteps` is out of range, or a variance is learned that the denoiser
            does not say.
    """
    total_steps = chain.num_timesteps
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
        level = chain.at(t)
        x_t = q_sample(x0, standard_normal(key_eps, x0.shape), level)
        nats = vb_term(chain, denoise(x_t, level, condition), x0, x_t, t, variance=variance)
        return carry, nats * (high - low)

    strata = (jax.random.split(key, num), jnp.asarray(edges[:-1]), jnp.asarray(edges[1:]))
    _, nats = jax.lax.scan(estimate, None, strata)
    terms = {
        "prior_kl": prior_kl(chain, x0),
        "diffusion_kl": nats[1:].sum(axis=0),
        "decoder_nll": nats[0],
    }
    return sum(terms.values()), terms


def _sum(values: Array) -> Float[Array, " batch"]:
    return values.reshape(values.shape[0], -1).sum(axis=1)
