"""Moving averages of the parameters, one or several, updated inside the compiled step.

Of two averages by powers of the step (`power_function`), as checkpoints keep them during a
training, any other one can be had afterwards (`reconstruct`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxgen.checks import check_same_shape
from jaxgen.core import Params

# The updates done so far -> the weight that the old average keeps.
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


class Average(NamedTuple):
    """One exponential moving average: `a <- decay a + (1 - decay) params` after each step.

    Attributes:
        decay: `step -> decay`, a pure function of the number of updates done so far.
        of: Networks to average (top-level keys of the parameters); None for all.
    """

    decay: Decay
    of: tuple[str, ...] | None = None


def constant(decay: float, *, of: tuple[str, ...] | None = None) -> Average:
    """An average of constant decay.

    Args:
        decay: Weight of the old average, in [0, 1).
        of: Networks to average; None for all.

    Raises:
        ValueError: If the decay is out of range.
    """
    _check_decay(decay)
    return Average(lambda step: jnp.float32(decay), of)


def warmed_up(decay: float, *, of: tuple[str, ...] | None = None) -> Average:
    """An average of decay `min(decay, (1 + t) / (10 + t))` after t updates.

    The warm-up keeps the untrained initial values from lingering: a constant 0.9999 would still
    hold a third of them after 10,000 steps.

    Args:
        decay: Weight of the old average after the warm-up, in [0, 1).
        of: Networks to average; None for all.

    Raises:
        ValueError: If the decay is out of range.
    """
    _check_decay(decay)

    def at(step: Int[Array, ""]) -> Float[Array, ""]:
        t = step.astype(jnp.float32)
        return jnp.minimum(decay, (1.0 + t) / (10.0 + t))

    return Average(at, of)


def half_life(
    images: float | int,
    batch_size: int,
    *,
    ramp_up: float | None = None,
    of: tuple[str, ...] | None = None,
) -> Average:
    """An average of decay `0.5^(batch_size / h)`: h images later half of the old average is left.

    With a ramp-up h is at most `ramp_up` times the images seen so far, so that a short run is not
    averaged over more than it has (Karras et al. 2020, ADA; Karras et al. 2022, EDM: 500,000 images
    and 0.05 on CIFAR-10).

    Args:
        images: Half-life h in images, positive.
        batch_size: Number of images in a step.
        ramp_up: Greatest half-life as a share of the images seen so far; None for no ramp-up.
        of: Networks to average; None for all.

    Raises:
        ValueError: If a number is not positive.
    """
    for name, value in (("images", images), ("batch_size", batch_size), ("ramp_up", ramp_up)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive, got {value}")

    def at(step: Int[Array, ""]) -> Float[Array, ""]:
        h = jnp.float32(images)
        if ramp_up is not None:
            h = jnp.minimum(h, step.astype(jnp.float32) * batch_size * ramp_up)
        return 0.5 ** (batch_size / jnp.maximum(h, 1e-8))

    return Average(at, of)


def power_function(sigma_rel: float, *, of: tuple[str, ...] | None = None) -> Average:
    """An average in which the parameters after t updates weigh as t^gamma.

    Its decay after t updates is `(1 - 1 / (t + 1))^(gamma + 1)`: the initial parameters weigh
    nothing, and the profile's width grows with the training (Karras et al. 2024, EDM2, section
    3.1).

    Args:
        sigma_rel: Deviation of the profile as a share of the training so far, in (0, 1/sqrt(12));
            0.05 and 0.1 are the paper's.
        of: Networks to average; None for all.

    Raises:
        ValueError: If the deviation is out of range.
    """
    exponent = power_exponent(sigma_rel)

    def at(step: Int[Array, ""]) -> Float[Array, ""]:
        t = step.astype(jnp.float32)
        return jnp.exp((exponent + 1) * -jnp.log1p(1 / t))  # exactly 0 at t = 0

    return Average(at, of)


def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma of the profile t^gamma on [0, 1] whose deviation is `sigma_rel`.

    `sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`, a cubic equation (Karras et al. 2024,
    EDM2, appendix C).

    Args:
        sigma_rel: Deviation, in (0, 1/sqrt(12)), the latter that of a uniform profile.

    Raises:
        ValueError: If the deviation is out of range.
    """
    most = 12**-0.5
    if not 0 < sigma_rel < most:
        raise ValueError(f"sigma_rel must lie in (0, {most:.4f}), got {sigma_rel}")
    # s (gamma + 2)^2 (gamma + 3) = gamma + 1 in x = gamma + 2: x^3 + x^2 - (x - 1) / s = 0
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 1.0, -inverse, inverse]).real.max()) - 2


