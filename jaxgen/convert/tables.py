"""Tables of names: which array of another package's network is which of ours.

A table is a list of rows `(their name, our name, what is there)`. Names are patterns, in which
`{level}` stands for a number; what is there is a `Form`, or the table of a layer. So

    ("down_blocks.{level}.resnets.{i}", "down{level}_block{i}", RESNET)

says where all the arrays of all those blocks are, in both directions. Of a fused array one row has
several of our names. `to_jaxgen` and `from_jaxgen` apply any table, and use every array once.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.core import Params, PyTree

StateDict = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Form(NamedTuple):
    """How an array is laid out elsewhere and here.

    Attributes:
        to_jaxgen: Function from their array to ours; of a fused one to a tuple of ours.
        from_jaxgen: Function from our arrays to theirs.
    """

    to_jaxgen: Callable[[np.ndarray], Any]
    from_jaxgen: Callable[..., np.ndarray]


class Table(NamedTuple):
    """The rows of a format, and what their patterns may name besides.

    Attributes:
        format: Name of the format, for errors: "diffusers' UNet2DModel".
        rows: Rows `(their name, our name or names, form or table)`.
        derived: Function from the numbers in our name to more values for their name, such as a
            level counted from the other end.
        ignored: Patterns (regular expressions) of their names that are no parameters.
    """

    format: str
    rows: Sequence[tuple[str, Any, Any]]
    derived: Callable[..., Mapping[str, int]] = lambda **numbers: {}
    ignored: Sequence[str] = ()


SAME = Form(lambda x: x, lambda x: x)
"""An array as it is."""

TRANSPOSED = Form(lambda x: x.T, lambda x: x.T)
"""A linear map: [out, in] elsewhere, [in, out] here."""

CONVOLUTION = Form(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""A convolution: [out, in, height, width] elsewhere, [height, width, in, out] here."""

HALVES_SWAPPED = Form(lambda x: _swapped(x.T, 0), lambda x: _swapped(x, 0).T)
"""A linear map of the features of a time, whose cosines come first elsewhere, the sines here."""

FUSED = Form(lambda x: tuple(np.split(x.T, 3, -1)), lambda *xs: np.concatenate(xs, -1).T)
"""A linear map to queries, keys and values, one after the other."""

FUSED_BIAS = Form(lambda x: tuple(np.split(x, 3)), lambda *xs: np.concatenate(xs))
"""The bias of a `FUSED` map."""

DENSE = (("weight", "kernel", TRANSPOSED), ("bias", "bias", SAME))
CONV = (("weight", "kernel", CONVOLUTION), ("bias", "bias", SAME))
NORM = (("weight", "scale", SAME), ("bias", "bias", SAME))


