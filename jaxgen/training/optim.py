"""Optimizers as the papers give them: optax chains of clipping, schedule and update."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxgen.core import Family, PyTree
from jaxgen.training.packing import Elementwise, elementwise

Schedule = Literal["constant", "linear", "cosine"]
"""Course of a learning rate after its warm-up: as it is, or down to 0, linearly or along half a
cosine."""


class RatedPlain(optax.GradientTransformation):
    """A transformation that knows its learning rate.

    Attributes:
        learning_rate: Function from the number of updates done to the rate of the next one.
    """

    learning_rate: optax.Schedule


class RatedElementwise(Elementwise):
    """An elementwise transformation that knows its learning rate.

    Attributes:
        learning_rate: Function from the number of updates done to the rate of the next one.
    """

    learning_rate: optax.Schedule


Rated = RatedPlain | RatedElementwise
"""A transformation that knows its learning rate."""


def rated(transform: optax.GradientTransformation, learning_rate: optax.Schedule) -> Rated:
    """The same transformation, with its learning rate known, elementwise if it was.

    Args:
        transform: Transformation of any kind, in whose state there is a count of updates.
        learning_rate: Function from the number of updates done to the rate of the next one.
    """
    is_elementwise = isinstance(transform, Elementwise)
    known = RatedElementwise(*transform) if is_elementwise else RatedPlain(*transform)
    known.learning_rate = learning_rate
    return known


def learning_rates(family: Family) -> Callable[[Mapping[str, PyTree]], dict[str, Any]]:
    """`rates(opt_state)`: the learning rate of the last update of each optimizer that knows it.

    The name is `learning_rate`, with that of the optimizer before it where there are several. It is
    computed from the optimizer's own count, which updates that are skipped do not raise.

    Args:
        family: Family with the optimizers.
    """
    known = {
        name: optimizer.transform.learning_rate
        for name, optimizer in family.optimizers.items()
        if isinstance(optimizer.transform, Rated)
    }
    several = len(family.optimizers) > 1

    @jax.jit
    def of(counts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            f"{name}/learning_rate" if several else "learning_rate": jnp.asarray(
                rate(jnp.maximum(counts[name] - 1, 0)), jnp.float32
            )
            for name, rate in known.items()
        }

    def rates(opt_state: Mapping[str, PyTree]) -> dict[str, Any]:
        counts = {
            name: optax.tree.get_all_with_path(opt_state[name], "count")[0][1] for name in known
        }
        return of(counts) if counts else {}

    return rates


def warmed_up(
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    schedule: Schedule | None = None,
    decay_steps: int | None = None,
    decay_rate: float | None = None,
    decay_every: int = 1,
) -> optax.Schedule | float:
    """A learning rate that rises linearly from zero and then takes its course.

    Args:
        learning_rate: Rate after the warm-up; positive.
        warmup_steps: Number of updates of the warm-up; 0 for none.
        schedule: Course after it; None for linear where there are `decay_steps`, else constant.
        decay_steps: Number of updates, those of the warm-up among them, after which the rate is 0;
            a constant one does not heed it.
        decay_rate: Factor of the rate every `decay_every` updates after the warm-up, in (0, 1];
            None for no exponential decay.
        decay_every: Number of updates over which the rate is constant before its next decay.

    Returns:
        Function from the number of updates done to the rate of the next one; a number where it
        never changes.

    Raises:
        ValueError: If an argument is out of range, or they do not go together.
    """
    if schedule is None:
        schedule = "constant" if decay_steps is None else "linear"
    if schedule == "constant":
        decay_steps = None
    elif decay_steps is None:
        raise ValueError(f"schedule {schedule} needs decay_steps")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise ValueError(
            f"decay_steps must be more than warmup_steps ({warmup_steps}), got {decay_steps}"
        )
    if decay_rate is not None and (decay_steps is not None or not 0 < decay_rate <= 1):
        raise ValueError(
            f"decay_rate must be in (0, 1] and without decay_steps, got {decay_rate} and "
            f"decay_steps {decay_steps}"
        )
    if decay_every < 1 or (decay_every > 1 and decay_rate is None):
        raise ValueError(
            f"decay_every must be at least 1, and 1 without decay_rate, got {decay_every}"
        )
    rate: optax.ScalarOrSchedule = learning_rate
    if decay_steps is not None and schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps)
    elif decay_steps is not None:
        rate = optax.linear_schedule(learning_rate, 0.0, decay_steps - warmup_steps)
    if decay_rate is not None:
        rate = optax.exponential_decay(learning_rate, decay_every, decay_rate, staircase=True)
    if warmup_steps:
        warm = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        after = rate if callable(rate) else optax.constant_schedule(learning_rate)
        rate = optax.join_schedules([warm, after], [warmup_steps])
    return rate


def adam(
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup_steps: int = 0,
    schedule: Schedule | None = None,
    decay_steps: int | None = None,
    decay_rate: float | None = None,
    decay_every: int = 1,
    clip_norm: float | None = None,
    infinity: bool = False,
    weight_decay: float = 0.0,
) -> Rated:
    """Adam with a schedule (`warmed_up`), and clipping by global norm.

    Args:
        learning_rate: Learning rate after the warm-up; positive.
        b1: Decay of the first moment, in [0, 1).
        b2: Decay of the second moment, in [0, 1).
        eps: Number added to the root of the second moment; positive.
        warmup_steps: Number of updates over which the rate rises linearly from 0; 0 for no warm-up.
        schedule: Course after the warm-up; None for linear where there are `decay_steps`, else
            constant.
        decay_steps: Number of updates after which the rate of a linear or cosine schedule is 0.
        decay_rate: Factor of the rate every `decay_every` updates after the warm-up, in (0, 1];
            None for no exponential decay.
        decay_every: Number of updates over which the rate is constant before its next decay.
        clip_norm: Greatest global norm of the gradient; None for no clipping.
        infinity: Whether it is Adamax (Kingma and Ba 2015, section 7.1): in the place of the root
            of the second moment a maximum, `max(b2 v, |g| + eps)`, which is not corrected.
        weight_decay: Share of a parameter that is taken away at each update, in units of the rate
            (Loshchilov and Hutter 2019, AdamW); not of parameters by the name of bias.

    Returns:
        An optax transformation, elementwise where there is no weight decay.

    Raises:
        ValueError: If an argument is out of range.
    """
    for name, value in (("learning_rate", learning_rate), ("eps", eps), ("clip_norm", clip_norm)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and at least 0, got {weight_decay}")
    if weight_decay and infinity:
        raise ValueError("weight_decay must be 0 with infinity")
    rate = warmed_up(
        learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        decay_steps=decay_steps,
        decay_rate=decay_rate,
        decay_every=decay_every,
    )
    course = rate if callable(rate) else optax.constant_schedule(learning_rate)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    if weight_decay:
        decayed = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=_decays)
        return rated(optax.chain(clip, decayed), course)
    rule = optax.adamax if infinity else optax.adam
    return rated(elementwise(optax.chain(clip, rule(rate, b1=b1, b2=b2, eps=eps))), course)


def _decays(params: Any) -> Any:
    """Which parameters a weight decay is for: all but biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) != "bias", params
    )
