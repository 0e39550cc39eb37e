"""The guard of a step: what of it is looked at for NaN and infinities, and which was the first.

It works on packed networks as they are, so that it is a few operations, not a few for each array.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxgen.core import Family, Params, Phase, PyTree
from jaxgen.training.packing import Packed


def guarded_names(family: Family, params: Params, averages: Iterable[str] = ()) -> list[str]:
    """The names that `StepResult.bad` indexes: what is guarded in each phase, then the averages.

    Args:
        family: Family that is trained.
        params: Its parameters.
        averages: Names of the averages that are kept.
    """
    names = []
    for phase in family.phases:
        names += names_of(
            phase, {name: params[name] for name in family.optimizers[phase.optimizer].trains}
        )
    return names + [f"the average {name!r}" for name in sorted(averages)]


def names_of(phase: Phase, trained: Params) -> list[str]:
    """The names of what is guarded in a phase's update: loss, gradients, parameters, state.

    Args:
        phase: Phase of the update.
        trained: Parameters that it updates, by network.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    leaves = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    guarded = [f"the {what} {leaf} in" for what in ("gradient of", "updated") for leaf in leaves]
    return [f"{what} phase {phase.name!r}" for what in ("the loss of", *guarded, "the state of")]


def first_bad(networks: Params, measure: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The index of the first leaf whose sum of measures is not finite, or -1, and the whole sum.

    Args:
        networks: Trees by network, any of them packed.
        measure: Function of each element, which is not negative, and not finite where the element
            is not.
    """
    places: list[Array | int] = []
    sums, count = [], 0

    def add(place: Array | int, measured: Array) -> None:
        places.append(place)
        sums.append(jnp.sum(measured))

    for name in sorted(networks):  # as the leaves of a dictionary are
        packed = networks[name]
        if not isinstance(packed, Packed):
            for leaf in jax.tree.leaves(packed):
                add(count, measure(leaf))
                count += 1
            continue
        each = measure(packed.small)
        # The first that is not finite; the largest, where only their sum is not.
        worst = jnp.argmax(jnp.where(jnp.isfinite(each), each, jnp.inf))
        leaf = jnp.asarray(packed.layout.small)[jnp.sum(worst >= packed.layout.ends)]
        add(count + leaf, each)
        for index, large in zip(packed.layout.large, packed.large, strict=True):
            add(count + index, measure(large))
        count += len(packed.layout.shapes)
    total = jnp.stack(sums)
    where = jnp.stack([jnp.asarray(place, jnp.int32) for place in places])
    first = jnp.min(jnp.where(jnp.isfinite(total), count, where))
    return jnp.where(first == count, -1, first), jnp.sum(total)


def is_finite(tree: PyTree) -> Array:
    """Whether all numbers of a tree are finite, bool[].

    Args:
        tree: Tree of arrays; integers are finite.
    """
    inexact = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in inexact], bool))


def first(finite: list[Array]) -> Array:
    """The index i32[] of the first that is False, or -1.

    Args:
        finite: Truth values, bool[] each.
    """
    indices = jnp.arange(len(finite), dtype=jnp.int32)
    first = jnp.min(jnp.where(jnp.array(finite, bool), len(finite), indices), initial=len(finite))
    return jnp.where(first == len(finite), -1, first)


def earlier(bad: Array, later: Array, offset: int) -> Array:
    """The index of what was first bad, i32[], or -1.

    Args:
        bad: Index of what was bad before, or -1.
        later: Index of what is bad now, or -1.
        offset: Number of what was looked at before, added to `later`.
    """
    return jnp.where((bad < 0) & (later >= 0), later + offset, bad)
