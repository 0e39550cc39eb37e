"""Noise schedules: discrete betas, what follows from them, and continuous log-SNR curves.

The forward process is `q(x_t | x0) = N(alpha_t x0, sigma_t^2 I)`, variance preserving, with
`alpha_t^2 = alphas_cumprod[t] = sigmoid(log_snr[t])` and `sigma_t^2 = sigmoid(-log_snr[t])`. A
discrete chain has `T` noise levels, `t = 0` (almost clean) to `T - 1` (almost pure noise).

    schedule = discrete_schedule(cosine_betas(1000))
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SPACINGS = ("leading", "linspace", "trailing")


class DiscreteSchedule(NamedTuple):
    """The constants of a chain of T Gaussian steps, f32[T] each, indexed by `t` in 0..T-1.

    A pytree: close over it or pass it through `jit`. `1 - alphas_cumprod` has a field of its own
    because float32 subtraction loses it where t is small. The posterior is
    `q(x_{t-1} | x_t, x0) = N(posterior_x0_coef x0 + posterior_xt_coef x_t, posterior_variance)`
    (Ho et al. 2020, eq. 6-7).

    Attributes:
        betas: variance added by step t.
        alphas_cumprod: `prod_{s <= t} (1 - betas[s])`, the signal's variance.
        one_minus_alphas_cumprod: the noise's variance.
        log_snr: `log(alphas_cumprod / one_minus_alphas_cumprod)`.
        posterior_x0_coef: `sqrt(alphas_cumprod[t-1]) betas[t] / one_minus_alphas_cumprod[t]`.
        posterior_xt_coef: `sqrt(1 - betas[t]) one_minus_alphas_cumprod[t-1] /
            one_minus_alphas_cumprod[t]`.
        posterior_log_variance: log of `betas[t] one_minus_alphas_cumprod[t-1] /
            one_minus_alphas_cumprod[t]`. That is log 0 at t = 0, where the entry of t = 1 stands in
            (and `betas[0]` in a chain of one step), as in the authors' code.
    """

    betas: Float[Array, " num_steps"]
    alphas_cumprod: Float[Array, " num_steps"]
    one_minus_alphas_cumprod: Float[Array, " num_steps"]
    log_snr: Float[Array, " num_steps"]
    posterior_x0_coef: Float[Array, " num_steps"]
    posterior_xt_coef: Float[Array, " num_steps"]
    posterior_log_variance: Float[Array, " num_steps"]


def linear_betas(
    num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[np.ndarray, " num_steps"]:
    """`T` betas evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020, section 4).

    The defaults are meant for 1000 steps; multiply both by `1000 / num_steps` for other lengths.

    Args:
        num_steps: T, at least 1.
        beta_start: the first beta, in (0, 1).
        beta_end: the last beta, in (0, 1).

    Returns:
        float64 [num_steps], for `discrete_schedule`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_beta_range(num_steps, beta_start, beta_end)
    return np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)


def cosine_betas(
    num_steps: int, s: float = 0.008, max_beta: float = 0.999
) -> Float[np.ndarray, " num_steps"]:
    """Betas of `alphas_cumprod(u) = cos^2((u + s) / (1 + s) * pi / 2)`, u = (t + 1) / T.

    `betas[t] = min(1 - alphas_cumprod((t + 1) / T) / alphas_cumprod(t / T), max_beta)` (Nichol &
    Dhariwal 2021, eq. 17).

    Args:
        num_steps: T, at least 1.
        s: offset, at least 0, that keeps the first betas from being too small.
        max_beta: cap of the last betas, in (0, 1).

    Returns:
        float64 [num_steps], for `discrete_schedule`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_num_steps(num_steps)
    if not 0 <= s < math.inf:
        raise ValueError(f"s must be finite and at least 0, got {s}")
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie in (0, 1), got {max_beta}")
    u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    alphas_cumprod = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


def sigmoid_betas(
    num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[np.ndarray, " num_steps"]:
    """Betas that rise along a sigmoid: `start + (end - start) * sigmoid(u)`, u from -6 to 6.

    The schedule of GeoDiff (Xu et al. 2022). The ends themselves are reached to 0.25% of the range.

    Args:
        num_steps: T, at least 1.
        beta_start: the lower limit, in (0, 1).
        beta_end: the upper limit, in (0, 1).

    Returns:
        float64 [num_steps], for `discrete_schedule`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_beta_range(num_steps, beta_start, beta_end)
    u = np.linspace(-6, 6, num_steps, dtype=np.float64)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-u))


