"""What the methods of a trained run are given: examples, conditions and latents, checked."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxgen.conditioning.asked import rows_of
from jaxgen.core import Family, PyTree
from jaxgen.data.arrays import as_stored
from jaxgen.training.experiment import Experiment

_ENTRIES = ("image", "audio", "vector")  # what a batch may hold examples by


def examples_of(
    experiment: Experiment, images: np.ndarray | Array | Mapping[str, Any], condition: Any
) -> dict[str, Any]:
    """Examples at rest with their conditions, as NumPy arrays.

    Args:
        experiment: Experiment whose held-out examples have the form that is asked for.
        images: Examples at rest, [N, ...]; or a batch of a source, name -> [N, ...].
        condition: Condition of all examples, or one of each; None with a batch, which has its own.

    Returns:
        The batch as `raw`, and its conditions as `condition`, None with a batch and for a family
        that takes none.

    Raises:
        ValueError: Examples are not of the data's shape or type, a batch has no entry of examples
            or entries of several lengths, or there is not one condition or N.
    """
    spec = experiment.held_out.spec
    entry = next(name for name in _ENTRIES if name in spec)
    is_batch = isinstance(images, Mapping)
    if is_batch and condition is not None:
        raise ValueError("condition must be None: a batch has its own")
    given = images if isinstance(images, Mapping) else {entry: images}
    raw = {name: as_stored(np.asarray(x), f"the entry {name!r}") for name, x in given.items()}
    if entry not in raw:
        raise ValueError(f"images must have the entry {entry!r}, got {sorted(raw)}")
    for name, x in raw.items():
        _check_entry(f"images[{name!r}]" if is_batch else "images", x, spec.get(name))
    if len({len(x) for x in raw.values()}) != 1:
        lengths = {name: len(x) for name, x in raw.items()}
        raise ValueError(f"images must have entries of one length, got {lengths}")
    rows = None if is_batch else conditions_of(experiment.family, condition, len(raw[entry]))
    return {"raw": raw, "condition": rows}


def _check_entry(name: str, x: np.ndarray, expected: tuple[tuple[int, ...], Any] | None) -> None:
    """Raise ValueError unless an array is of a source's examples, as far as it is known."""
    shape, dtype = expected or (x.shape[1:], x.dtype)
    if x.dtype != dtype or x.ndim == 0 or x.shape[1:] != tuple(shape) or not x.size:
        sides = ", ".join(map(str, ("N", *shape)))
        raise ValueError(
            f"{name} must be {np.dtype(dtype)} [{sides}], as the data at rest, got "
            f"{x.dtype} {list(x.shape)}"
        )


def conditions_of(family: Family, condition: Any, num: int) -> np.ndarray | None:
    """Conditions of so many examples as the data has them, or None of a family that takes none.

    Args:
        family: Family that is told them.
        condition: Condition of all examples, or one of each (`conditioning.asked.rows_of`); of
            attributes all must be given.
        num: Number of examples.

    Raises:
        ValueError: None where the family takes conditions, one that it does not know, or neither
            one nor `num` of them.
    """
    conditioning = family.conditioning
    rows = rows_of(conditioning, condition)
    if conditioning is None:
        return None
    if rows is None:
        raise ValueError(f"condition must be given: the model is told {conditioning.key!r}")
    by_name = not hasattr(condition, "shape")
    if conditioning.num_attributes is not None and by_name and len(rows) > 1:
        raise ValueError(
            f"condition must be an array of all {conditioning.num_attributes} attributes here: "
            f"the data has {len(rows)} rows with {condition!r}"
        )
    if len(rows) not in (1, num):
        raise ValueError(f"condition must be one, or one of each of {num}, got {len(rows)}")
    return rows if len(rows) == num else rows.repeat(num, axis=0)


def latents_of(family: Family, name: str, latents: PyTree) -> PyTree:
    """Latents as NumPy arrays, of the form that the prior has where there is one.

    Args:
        family: Family whose `decode` takes them.
        name: Name of the argument, for errors.
        latents: Tree of arrays [N, ...].

    Raises:
        ValueError: Arrays of several lengths or of none, bytes, or other shapes than the prior's.
    """
    arrays = jax.tree.map(lambda z: as_stored(np.asarray(z), name), latents)
    space, leaves = family.latents, jax.tree.leaves(arrays)
    if not all(z.ndim and z.size for z in leaves) or len({len(z) for z in leaves}) != 1:
        raise ValueError(f"{name} must be arrays of one length, at least 1")
    if leaves[0].dtype == np.uint8:
        raise ValueError(f"{name} must be latents, got bytes: encode images first")
    if space is not None and space.draw is not None:
        draw, num = space.draw, len(leaves[0])
        expected = jax.eval_shape(lambda key: draw(key, num), jax.random.key(0))
        shapes, given = (jax.tree.map(lambda x: x.shape, tree) for tree in (expected, arrays))
        if shapes != given:
            raise ValueError(f"{name} must have the shapes {shapes}, got {given}")
    return arrays
