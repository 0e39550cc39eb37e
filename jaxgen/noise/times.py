"""Times: those that a sampler of a continuous process visits, and those that training draws.

A grid is `(num_steps) -> f32[num_steps + 1]`, falling, for `jaxgen.noise.levels.levels_at`. With
`most` it is padded to f32[most + 1], and `num_steps` may be traced. A distribution is
`(key, num) -> f32[num]`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxgen.noise.process import Process, log_snr_of, time_of

NumSteps = int | np.integer | Int[Array, ""]
Times = Callable[[Key[Array, ""], int], Float[Array, " num"]]
TimePairs = Callable[[Key[Array, ""], int], tuple[Float[Array, " num"], Float[Array, " num"]]]

_RATIOS = 20.0  # nats of log-SNR: beyond them is data alone, or noise alone


def uniform_times(
    num_steps: NumSteps, *, first: float = 1.0, last: float = 0.0, most: int | None = None
) -> Float[Array, " points"]:
    """Evenly spaced times.

    Args:
        num_steps: The number of steps K, at least 1.
        first: The time of the start.
        last: The time of the end, smaller.
        most: The number of steps to which the result is padded; None for K, which then is no array.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> uniform_times(4)
        Array([1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """
    _check_range(first, last)
    return first + _fractions(num_steps, most) * (last - first)


def power_times(
    num_steps: NumSteps,
    *,
    first: float = 1.0,
    last: float = 1e-3,
    rho: float = 2.0,
    most: int | None = None,
) -> Float[Array, " points"]:
    """`(first^(1/rho) + u (last^(1/rho) - first^(1/rho)))^rho`, u from 0 to 1: dense near the data.

    Quadratic times have rho = 2 (Song et al. 2021, DDIM).

    Args:
        num_steps: The number of steps K, at least 1.
        first: The time of the start.
        last: The time of the end, smaller, at least 0.
        rho: The power, at least 1; 1 is evenly spaced.
        most: The number of steps to which the result is padded; None for K, which then is no array.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_range(first, last)
    _check_rho(rho)
    high, low = first ** (1 / rho), last ** (1 / rho)
    return (high + _fractions(num_steps, most) * (low - high)) ** rho


def karras_times(
    num_steps: NumSteps,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    process: Process | None = None,
    most: int | None = None,
) -> Float[Array, " points"]:
    """Times of `sigma_i^(1/rho)` evenly spaced from greatest to least, and last clean data, at 0.

    Karras et al. 2022 (EDM), eq. 5: K levels of noise, so that the K-th step leads from `sigma_min`
    to the data.

    Args:
        num_steps: The number of steps K, at least 1.
        sigma_min: The least deviation of the noise, relative to the data's factor.
        sigma_max: The greatest deviation, likewise.
        rho: The power, at least 1.
        process: The process whose times are wanted; None for `edm`, whose time is the deviation.
        most: The number of steps to which the result is padded; None for K, which then is no array.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"0 < sigma_min < sigma_max must hold and both be finite, got {sigma_min}, {sigma_max}"
        )
    _check_rho(rho)
    index = _indices(num_steps, most)
    u = index / jnp.maximum(num_steps - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = jnp.maximum(high + u * (low - high), low) ** rho
    times = sigma if process is None else time_of(process, -2 * jnp.log(sigma))
    return jnp.where(index >= num_steps, 0.0, times)


def log_snr_times(
    process: Process,
    num_steps: NumSteps,
    *,
    first: float | None = None,
    last: float = 1e-3,
    most: int | None = None,
) -> Float[Array, " points"]:
    """Times whose log signal-to-noise ratios are evenly spaced (Lu et al. 2022, DPM-Solver).

    Args:
        process: The process.
        num_steps: The number of steps K, at least 1.
        first: The time of the start; None for the process's last.
        last: The time of the end, smaller, where noise is left: greater than 0.
        most: The number of steps to which the result is padded; None for K, which then is no array.

    Raises:
        ValueError: if an argument is out of range.
    """
    first = process.last_time if first is None else first
    _check_range(first, last)
    ends = log_snr_of(process.at(jnp.array([first, last], jnp.float32)))
    low, high = jnp.clip(ends, -_RATIOS, _RATIOS)
    u = _fractions(num_steps, most)
    inner = time_of(process, low + u * (high - low))
    return jnp.where(u == 0, first, jnp.where(u == 1, last, inner))


def uniform(low: float = 0.0, high: float = 1.0, *, antithetic: bool = False) -> Times:
    """Times drawn evenly from a range.

    Args:
        low: The least time.
        high: The greatest time.
        antithetic: Whether the batch shares one draw, `(u + i / B) mod 1`: less variance (Kingma et
            al. 2021, VDM, appendix I.1).

    Raises:
        ValueError: if the range is empty.
    """
    _check_range(high, low)

    def draw(key: Key[Array, ""], num: int) -> Float[Array, " num"]:
        if antithetic:
            u = (jax.random.uniform(key) + jnp.arange(num) / num) % 1
        else:
            u = jax.random.uniform(key, (num,))
        return low + (high - low) * u

    return draw


def log_normal(mean: float = -1.2, std: float = 1.2, *, process: Process | None = None) -> Times:
    """Times whose noise-to-signal ratio `sigma / alpha` is log-normal (Karras et al. 2022, EDM).

    Args:
        mean: The mean of the ratio's log.
        std: The deviation of it, positive.
        process: The process whose times are wanted; None for `edm`, whose time is the deviation.

    Raises:
        ValueError: if the deviation is not positive.
    """
    _check_std(std)

    def draw(key: Key[Array, ""], num: int) -> Float[Array, " num"]:
        log_sigma = mean + std * jax.random.normal(key, (num,))
        return jnp.exp(log_sigma) if process is None else time_of(process, -2 * log_sigma)

    return draw


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """Times in (0, 1) whose logit is normal (Esser et al. 2024, Stable Diffusion 3, eq. 19).

    Args:
        mean: The mean of the logit; above 0 favours noisy times.
        std: The deviation of it, positive.

    Raises:
        ValueError: if the deviation is not positive.
    """
    _check_std(std)
    return lambda key, num: jax.nn.sigmoid(mean + std * jax.random.normal(key, (num,)))


def pairs(late: Times, early: Times | None = None, *, apart: float = 0.75) -> TimePairs:
    """Two times of each example, the later one first (Geng et al. 2025, MeanFlow, section 4.3).

    Two times are drawn and put in order; then, but for the share `apart` of the examples, the
    earlier one is set to the later one.

    Args:
        late: Distribution of one of them.
        early: Distribution of the other one; None for the same.
        apart: Probability that they differ.

    Raises:
        ValueError: if `apart` is no probability.
    """
    if not 0 <= apart <= 1:
        raise ValueError(f"apart must lie in [0, 1], got {apart}")
    early = late if early is None else early

    def draw(key: Key[Array, ""], num: int) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        key_late, key_early, key_apart = jax.random.split(key, 3)
        a, b = late(key_late, num), early(key_early, num)
        t, r = jnp.maximum(a, b), jnp.minimum(a, b)
        return t, jnp.where(jax.random.bernoulli(key_apart, apart, (num,)), r, t)

    return draw


def _indices(num_steps: NumSteps, most: int | None) -> Int[Array, " points"]:
    if isinstance(num_steps, int | np.integer):
        most = int(num_steps) if most is None else most
        if not 1 <= num_steps <= most:
            raise ValueError(f"num_steps must be at least 1 and at most {most}, got {num_steps}")
    elif most is None:
        raise ValueError("a traced num_steps needs most, the length to pad to")
    return jnp.arange(most + 1)


def _fractions(num_steps: NumSteps, most: int | None) -> Float[Array, " points"]:
    """`i / K` up to 1, and 1 beyond."""
    return jnp.minimum(_indices(num_steps, most) / num_steps, 1.0)


def _check_range(first: float, last: float) -> None:
    if not 0 <= last < first < math.inf:
        raise ValueError(
            f"times must run between two finite ones, the least at least 0, got {last} and {first}"
        )


def _check_rho(rho: float) -> None:
    if not 1 <= rho < math.inf:
        raise ValueError(f"rho must be finite and at least 1, got {rho}")


def _check_std(std: float) -> None:
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive and finite, got {std}")
