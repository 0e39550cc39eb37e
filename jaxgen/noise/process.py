r"""Noise levels, the processes that provide them, and the levels that a sampler visits.

A noisy example at a level is `x_t = alpha x0 + sigma eps`, eps standard Gaussian. A `Process`
gives the level of each time. Where it preserves variance, `alpha^2 + sigma^2 = 1`, its log
signal-to-noise ratio says all of it: `vp(log_snr_cosine)`. The discrete chain of DDPM is in
`jaxgen.noise.chain`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from jaxgen.checks import check_batch, check_same_shape


class Level(NamedTuple):
    """The noise level of each example, or of several steps: `x_t = alpha x0 + sigma eps`.

    Attributes:
        alpha: The factor of the data.
        sigma: The deviation of the noise.
        time: The time by which the process, and a network, know the level.
    """

    alpha: Float[Array, "*levels"]
    sigma: Float[Array, "*levels"]
    time: Num[Array, "*levels"]


class Process(NamedTuple):
    """A way from data to noise.

    Attributes:
        at: `times -> Level` of arrays of their shape.
        prior_std: The deviation of `x_t` at the last time, where sampling starts.
    """

    at: Callable[[Num[Array, "*levels"]], Level]
    prior_std: float


class Posterior(NamedTuple):
    """`q(x_s | x_t, x0) = N(x0_coef x0 + xt_coef x_t, e^log_variance)`, s less noisy than t.

    With `added = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2`, the variance that noise brings on
    the way from s to t, it is `x0_coef = alpha_s added / sigma_t^2`, `xt_coef = (alpha_t / alpha_s)
    sigma_s^2 / sigma_t^2` and `e^log_variance = added sigma_s^2 / sigma_t^2` (Ho et al. 2020,
    eq. 6-7, where s = t - 1).

    Attributes:
        x0_coef: The factor of the data.
        xt_coef: The factor of the noisy example; 0 where s is clean data.
        log_variance: The log of the variance; where s is clean data, and the variance 0, whatever
            the provider puts in its place.
        added: The variance that noise brings; `beta_t` of a chain.
    """

    x0_coef: Float[Array, "*levels"]
    xt_coef: Float[Array, "*levels"]
    log_variance: Float[Array, "*levels"]
    added: Float[Array, "*levels"]


class Levels(NamedTuple):
    """The N noise levels that a sampler visits after its start, in its order: a pytree.

    Only the first `num_steps` of the N intervals count; what the arrays hold beyond them has no
    meaning. So the number of steps can be traced, and changes without a new compilation.

    Attributes:
        level: The levels, arrays [N + 1].
        posterior: The posterior of each interval, arrays [N]; None where the levels rise.
        num_steps: The number of intervals.
        complete: Whether these are all levels of a discrete chain.
    """

    level: Level
    posterior: Posterior | None
    num_steps: int | np.integer | Int[Array, ""]
    complete: bool | Bool[Array, ""] = False


def expand(values: Shaped[Array, " batch"], ndim: int) -> Shaped[Array, "batch *ones"]:
    """One value an example, with the axes [B, 1, ...] of an ndim-dimensional batch."""
    return values.reshape(values.shape + (1,) * (ndim - 1))


def log_snr_of(level: Level) -> Float[Array, "*levels"]:
    """The log signal-to-noise ratio `log(alpha^2 / sigma^2)` of levels, in nats."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def q_sample(
    x0: Float[Array, "batch *dims"], eps: Float[Array, "batch *dims"], level: Level
) -> Float[Array, "batch *dims"]:
    """Noises data to a level: `x_t = alpha x0 + sigma eps` (Ho et al. 2020, eq. 4).

    Args:
        x0: Data.
        eps: Standard Gaussian noise.
        level: The level of each example.

    Returns:
        A sample of `q(x_t | x0)`.

    Raises:
        ValueError: Data and noise of different shapes, or another number of levels than examples.
    """
    check_same_shape(x0=x0, eps=eps)
    check_batch(len(x0), alpha=level.alpha, sigma=level.sigma)
    return expand(level.alpha, x0.ndim) * x0 + expand(level.sigma, x0.ndim) * eps


def vp(log_snr: Callable[[Array], Array]) -> Process:
    """The variance-preserving process of a log signal-to-noise ratio.

    `alpha^2 = sigmoid(log_snr(t))` and `sigma^2 = sigmoid(-log_snr(t))`, t from 0 to 1.

    Args:
        log_snr: A decreasing function of times in [0, 1], in nats, such as `log_snr_cosine`.
    """

    def at(times: Num[Array, "*levels"]) -> Level:
        ratio = log_snr(times)
        return Level(jnp.sqrt(jax.nn.sigmoid(ratio)), jnp.sqrt(jax.nn.sigmoid(-ratio)), times)

    return Process(at, 1.0)


def levels_at(process: Process, times: Float[Array, " points"]) -> Levels:
    """The levels of a process at times, for a sampler to visit in their order.

    The constants of the posterior are float32 and lose digits where steps are many and short: those
    of a chain, `jaxgen.noise.chain.levels_of`, do not.

    Args:
        process: The process.
        times: The times [K + 1] of K steps, each less noisy than the one before.

    Raises:
        ValueError: if there are fewer than two times.
    """
    if times.shape[0] < 2:
        raise ValueError(f"times must be two or more, got {times.shape[0]}")
    level = process.at(times)
    start, end = jax.tree.map(lambda v: v[:-1], level), jax.tree.map(lambda v: v[1:], level)
    # added / sigma_t^2, and e^x - 1 of the difference: nothing cancels but the ratios themselves.
    share = -jnp.expm1(log_snr_of(start) - log_snr_of(end))
    added = share * jnp.square(start.sigma)
    log_variance = jnp.log(share) + 2 * jnp.log(end.sigma)
    posterior = Posterior(
        x0_coef=end.alpha * share,
        xt_coef=start.alpha / end.alpha * jnp.square(end.sigma / start.sigma),
        log_variance=jnp.where(end.sigma > 0, log_variance, jnp.log(added)),
        added=added,
    )
    return Levels(level, posterior, times.shape[0] - 1)


def reverse(levels: Levels) -> Levels:
    """The same levels from the last to the first: a deterministic solver inverts itself on them.

    Returns:
        Levels that rise, and so have no posterior.
    """
    points = jnp.arange(levels.level.alpha.shape[0])
    order = jnp.maximum(levels.num_steps - points, 0)
    level = jax.tree.map(lambda values: jnp.asarray(values)[order], levels.level)
    return Levels(level, None, levels.num_steps, levels.complete)


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
