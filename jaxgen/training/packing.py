"""Small arrays as one: hundreds of leaves with a dozen operations each become one with a dozen.

Most arrays of a network are small. What optimizer, guard and averages do to each of them takes
longer to compile than the network's own gradient and, on accelerators, longer to launch than to
run. So the compiled loop carries the small arrays of a network concatenated; outside of it the
state is a tree as ever. Packing at each use would not do: XLA moves slices to the front of
elementwise work and does it leaf by leaf again.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxgen.core import Family, Params, PyTree, State

SMALL = 2**16
"""Number of elements up to which an array is packed."""


class Elementwise(optax.GradientTransformation):
    """A transformation in which an element's update depends on its own history alone.

    Or on that and on sums over all elements, as in clipping by the global norm. It computes the
    same where arrays are concatenated; LAMB, Adafactor or a weight decay by name would not.
    """


def elementwise(transform: optax.GradientTransformation) -> Elementwise:
    """Declare that a transformation is elementwise, so that small arrays may be packed for it.

    Args:
        transform: Transformation such as `optax.adam(1e-3)`, or a chain of such.
    """
    return Elementwise(*transform)


@dataclass(frozen=True)
class Layout:
    """Where the leaves of a tree lie in its packed form.

    Attributes:
        structure: Structure of the tree.
        shapes: Shape of each leaf.
        small: Indices of the leaves that are concatenated, in this order.
        large: Indices of the other leaves.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[int, ...]
    large: tuple[int, ...]

    @property
    def ends(self) -> np.ndarray:
        """The end of each small leaf in the concatenation, i32[leaves]."""
        sizes = [np.prod(self.shapes[i], dtype=np.int32) for i in self.small]
        return np.cumsum(sizes, dtype=np.int32)


@partial(jax.tree_util.register_dataclass, data_fields=("small", "large"), meta_fields=("layout",))
@dataclass(frozen=True)
class Packed:
    """A tree whose small leaves are concatenated; itself a tree of fewer leaves.

    Attributes:
        small: Elements f32[n] of the small leaves (or their shape).
        large: Other leaves, as they are.
        layout: Where the leaves lie.
    """

    small: Any
    large: list[Any]
    layout: Layout


def layout_of(tree: PyTree, limit: int = SMALL) -> Layout | None:
    """The layout for trees like this one; None where fewer than two leaves are small.

    Args:
        tree: Tree of arrays, or of their shapes.
        limit: Greatest number of elements of a small leaf.
    """
    leaves, structure = jax.tree.flatten(tree)
    small = [i for i, x in enumerate(leaves) if x.dtype == jnp.float32 and x.size <= limit]
    large = [i for i in range(len(leaves)) if i not in set(small)]
    if len(small) < 2:
        return None
    return Layout(structure, tuple(x.shape for x in leaves), tuple(small), tuple(large))


def pack(tree: PyTree, layout: Layout | None) -> PyTree:
    """The packed form of a tree, or the tree itself where there is no layout.

    Args:
        tree: Tree of the layout's structure and shapes.
        layout: Where the leaves lie.
    """
    if layout is None:
        return tree
    leaves = layout.structure.flatten_up_to(tree)
    small = jnp.concatenate([leaves[i].reshape(-1) for i in layout.small])
    return Packed(small, [leaves[i] for i in layout.large], layout)


def unpack(tree: PyTree) -> PyTree:
    """A tree in which every packed part is a tree again.

    Args:
        tree: Tree with packed parts anywhere.
    """
    return jax.tree.map(
        lambda node: _unpack(node) if isinstance(node, Packed) else node,
        tree,
        is_leaf=lambda node: isinstance(node, Packed),
    )


def pack_like(example: PyTree, tree: PyTree) -> PyTree:
    """A tree packed as another one is, or as it is where that one is not packed.

    Args:
        example: Packed tree, or a tree.
        tree: Tree of the same leaves.
    """
    return pack(tree, example.layout) if isinstance(example, Packed) else tree


def pack_state(family: Family, state: State, limit: int = SMALL) -> State:
    """The state with the networks packed whose optimizers are all elementwise.

    Args:
        family: Family whose state it is.
        state: State to pack; `unpack` is the inverse.
        limit: Greatest number of elements of a small leaf; 0 packs nothing.
    """
    trained = {name for optimizer in family.optimizers.values() for name in optimizer.trains}
    separate = {
        name
        for optimizer in family.optimizers.values()
        for name in optimizer.trains
        if not isinstance(optimizer.transform, Elementwise)
    }
    layouts = {name: layout_of(state.params[name], limit) for name in trained - separate}

    def pack_networks(networks: Params) -> Params:
        return {name: pack(tree, layouts.get(name)) for name, tree in networks.items()}

    def pack_within(name: str, opt_state: PyTree) -> PyTree:
        """Packs what has the form of the optimizer's parameters, such as Adam's moments."""
        trains = {key: state.params[key] for key in family.optimizers[name].trains}
        form: Any = jax.tree.structure(trains)

        def is_alike(node: PyTree) -> bool:
            return bool(form == jax.tree.structure(node))

        return jax.tree.map(
            lambda node: pack_networks(node) if is_alike(node) else node,
            opt_state,
            is_leaf=is_alike,
        )

    return state._replace(
        params=pack_networks(state.params),
        opt_state={name: pack_within(name, s) for name, s in state.opt_state.items()},
        averages={name: pack_networks(average) for name, average in state.averages.items()},
    )


def _unpack(packed: Packed) -> PyTree:
    layout = packed.layout
    parts: dict[int, Array] = dict(zip(layout.large, packed.large, strict=True))
    start = 0
    for i, end in zip(layout.small, map(int, layout.ends), strict=True):
        parts[i] = jax.lax.slice(packed.small, (start,), (end,)).reshape(layout.shapes[i])
        start = end
    return layout.structure.unflatten([parts[i] for i in range(len(layout.shapes))])
