"""The algebra of Gaussian diffusion, shared by its losses and its samplers.

Here `alpha_t = sqrt(alphas_cumprod[t])` and `sigma_t = sqrt(one_minus_alphas_cumprod[t])`. A
denoiser is any function

    denoise(x_t: f32[B, ..., C], t: i32[B], condition) -> [B, ..., C], or [B, ..., 2C] if it also
                                                          learns the variance (last C channels)

usually a closure over parameters. What its first C channels mean is `prediction`: the noise "eps",
the data "x0", or "v" `= alpha_t eps - sigma_t x0` (Salimans & Ho 2022).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.primitives import check_choice
from jaxgen.schedules import DiscreteSchedule

Denoise = Callable[[Array, Array, Any], Array]
PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("small", "large", "learned_range")


class PMeanVariance(NamedTuple):
    """The model's `p(x_{t-1} | x_t) = N(mean, e^log_variance)`, and the data it expects.

    Attributes:
        mean: [B, ...].
        log_variance: [B, ...], or [B, 1, ...] where the variance is fixed.
        x0: [B, ...], the predicted data, after clipping.
    """

    mean: Float[Array, "batch *dims"]
    log_variance: Float[Array, "batch *ones"]
    x0: Float[Array, "batch *dims"]


def q_sample(
    schedule: DiscreteSchedule,
    x0: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *dims"],
) -> Float[Array, "batch *dims"]:
    """Noises data to level t: `x_t = alpha_t x0 + sigma_t eps` (Ho et al. 2020, eq. 4).

    Args:
        schedule: the chain.
        x0: data.
        t: noise level of each example, 0..T-1.
        eps: standard Gaussian noise.

    Returns:
        A sample of `q(x_t | x0)`.
    """
    alpha, sigma = _alpha_sigma(schedule, t, x0.ndim)
    return alpha * x0 + sigma * eps


def prediction_target(
    schedule: DiscreteSchedule,
    x0: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    eps: Float[Array, "batch *dims"],
    prediction: str = "eps",
) -> Float[Array, "batch *dims"]:
    """What a perfect denoiser of this kind would say of `q_sample(schedule, x0, t, eps)`.

    Args:
        schedule: the chain.
        x0: data.
        t: noise level of each example, 0..T-1.
        eps: the noise that was added.
        prediction: "eps", "x0" or "v".

    Returns:
        `eps`, `x0` or `v = alpha_t eps - sigma_t x0`.

    Raises:
        ValueError: if `prediction` is unknown.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    alpha, sigma = _alpha_sigma(schedule, t, x0.ndim)
    return alpha * eps - sigma * x0


