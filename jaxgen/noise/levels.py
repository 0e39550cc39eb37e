"""The noise levels that a sampler visits, and what the process does between them.

The levels of a chain are in `jaxgen.noise.chain`; of a process they are those at chosen times:

    levels = levels_at(edm(), karras_times(18))
    levels = levels_at(rectified(), uniform_times(50))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxgen.noise.process import Level, Process, log_snr_of


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


def levels_at(
    process: Process,
    times: Num[Array, " points"],
    num_steps: int | np.integer | Int[Array, ""] | None = None,
) -> Levels:
    """The levels of a process at times, for a sampler to visit in their order.

    The constants of the posterior are float32 and lose digits where steps are many and short: those
    of a chain, `jaxgen.noise.chain.levels_of`, do not.

    Args:
        process: The process.
        times: The times [K + 1] of K steps, each less noisy than the one before.
        num_steps: Number of the steps that count, where the times are padded; None for all. It
            may be traced.

    Raises:
        ValueError: if there are fewer than two times, or the number of steps is out of range.

    Examples:
        >>> from jaxgen.noise.process import rectified
        >>> from jaxgen.noise.times import uniform_times
        >>> levels_at(rectified(), uniform_times(4)).level.sigma
        Array([1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """
    most = times.shape[0] - 1
    if most < 1:
        raise ValueError(f"times must be two or more, got {times.shape[0]}")
    num_steps = most if num_steps is None else num_steps
    if isinstance(num_steps, int | np.integer) and not 1 <= num_steps <= most:
        raise ValueError(f"num_steps must be from 1 to {most}, got {num_steps}")
    level = process.at(times)
    start, end = jax.tree.map(lambda v: v[:-1], level), jax.tree.map(lambda v: v[1:], level)
    return Levels(level, _posterior(start, end), num_steps)


def _posterior(start: Level, end: Level) -> Posterior:
    # added / sigma_t^2, and e^x - 1 of the difference: nothing cancels but the ratios themselves.
    share = -jnp.expm1(log_snr_of(start) - log_snr_of(end))
    added = share * jnp.square(start.sigma)
    log_variance = jnp.log(share) + 2 * jnp.log(end.sigma)
    return Posterior(
        x0_coef=end.alpha * share,
        xt_coef=start.alpha / end.alpha * jnp.square(end.sigma / start.sigma),
        log_variance=jnp.where(end.sigma > 0, log_variance, jnp.log(added)),
        added=added,
    )


def reverse(levels: Levels) -> Levels:
    """The same levels from the last to the first: a deterministic solver inverts itself on them.

    Returns:
        Levels that rise, and so have no posterior.
    """
    points = jnp.arange(levels.level.alpha.shape[0])
    order = jnp.maximum(levels.num_steps - points, 0)
    level = jax.tree.map(lambda values: jnp.asarray(values)[order], levels.level)
    return Levels(level, None, levels.num_steps, levels.complete)


def padded(levels: Levels, most: int) -> Levels:
    """The same levels in longer arrays: as an argument of one compiled function for any number.

    Args:
        levels: The levels of N intervals.
        most: The number of intervals to pad to, at least N.

    Raises:
        ValueError: if there are more intervals already.
    """
    held = levels.level.alpha.shape[0] - 1
    if held > most:
        raise ValueError(f"most must be at least the {held} intervals of the levels, got {most}")

    def fill(values: Array) -> Array:
        values = jnp.asarray(values)
        return jnp.concatenate([values, jnp.repeat(values[-1:], most - held)])

    level, posterior = jax.tree.map(fill, levels.level), jax.tree.map(fill, levels.posterior)
    return levels._replace(level=level, posterior=posterior)


def remaining(levels: Levels, done: int | Int[Array, ""]) -> Levels:
    """What is left to visit after some steps, for a sampler that starts on the way.

    Args:
        levels: The levels.
        done: The number of steps that are left out, less than that of all; it may be traced, and
            then is not checked.

    Raises:
        ValueError: if it is out of range.
    """
    known = isinstance(done, int | np.integer) and isinstance(levels.num_steps, int | np.integer)
    if known and not 0 <= done < levels.num_steps:
        raise ValueError(f"done must be from 0 to {levels.num_steps - 1}, got {done}")

    def shift(values: Array) -> Array:
        values = jnp.asarray(values)
        return values[jnp.minimum(jnp.arange(len(values)) + done, len(values) - 1)]

    level, posterior = jax.tree.map(shift, levels.level), jax.tree.map(shift, levels.posterior)
    return Levels(level, posterior, levels.num_steps - done, levels.complete)
