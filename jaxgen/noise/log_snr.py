"""Log signal-to-noise ratios as functions of time, for variance-preserving processes.

process = vp(log_snr_cosine)
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_snr_linear(
    t: Float[Array, "*dims"],
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    log_snr_min: float = -20.0,
    log_snr_max: float = 20.0,
) -> Float[Array, "*dims"]:
    """The continuous form of `linear_betas`: `log_snr = -log(expm1(B(t)))`, decreasing in t.

    `B(t) = t beta_min + t^2 (beta_max - beta_min) / 2` is the integral of beta (Song et al. 2021,
    SDE, eq. 33; in terms of log-SNR, Kingma et al. 2021), so `alpha^2 = sigmoid(log_snr) = e^-B`.

    Args:
        t: The time in [0, 1], 0 is data.
        beta_min: The rate at t = 0; `T beta_start` of the discrete chain.
        beta_max: The rate at t = 1; `T beta_end` of the discrete chain.
        log_snr_min: The least result, to which it is clipped (t = 1).
        log_snr_max: The greatest result, to which it is clipped (infinite otherwise at t = 0).

    Returns:
        The log signal-to-noise ratio at t, in nats.
    """
    integral = t * beta_min + jnp.square(t) * (0.5 * (beta_max - beta_min))
    return _log_snr_of_integral(integral, log_snr_min, log_snr_max)


def log_snr_cosine(
    t: Float[Array, "*dims"],
    s: float = 0.008,
    log_snr_min: float = -20.0,
    log_snr_max: float = 20.0,
) -> Float[Array, "*dims"]:
    """The continuous form of `cosine_betas`: `alpha(t) = cos(a(t)) / cos(a(0))`.

    With `a(t) = (t + s) / (1 + s) * pi / 2` (Nichol & Dhariwal 2021, eq. 17); `s = 0` is the form
    of progressive distillation, `log_snr = -2 log tan(pi t / 2)` (Salimans & Ho 2022).

    Args:
        t: The time in [0, 1], 0 is data.
        s: The offset, at least 0.
        log_snr_min: The least result, to which it is clipped (minus infinity otherwise at t = 1).
        log_snr_max: The greatest result, to which it is clipped (infinite otherwise at t = 0).

    Returns:
        The log signal-to-noise ratio at t, in nats.
    """
    quarter = 0.5 * math.pi / (1 + s)
    # cos a(t) from the far end, and cos^2 a(0) - cos^2 a(t) as a product of sines: no cancellation.
    log_alpha = _safe_log(jnp.sin(quarter * (1 - t)))
    log_noise = _safe_log(jnp.sin(quarter * t)) + _safe_log(jnp.sin(quarter * (t + 2 * s)))
    return jnp.clip(2 * log_alpha - log_noise, log_snr_min, log_snr_max)


def log_snr_sigmoid(
    t: Float[Array, "*dims"],
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    log_snr_min: float = -20.0,
    log_snr_max: float = 20.0,
) -> Float[Array, "*dims"]:
    """The continuous form of `sigmoid_betas`: `log_snr = -log(expm1(B(t)))`.

    `B(t) = t beta_min + (beta_max - beta_min) (softplus(12 t - 6) - softplus(-6)) / 12` is the
    integral of `beta_min + (beta_max - beta_min) sigmoid(12 t - 6)`.

    Args:
        t: The time in [0, 1], 0 is data.
        beta_min: The lower limit of the rate; `T beta_start` of the discrete chain.
        beta_max: The upper limit of the rate; `T beta_end` of the discrete chain.
        log_snr_min: The least result, to which it is clipped (t = 1).
        log_snr_max: The greatest result, to which it is clipped (infinite otherwise at t = 0).

    Returns:
        The log signal-to-noise ratio at t, in nats.
    """
    # softplus(12t - 6) - softplus(-6) = log(1 + expm1(12t) sigmoid(-6)), exact where t is small.
    risen = jnp.log1p(jnp.expm1(12 * t) * (1 / (1 + math.exp(6))))
    integral = t * beta_min + risen * ((beta_max - beta_min) / 12)
    return _log_snr_of_integral(integral, log_snr_min, log_snr_max)


def _log_snr_of_integral(
    integral: Float[Array, "*dims"], log_snr_min: float, log_snr_max: float
) -> Float[Array, "*dims"]:
    """`-log(expm1(B))` without overflow: with alpha^2 = e^-B it is logit(alpha^2)."""
    return jnp.clip(-integral - _safe_log(-jnp.expm1(-integral)), log_snr_min, log_snr_max)


def _safe_log(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """A log whose value and gradient stay finite at and below 0; the caller clips it away."""
    return jnp.log(jnp.maximum(x, 1e-30))