class Snapshot(NamedTuple):
    """An average by a power function as it was during a training.

    Attributes:
        params: The average, by network.
        step: Number of updates done.
        sigma_rel: Deviation by which the average is known.
    """

    params: Params
    step: int
    sigma_rel: float


def post_hoc_weights(
    steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float
) -> Float[np.ndarray, " snapshots"]:
    """The weights of snapshots in the mean that comes nearest to another power-function average.

    Nearest in the least squares of the profiles over time (Karras et al. 2024, EDM2, section 3.2),
    then scaled to add up to 1.

    Args:
        steps: Step of each snapshot, positive.
        sigma_rels: Deviation of each snapshot.
        step: Step of the average that is wanted, positive.
        sigma_rel: Deviation of the average that is wanted.

    Raises:
        ValueError: If a number is out of range, or there are other numbers of steps than of
            deviations.
    """
    check_same_shape(steps=steps, sigma_rels=sigma_rels)
    times = np.array([*steps, step], np.float64)
    if times.min() < 1:
        raise ValueError(f"steps must be positive, got {times.min():g}")
    powers = np.array([power_exponent(sigma) for sigma in (*sigma_rels, sigma_rel)])
    # The profile is (p + 1) t^p / T^(p + 1) up to T: the product of two, integrated up to the
    # earlier end, in logs of the ratios of that end, at most 1, to either.
    p, q = powers[:, None], powers[None, :]
    ends = np.log(times)
    earlier = np.minimum(ends[:, None], ends[None, :])
    shrink = np.exp(p * (earlier - ends[:, None]) + q * (earlier - ends[None, :]))
    later = np.maximum(times[:, None], times[None, :])
    products = (p + 1) * (q + 1) / (p + q + 1) * shrink / later
    solution = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0]
    return solution / solution.sum()


def reconstruct(snapshots: Sequence[Snapshot], step: int, sigma_rel: float) -> Params:
    """A power-function average that was not kept, from those that were (EDM2, section 3.2).

    Two deviations, such as 0.05 and 0.1, kept a few dozen times in a training, give those from
    about 0.015 to 0.25 of any step among them.

    Args:
        snapshots: Averages of the same networks, at several steps.
        step: Step of the average that is wanted, of those that are covered.
        sigma_rel: Deviation of the average that is wanted.

    Raises:
        ValueError: If there are no snapshots, or a number is out of range.

    Examples:
        >>> average = {"model": {"w": jnp.ones(3)}}  # as a checkpoint has it
        >>> steps, widths = (1000, 2000), (0.05, 0.1)
        >>> snapshots = [Snapshot(average, step, width) for step in steps for width in widths]
        >>> params = reconstruct(snapshots, steps[-1], 0.13)
    """
    if not snapshots:
        raise ValueError("snapshots must hold at least one average, got none")
    weights = post_hoc_weights(
        [s.step for s in snapshots], [s.sigma_rel for s in snapshots], step, sigma_rel
    )

    def mean(*leaves: Array) -> Array:
        # In float64: weights may be large and of both signs.
        total = sum(w * np.asarray(x, np.float64) for w, x in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    averages: Params = jax.tree.map(mean, *(s.params for s in snapshots))
    return averages


def init(averages: Mapping[str, Average], params: Params) -> dict[str, Params]:
    """The averages before the first step: copies of the parameters.

    Args:
        averages: Averages to keep, by name.
        params: Initial parameters, by network.

    Raises:
        ValueError: If an average names a network that the parameters do not have.
    """
    for name, average in averages.items():
        if unknown := sorted(set(average.of or ()) - set(params)):
            raise ValueError(
                f"average {name!r} is of {unknown}, but the parameters are {sorted(params)}"
            )
    # Copies: a donated buffer must not occur in the state twice.
    return {
        name: jax.tree.map(jnp.copy, {k: params[k] for k in average.of or params})
        for name, average in averages.items()
    }


def update(
    averages: Mapping[str, Average],
    old: Mapping[str, Params],
    params: Params,
    step: Int[Array, ""],
) -> dict[str, Params]:
    """The averages after the update that resulted in `params`.

    Args:
        averages: Averages to keep, by name.
        old: Values of the averages before the update.
        params: Parameters after the update.
        step: Number of updates done before this one.
    """
    return {
        name: optax.incremental_update(
            {k: params[k] for k in old[name]}, old[name], 1.0 - average.decay(step)
        )
        for name, average in averages.items()
    }


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
