"""What a model is told to make: a class, a set of attributes, or an embedding from outside.

One interface for all three, used alike by generators, discriminators, encoders, decoders and
samplers: a `Conditioning` turns conditions as the data has them into vectors. A layer that takes
such a vector through a linear map then has a learned embedding of each class, where the condition
is a class (one-hot times matrix is a table look-up), and a learned sum of effects, where it is a
set of attributes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Vectors = Float[Array, "batch width"]


class Conditioning(NamedTuple):
    """A kind of condition.

    Attributes:
        key: the batch's entry that holds it.
        width: of the vectors.
        encode: conditions -> f32[B, width]. Raises ValueError for a wrong shape or type, and for
            values out of range where they are known; inside a compiled function, where they are
            not, such an example's vector is NaN, so that the step's guard finds it.
        shape: of one condition: `()` for a class.
        sweep: conditions that show each effect by itself, `[rows, *shape]`: every class; no
            attribute and then each alone; None for embeddings, which only their maker knows.
        num_classes: how many classes, or None for other kinds.
    """

    key: str
    width: int
    encode: Callable[[Shaped[Array, "..."]], Vectors]
    shape: tuple[int, ...]
    sweep: np.ndarray | None = None
    num_classes: int | None = None


def labels(num_classes: int) -> Conditioning:
    """Classes 0..num_classes - 1 as one-hot vectors; conditions are `i[B]`, the batch's `label`.

    Raises:
        ValueError: `num_classes` below 1.

    Example:
        >>> labels(3).encode(jnp.array([2, 0]))
        Array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")

    def encode(label: Shaped[Array, "..."]) -> Vectors:
        if label.ndim != 1 or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"labels must be integers [B], got {label.dtype}{list(label.shape)}")
        _check_values("labels", label, 0, num_classes - 1)
        known = (label >= 0) & (label < num_classes)
        return jnp.where(known[:, None], jax.nn.one_hot(label, num_classes), jnp.nan)

    return Conditioning("label", num_classes, encode, (), np.arange(num_classes), num_classes)


def attributes(num_attributes: int) -> Conditioning:
    """Binary attributes 0 or 1 as -1 or 1; conditions are `[B, num_attributes]`, `attributes`.

    Raises:
        ValueError: `num_attributes` below 1.

    Example:
        >>> attributes(2).encode(jnp.array([[1, 0]]))
        Array([[ 1., -1.]], dtype=float32)
    """
    if num_attributes < 1:
        raise ValueError(f"num_attributes must be at least 1, got {num_attributes}")

    def encode(values: Shaped[Array, "..."]) -> Vectors:
        _check_width("attributes", values, num_attributes)
        _check_values("attributes", values, 0, 1)
        known = (values == 0) | (values == 1)
        return jnp.where(known, 2.0 * values.astype(jnp.float32) - 1.0, jnp.nan)

    alone = np.eye(num_attributes, dtype=np.int32)
    sweep = np.concatenate([np.zeros_like(alone[:1]), alone])
    return Conditioning("attributes", num_attributes, encode, (num_attributes,), sweep)


def embeddings(width: int) -> Conditioning:
    """Vectors from outside (a caption's, say) as they are; conditions are f[B, width], `embedding`.

    Raises:
        ValueError: `width` below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")

    def encode(values: Shaped[Array, "..."]) -> Vectors:
        _check_width("embeddings", values, width)
        return values.astype(jnp.float32)

    return Conditioning("embedding", width, encode, (width,))


def encode(conditioning: Conditioning | None, condition: Array | None) -> Vectors | None:
    """The vectors of a condition, or None where the model takes none.

    Raises:
        ValueError: a condition for a model that takes none, none for one that does, and what
            `conditioning.encode` raises.
    """
    if conditioning is None:
        if condition is not None:
            raise ValueError(f"condition must be None: the model takes none, got {condition}")
        return None
    if condition is None:
        raise ValueError(
            f"condition must be given: the model is conditioned on {conditioning.key!r}"
        )
    return conditioning.encode(jnp.asarray(condition))


def encode_batch(conditioning: Conditioning | None, batch: Mapping[str, Array]) -> Vectors | None:
    """The vectors of a batch's own conditions, or None where the model takes none."""
    return None if conditioning is None else conditioning.encode(batch[conditioning.key])


def key_of(conditioning: Conditioning | None) -> str | None:
    """The batch's entry that a model is told, or None where it takes none."""
    return None if conditioning is None else conditioning.key


def _check_width(name: str, values: Array, width: int) -> None:
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{name} must have the shape [B, {width}], got {list(values.shape)}")


def _check_values(name: str, values: Array, least: int, most: int) -> None:
    """Raise ValueError for values out of range, unless they are not known yet (traced)."""
    if isinstance(values, jax.core.Tracer):
        return
    known = np.asarray(values)
    if known.size and (known.min() < least or known.max() > most):
        raise ValueError(
            f"{name} must lie in {least}..{most}, got values in {known.min()}..{known.max()}"
        )
