"""Moving averages of the parameters, one or several, updated inside the compiled step."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

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