def to_x0(
    schedule: DiscreteSchedule,
    output: Float[Array, "batch *dims"],
    x_t: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    prediction: str = "eps",
) -> Float[Array, "batch *dims"]:
    """The data that a prediction implies.

    `(x_t - sigma_t eps) / alpha_t`, `x0` or `alpha_t x_t - sigma_t v`.

    Args:
        schedule: the chain.
        output: the denoiser's prediction (its first C channels), of any float type.
        x_t: what it was given.
        t: noise level of each example, 0..T-1.
        prediction: "eps", "x0" or "v".

    Returns:
        Predicted data, f32.

    Raises:
        ValueError: if `prediction` is unknown.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    output = output.astype(jnp.float32)
    if prediction == "x0":
        return output
    alpha, sigma = _alpha_sigma(schedule, t, x_t.ndim)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha
    return alpha * x_t - sigma * output


def to_eps(
    schedule: DiscreteSchedule,
    x0: Float[Array, "batch *dims"],
    x_t: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
) -> Float[Array, "batch *dims"]:
    """The noise that leads from x0 to x_t: `eps = (x_t - alpha_t x0) / sigma_t`.

    Args:
        schedule: the chain.
        x0: data, true or predicted.
        x_t: noisy data.
        t: noise level of each example, 0..T-1.

    Returns:
        The noise.
    """
    alpha, sigma = _alpha_sigma(schedule, t, x_t.ndim)
    return (x_t - alpha * x0) / sigma


def posterior(
    schedule: DiscreteSchedule,
    x0: Float[Array, "batch *dims"],
    x_t: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
) -> tuple[Float[Array, "batch *dims"], Float[Array, "batch *ones"]]:
    """Mean and log-variance of `q(x_{t-1} | x_t, x0)` (Ho et al. 2020, eq. 6-7).

    Args:
        schedule: the chain.
        x0: data.
        x_t: noisy data.
        t: noise level of each example, 0..T-1; at 0 the mean is x0, and the log-variance that of
            t = 1 (see `DiscreteSchedule`).

    Returns:
        The mean [B, ...] and the log-variance [B, 1, ...].
    """
    x0_coef = _at(schedule.posterior_x0_coef, t, x_t.ndim)
    xt_coef = _at(schedule.posterior_xt_coef, t, x_t.ndim)
    log_variance = _at(schedule.posterior_log_variance, t, x_t.ndim)
    return x0_coef * x0 + xt_coef * x_t, log_variance


def p_mean_variance(
    schedule: DiscreteSchedule,
    output: Float[Array, "batch *output_dims"],
    x_t: Float[Array, "batch *dims"],
    t: Int[Array, " batch"],
    *,
    prediction: str = "eps",
    variance: str = "large",
    clip_x0: bool = True,
) -> PMeanVariance:
    """The model's step from x_t to x_{t-1}: the posterior's mean, at the x0 that it predicts.

    The log-variance is, by `variance`:

    - "small": the posterior's (right if the data were a single point);
    - "large": `log betas[t]` (right if the data were standard Gaussian), the posterior's at t = 0;
    - "learned_range": `f log betas[t] + (1 - f) posterior's`, with `f = (u + 1) / 2` and u the last
      C channels of the output (Nichol & Dhariwal 2021, eq. 15).

    Args:
        schedule: the chain.
        output: the denoiser's output, [B, ..., C], or [B, ..., 2C] with "learned_range".
        x_t: what it was given, [B, ..., C].
        t: noise level of each example, 0..T-1.
        prediction: "eps", "x0" or "v".
        variance: "small", "large" or "learned_range".
        clip_x0: clip the predicted data to [-1, 1].

    Returns:
        Mean, log-variance and predicted data, f32.

    Raises:
        ValueError: if a name is unknown or the output has the wrong number of channels.
    """
    check_choice("variance", variance, VARIANCES)
    channels = x_t.shape[-1]
    expected = (*x_t.shape[:-1], 2 * channels if variance == "learned_range" else channels)
    if output.shape != expected:
        raise ValueError(
            f"with variance={variance!r} the denoiser's output for x_t of shape {x_t.shape} must "
            f"have shape {expected}, got {output.shape}"
        )
    x0 = to_x0(schedule, output[..., :channels], x_t, t, prediction)
    if clip_x0:
        x0 = jnp.clip(x0, -1.0, 1.0)
    mean, log_small = posterior(schedule, x0, x_t, t)
    log_large = jnp.log(_at(schedule.betas, t, x_t.ndim))
    if variance == "small":
        log_variance = log_small
    elif variance == "large":
        is_first = (t == 0).reshape(log_large.shape)
        log_variance = jnp.where(is_first, log_small, log_large)
    else:
        fraction = 0.5 * (output[..., channels:].astype(jnp.float32) + 1)
        log_variance = fraction * log_large + (1 - fraction) * log_small
    return PMeanVariance(mean, log_variance, x0)


def _at(values, t, ndim: int):
    """`values[t]` with the axes [B, 1, ...] of an ndim-dimensional batch."""
    return jnp.asarray(values)[t].reshape(t.shape + (1,) * (ndim - 1))


def _alpha_sigma(schedule: DiscreteSchedule, t, ndim: int):
    signal = _at(schedule.alphas_cumprod, t, ndim)
    noise = _at(schedule.one_minus_alphas_cumprod, t, ndim)
    return jnp.sqrt(signal), jnp.sqrt(noise)