def _swapped(x: np.ndarray, axis: int) -> np.ndarray:
    return np.roll(x, x.shape[axis] // 2, axis)


def to_jaxgen(state_dict: StateDict, shapes: Shapes, table: Table) -> dict[str, Any]:
    """Our parameters, of another package's arrays.

    Args:
        state_dict: Arrays by their names elsewhere.
        shapes: Shapes of our parameters by name (`shapes_of`).
        table: Table of the format.

    Returns:
        The tree of parameters, float32.

    Raises:
        ValueError: If an array is missing, has no place, is of another shape, or is not of finite
            numbers; names it, and for names those near. Also if our network has a layer that the
            format has not.
    """
    places = _places(shapes, table)
    ignored = [re.compile(pattern) for pattern in table.ignored]
    given = [name for name in state_dict if not any(p.fullmatch(name) for p in ignored)]
    _check_names(given, places, f"the arrays of {table.format}")
    params: dict[str, np.ndarray] = {}
    for name, (ours, form) in places.items():
        array = np.asarray(state_dict[name])
        if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 too
            raise ValueError(
                f"{name} of {table.format} must be of finite floats, got {array.dtype}"
            )
        expected = form.from_jaxgen(*(np.zeros(shapes[each], np.bool_) for each in ours)).shape
        if array.shape != expected:
            raise ValueError(
                f"{name} of {table.format} has shape {list(array.shape)}, {list(expected)} is "
                f"expected for our {' and '.join(ours)}"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of {table.format} must be of finite numbers, as float32")
        parts = form.to_jaxgen(array)
        for each, part in zip(ours, parts if isinstance(parts, tuple) else (parts,), strict=True):
            params[each] = np.asarray(part, order="C")
    tree: dict[str, Any] = unflatten_dict(params, sep="/")
    return tree


def from_jaxgen(params: Params, shapes: Shapes, table: Table) -> dict[str, np.ndarray]:
    """Another package's arrays, of our parameters.

    Args:
        params: Tree of parameters.
        shapes: Shapes that they must have, by name (`shapes_of`).
        table: Table of the format.

    Returns:
        Arrays by their names elsewhere, float32.

    Raises:
        ValueError: If a parameter is missing, too many, of another shape, not finite, or has no
            place in the format; names it.
    """
    given = {name: np.asarray(x, np.float32) for name, x in flatten_dict(params, sep="/").items()}
    _check_names(given, shapes, "our parameters")
    for name, shape in shapes.items():
        if given[name].shape != tuple(shape):
            raise ValueError(
                f"our parameter {name} has shape {list(given[name].shape)}, and {list(shape)} in "
                "the network"
            )
        if not np.isfinite(given[name]).all():
            raise ValueError(f"our parameter {name} is not finite")
    return {
        name: np.asarray(form.from_jaxgen(*(given[each] for each in ours)), order="C")
        for name, (ours, form) in _places(shapes, table).items()
    }


def shapes_of(init: Callable[..., PyTree], *args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters, by name.

    Args:
        init: The network's `init`.
        args: Arguments after the key, or their shapes.
        kwargs: Named arguments.
    """
    tree = jax.eval_shape(lambda *given: init(*given, **kwargs), jax.random.key(0), *args)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def _places(shapes: Shapes, table: Table) -> dict[str, tuple[tuple[str, ...], Form]]:
    """Their name -> our names, in the form's order, and the form; for all of our names."""
    rows = [
        (theirs, [re.compile(_expression(each)) for each in ours], form)
        for theirs, ours, form in _flat(table.rows)
    ]
    places: dict[str, tuple[list[str], Form]] = {}
    for name in shapes:
        for theirs, patterns, form in rows:
            matches = [pattern.fullmatch(name) for pattern in patterns]
            place = next((i for i, match in enumerate(matches) if match), None)
            if place is None:
                continue
            numbers = {key: int(n) for key, n in matches[place].groupdict().items()}  # type: ignore[union-attr]
            key = theirs.format(**numbers, **table.derived(**numbers))
            places.setdefault(key, ([""] * len(patterns), form))[0][place] = name
            break
        else:
            raise ValueError(f"{table.format} has no place for our {name}")
    return {key: (tuple(ours), form) for key, (ours, form) in places.items()}


def _flat(rows: Iterable[tuple[str, Any, Any]]) -> list[tuple[str, tuple[str, ...], Form]]:
    """The rows with those of nested tables in their place."""
    result = []
    for theirs, ours, what in rows:
        names = (ours,) if isinstance(ours, str) else ours
        if isinstance(what, Form):
            result.append((theirs, tuple(names), what))
            continue
        (prefix,) = names
        for inner, inner_ours, form in _flat(what):
            result.append((f"{theirs}.{inner}", tuple(f"{prefix}/{x}" for x in inner_ours), form))
    return result


def _expression(pattern: str) -> str:
    """A regular expression of a pattern: `{level}` is a number of that name."""
    parts = re.split(r"\{(\w+)\}", pattern)
    return "".join(
        rf"(?P<{part}>\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )


def _check_names(given: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raise ValueError unless both have the same names, each once."""
    given, expected = list(given), list(expected)
    missing = sorted(set(expected) - set(given))
    unknown = sorted(set(given) - set(expected))
    if not missing and not unknown:
        return
    lines = []
    for names, others, label in ((missing, unknown, "missing"), (unknown, missing, "unknown")):
        for name in names[:3]:
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
            lines.append(f"{label} {name}" + (f" (near is {near[0]})" if near else ""))
        if len(names) > 3:
            lines.append(f"and {len(names) - 3} more {label}")
    raise ValueError(f"{what} are of another network: {'; '.join(lines)}")