def discrete_schedule(betas: Any) -> DiscreteSchedule:
    """All constants of the chain with these betas.

    Computed in float64 on the host, from `log(1 - beta)` by `expm1` and `log1p`, then rounded once
    to float32, so that every field is right to float32 precision at both ends of the chain.

    Args:
        betas: [T], one-dimensional, each in (0, 1).

    Returns:
        The schedule, of NumPy float32 arrays: no accelerator is touched until it is used.

    Raises:
        ValueError: if `betas` is not a non-empty vector of finite numbers in (0, 1), or if float32
            cannot hold the chain (the signal underflows).
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a non-empty vector, got shape {betas.shape}")
    wrong = ~((betas > 0) & (betas < 1))  # also catches NaN
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"betas must lie in (0, 1), got betas[{first}] = {betas[first]}")
    log_alphas = np.log1p(-betas)
    tiny = float(np.finfo(np.float32).tiny)
    if log_alphas.sum() < math.log(tiny) or betas.min() < tiny:
        raise ValueError(
            "betas make a chain beyond float32: its last alphas_cumprod is "
            f"exp({log_alphas.sum():.4g}) and its least beta {betas.min():.4g}, and both must be "
            f"at least {tiny:.4g}; use fewer steps or other betas"
        )
    schedule = _assemble(log_alphas, np.cumsum(log_alphas), np)
    return DiscreteSchedule(*(field.astype(np.float32) for field in schedule))


def spaced_timesteps(
    num_timesteps: int, num_steps: int | np.integer | Int[Array, ""], spacing: str = "leading"
) -> Int[Array, " num_timesteps"]:
    """K of the timesteps 0..T-1, evenly spaced, padded to length T with T - 1.

    `t_i` for i in 0..K-1 is, by `spacing`:

    - "leading": `floor(i T / K)` (Song et al. 2021, DDIM): includes 0, leaves out the noisiest.
    - "linspace": `round(i (T - 1) / (K - 1))` (Nichol & Dhariwal 2021): includes both ends.
    - "trailing": `floor((i + 1) T / K) - 1`: includes T - 1, also when K = 1 (Lin et al. 2024).

    The length does not depend on K, so K may be traced.

    Args:
        num_timesteps: T, at most 2^15 (the arithmetic is in int32).
        num_steps: K, from 1 to T; a scalar array may be traced, and then is not checked.
        spacing: "leading", "linspace" or "trailing".

    Returns:
        i32[T], of which the first K are strictly increasing.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `num_steps` is no integer.
    """
    if isinstance(num_steps, int | np.integer):
        if not 1 <= num_steps <= num_timesteps:
            raise ValueError(f"num_steps must be from 1 to T = {num_timesteps}, got {num_steps}")
    elif not isinstance(num_steps, jax.Array):
        raise TypeError(f"num_steps must be an integer, got {num_steps!r}")
    if num_timesteps > 2**15:
        raise ValueError(f"num_timesteps must be at most 2^15, got {num_timesteps}")
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
    i = jnp.arange(num_timesteps)
    last = num_timesteps - 1
    if spacing == "leading":
        timesteps = i * num_timesteps // num_steps
    elif spacing == "trailing":
        timesteps = (i + 1) * num_timesteps // num_steps - 1
    else:
        gaps = jnp.maximum(num_steps - 1, 1)
        timesteps = (2 * i * last + gaps) // (2 * gaps)
    return jnp.where(i < num_steps, timesteps, last)


def respace(schedule: DiscreteSchedule, timesteps: Int[Array, " num_steps"]) -> DiscreteSchedule:
    """The shorter chain that visits only `timesteps` and has the same marginals there.

    Its betas are `1 - alphas_cumprod[t_i] / alphas_cumprod[t_{i-1}]` (Nichol & Dhariwal 2021,
    section 4), from sums of `log(1 - beta)`, in which nothing cancels.

    Args:
        schedule: the chain of T steps.
        timesteps: increasing, in 0..T-1; entries that repeat T - 1 are padding, and what the result
            holds for them has no meaning. Ask the denoiser at `timesteps[i]`, the result at `i`.

    Returns:
        The schedule of `len(timesteps)` steps, as JAX arrays.
    """
    (length,) = schedule.betas.shape
    step_of = jnp.searchsorted(timesteps, jnp.arange(length))
    log_alphas = jax.ops.segment_sum(
        jnp.log1p(-jnp.asarray(schedule.betas)), step_of, num_segments=timesteps.shape[0]
    )
    log_alphas_cumprod = jax.nn.log_sigmoid(jnp.asarray(schedule.log_snr)[timesteps])
    return _assemble(log_alphas, log_alphas_cumprod, jnp)


def log_snr_linear(
    t: Float[Array, "*dims"],
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    log_snr_min: float = -20.0,
    log_snr_max: float = 20.0,
) -> Float[Array, "*dims"]:
    """Continuous form of `linear_betas`: `log_snr = -log(expm1(B(t)))`, decreasing in t.

    `B(t) = t beta_min + t^2 (beta_max - beta_min) / 2` is the integral of beta (Song et al. 2021,
    SDE, eq. 33; in terms of log-SNR, Kingma et al. 2021), so `alpha^2 = sigmoid(log_snr) = e^-B`.

    Args:
        t: time in [0, 1], 0 is data.
        beta_min: rate at t = 0; `T beta_start` of the discrete chain.
        beta_max: rate at t = 1; `T beta_end` of the discrete chain.
        log_snr_min: the result is clipped to this from below (t = 1).
        log_snr_max: the result is clipped to this from above (infinite otherwise at t = 0).

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
    """Continuous form of `cosine_betas`: `alpha(t) = cos(a(t)) / cos(a(0))`.

    With `a(t) = (t + s) / (1 + s) * pi / 2` (Nichol & Dhariwal 2021, eq. 17); `s = 0` is the form
    of progressive distillation, `log_snr = -2 log tan(pi t / 2)` (Salimans & Ho 2022).

    Args:
        t: time in [0, 1], 0 is data.
        s: offset, at least 0.
        log_snr_min: the result is clipped to this from below (minus infinity otherwise at t = 1).
        log_snr_max: the result is clipped to this from above (infinite otherwise at t = 0).

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
    """Continuous form of `sigmoid_betas`: `log_snr = -log(expm1(B(t)))`.

    `B(t) = t beta_min + (beta_max - beta_min) (softplus(12 t - 6) - softplus(-6)) / 12` is the
    integral of `beta_min + (beta_max - beta_min) sigmoid(12 t - 6)`.

    Args:
        t: time in [0, 1], 0 is data.
        beta_min: lower limit of the rate; `T beta_start` of the discrete chain.
        beta_max: upper limit of the rate; `T beta_end` of the discrete chain.
        log_snr_min: the result is clipped to this from below (t = 1).
        log_snr_max: the result is clipped to this from above (infinite otherwise at t = 0).

    Returns:
        The log signal-to-noise ratio at t, in nats.
    """
    # softplus(12t - 6) - softplus(-6) = log(1 + expm1(12t) sigmoid(-6)), exact where t is small.
    risen = jnp.log1p(jnp.expm1(12 * t) * (1 / (1 + math.exp(6))))
    integral = t * beta_min + risen * ((beta_max - beta_min) / 12)
    return _log_snr_of_integral(integral, log_snr_min, log_snr_max)


def _assemble(log_alphas, log_alphas_cumprod, xp) -> DiscreteSchedule:
    """Every field from `log(1 - beta)` and its running sum, in NumPy or JAX (`xp`)."""
    betas = -xp.expm1(log_alphas)
    signal, noise = xp.exp(log_alphas_cumprod), -xp.expm1(log_alphas_cumprod)
    before = xp.concatenate([xp.zeros_like(log_alphas_cumprod[:1]), log_alphas_cumprod[:-1]])
    signal_before, noise_before = xp.exp(before), -xp.expm1(before)
    log_variance = xp.log(betas[1:]) + xp.log(noise_before[1:]) - xp.log(noise[1:])
    first = log_variance[:1] if len(betas) > 1 else xp.log(betas)
    return DiscreteSchedule(
        betas=betas,
        alphas_cumprod=signal,
        one_minus_alphas_cumprod=noise,
        log_snr=log_alphas_cumprod - xp.log(noise),
        posterior_x0_coef=xp.sqrt(signal_before) * betas / noise,
        posterior_xt_coef=xp.exp(0.5 * log_alphas) * noise_before / noise,
        posterior_log_variance=xp.concatenate([first, log_variance]),
    )


def _log_snr_of_integral(integral, log_snr_min: float, log_snr_max: float):
    """`-log(expm1(B))` without overflow: with alpha^2 = e^-B it is logit(alpha^2)."""
    return jnp.clip(-integral - _safe_log(-jnp.expm1(-integral)), log_snr_min, log_snr_max)


def _safe_log(x):
    """A log whose value and gradient stay finite at and below 0; the caller clips it away."""
    return jnp.log(jnp.maximum(x, 1e-30))


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")


def _check_beta_range(num_steps: int, beta_start: float, beta_end: float) -> None:
    _check_num_steps(num_steps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {beta}")
