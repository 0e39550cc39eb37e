"""Sets of binary attributes, and embeddings from outside, as conditions."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxgen.conditioning.base import (
    Conditioning,
    check_values,
    check_width,
    vector_conditioning,
)


def attributes(
    num_attributes: int, names: tuple[str, ...] = (), examples: np.ndarray | None = None
) -> Conditioning:
    """Binary attributes 0 or 1 as -1 or 1; conditions are `[B, num_attributes]`, `attributes`.

    No condition, zeros, is between an attribute and its absence.

    Attributes often exclude each other, or one of several must be: hair has one colour. So, where
    examples are given, the sweep is of these: the most usual one, and for each attribute the
    nearest to it that has it.

    Args:
        num_attributes: The number of attributes, at least 1.
        names: Names of the attributes in their order, or ().
        examples: Attributes that occur together, [rows, num_attributes] of 0 and 1, such as some
            hundred of the data's, or None where they are not known.

    Raises:
        ValueError: `num_attributes` below 1, names of another number, or examples of another width
            or of other values.

    Examples:
        >>> from jaxgen.core import Variables
        >>> attributes(2).encode(Variables({}), jnp.array([[1, 0]])).vector
        Array([[ 1., -1.]], dtype=float32)
    """
    if num_attributes < 1:
        raise ValueError(f"num_attributes must be at least 1, got {num_attributes}")

    def encode(values: Shaped[Array, "..."]) -> Float[Array, "batch width"]:
        check_width("attributes", values, num_attributes)
        check_values("attributes", values, 0, 1)
        known = (values == 0) | (values == 1)
        return jnp.where(known, 2.0 * values.astype(jnp.float32) - 1.0, jnp.nan)

    alone = np.eye(num_attributes, dtype=np.int32)
    sweep, first = np.concatenate([np.zeros_like(alone[:1]), alone]), "none"
    if examples is not None:
        check_width("examples", jnp.asarray(examples), num_attributes)
        check_values("examples", jnp.asarray(examples), 0, 1)
        examples = np.asarray(examples, np.int32)
        sweep, first = _each_by_itself(examples), "the usual"
    kind = vector_conditioning(
        "attributes", (num_attributes,), num_attributes, encode, sweep=sweep, names=names
    )
    each = names or tuple(map(str, range(num_attributes)))
    return kind._replace(
        num_attributes=num_attributes, examples=examples, sweep_names=(first, *each)
    )


def _each_by_itself(examples: np.ndarray) -> np.ndarray:
    """The example that differs least from all, and of each attribute the nearest that has it.

    An attribute of no example is added to the first.
    """
    differences = (examples[:, None] != examples[None]).sum(axis=-1)
    first = int(differences.sum(axis=1).argmin())
    rows = [examples[first]]
    for index in range(examples.shape[1]):
        having = np.flatnonzero(examples[:, index] == 1)
        row = rows[0].copy()
        row[index] = 1
        rows.append(examples[having[differences[first, having].argmin()]] if len(having) else row)
    return np.stack(rows)


def embeddings(width: int) -> Conditioning:
    """Vectors from outside (a caption's, say) as they are; conditions are f[B, width], `embedding`.

    Args:
        width: The width of the vectors, at least 1.

    Raises:
        ValueError: `width` below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")

    def encode(values: Shaped[Array, "..."]) -> Float[Array, "batch width"]:
        check_width("embeddings", values, width)
        return values.astype(jnp.float32)

    return vector_conditioning("embedding", (width,), width, encode)
