r"""Noise levels, and the processes that provide them.

A noisy example at a level is `x_t = alpha x0 + sigma eps`, eps standard Gaussian. A `Process`
gives the level of each time, t rising from data to noise:

    vp(log_snr)       alpha^2 + sigma^2 = 1, by its log signal-to-noise ratio (`noise.log_snr`)
    ve()              alpha = 1, sigma from 0.01 to 50 in geometric progression
    edm()             alpha = 1, sigma = t
    sub_vp()          alpha as `vp(log_snr_linear)`, sigma = 1 - alpha^2
    rectified()       alpha = 1 - t, sigma = t: straight lines
    trigonometric()   alpha = cos(pi t / 2), sigma = sin(pi t / 2)

The discrete chain of DDPM is in `jaxgen.noise.chain`, the levels that a sampler visits in
`jaxgen.noise.levels`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

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
        last_time: The time of the noisiest level.
    """

    at: Callable[[Num[Array, "*levels"]], Level]
    prior_std: float
    last_time: float = 1.0


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

    Examples:
        >>> level = rectified().at(jnp.array([0.0, 0.25, 1.0]))
        >>> q_sample(jnp.ones((3, 1)), jnp.zeros((3, 1)), level)[:, 0]
        Array([1.  , 0.75, 0.  ], dtype=float32)
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


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """The variance-exploding process, `sigma = sigma_min (sigma_max / sigma_min)^t`, t in [0, 1].

    Song et al. 2021 (SDE), eq. 31; `sigma_max` should be near the greatest distance of two data.

    Args:
        sigma_min: The deviation at t = 0, positive.
        sigma_max: The deviation at t = 1, greater.

    Raises:
        ValueError: if they are not in that order.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"0 < sigma_min < sigma_max must hold and both be finite, got {sigma_min}, {sigma_max}"
        )

    def at(times: Num[Array, "*levels"]) -> Level:
        sigma = sigma_min * jnp.exp(math.log(sigma_max / sigma_min) * times)
        return Level(jnp.ones_like(sigma), sigma, times)

    return Process(at, sigma_max)


def edm(sigma_max: float = 80.0) -> Process:
    """The process whose time is the deviation of its noise, `alpha = 1, sigma = t`.

    Karras et al. 2022 (EDM), section 3: the probability-flow ODE is straight near data and noise.

    Args:
        sigma_max: The deviation, and the time, where sampling starts; positive.

    Raises:
        ValueError: if it is not positive and finite.

    Examples:
        >>> edm().at(jnp.array([0.5, 80.0])).sigma
        Array([ 0.5, 80. ], dtype=float32)
    """
    if not 0 < sigma_max < math.inf:
        raise ValueError(f"sigma_max must be positive and finite, got {sigma_max}")
    return Process(lambda t: Level(jnp.ones_like(t), t, t), sigma_max, sigma_max)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """The sub-VP process, `alpha^2 = e^-B(t), sigma = 1 - alpha^2`, t in [0, 1].

    Its variance is below the VP process's at every time; B is that of `log_snr_linear` (Song et al.
    2021, SDE, eq. 29).

    Args:
        beta_min: The rate at t = 0, positive.
        beta_max: The rate at t = 1, at least that.

    Raises:
        ValueError: if they are not in that order.
    """
    if not 0 < beta_min <= beta_max < math.inf:
        raise ValueError(
            f"0 < beta_min <= beta_max must hold and both be finite, got {beta_min}, {beta_max}"
        )

    def at(times: Num[Array, "*levels"]) -> Level:
        integral = times * beta_min + jnp.square(times) * (0.5 * (beta_max - beta_min))
        return Level(jnp.exp(-0.5 * integral), -jnp.expm1(-integral), times)

    return Process(at, 1.0)


def rectified() -> Process:
    """Straight lines between data and noise, `alpha = 1 - t, sigma = t`, t in [0, 1].

    Rectified flow (Liu et al. 2023), and the conditional optimal-transport path of flow matching
    (Lipman et al. 2023) with `sigma_min = 0`; there time runs from noise to data.
    """
    return Process(lambda t: Level(1 - t, jnp.asarray(t), t), 1.0)


def trigonometric() -> Process:
    """The quarter circle, `alpha = cos(pi t / 2), sigma = sin(pi t / 2)`, t in [0, 1].

    It preserves the variance (Albergo & Vanden-Eijnden 2023; GVP in SiT, Ma et al. 2024).
    """

    def at(times: Num[Array, "*levels"]) -> Level:
        angle = 0.5 * math.pi * times
        # cos from the far end: exactly 0 there
        return Level(jnp.sin(0.5 * math.pi - angle), jnp.sin(angle), times)

    return Process(at, 1.0)


def slope(
    process: Process, times: Float[Array, "*levels"]
) -> tuple[Float[Array, "*levels"], Float[Array, "*levels"]]:
    """The derivatives `d alpha / dt, d sigma / dt` of a process at times.

    Args:
        process: The process.
        times: Times within its range.
    """
    times = jnp.asarray(times, jnp.float32)
    _, rates = jax.jvp(lambda t: process.at(t)[:2], (times,), (jnp.ones_like(times),))
    return rates


def sde(
    process: Process, times: Float[Array, "*levels"]
) -> tuple[Float[Array, "*levels"], Float[Array, "*levels"]]:
    """The forward SDE `dx = f x dt + g dw` whose marginals are a process's: `f` and `g^2`.

    `f = alpha' / alpha` and `g^2 = 2 sigma sigma' - 2 f sigma^2` (Kingma et al. 2021, eq. 20-21);
    `f` is infinite where nothing of the data is left.

    Args:
        process: The process.
        times: Times within its range.
    """
    level, (alpha_rate, sigma_rate) = process.at(times), slope(process, times)
    drift = alpha_rate / level.alpha
    return drift, 2 * level.sigma * (sigma_rate - drift * level.sigma)


def time_of(
    process: Process, log_snr: Float[Array, "*levels"], halvings: int = 60
) -> Float[Array, "*levels"]:
    """The times at which a process has these log signal-to-noise ratios, by bisection.

    Args:
        process: The process.
        log_snr: Ratios in nats; beyond those of the process the nearest end is the answer.
        halvings: Number of halvings of the range.
    """
    ratio = jnp.asarray(log_snr, jnp.float32)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        cleaner = log_snr_of(process.at(middle)) > ratio  # so the time is later
        return jnp.where(cleaner, middle, low), jnp.where(cleaner, high, middle)

    ends = jnp.zeros_like(ratio), jnp.full_like(ratio, process.last_time)
    low, high = jax.lax.fori_loop(0, halvings, halve, ends)
    return 0.5 * (low + high)
