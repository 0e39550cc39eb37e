"""Classes as conditions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxgen.conditioning.base import Conditioning, check_values, vector_conditioning


def labels(num_classes: int, names: tuple[str, ...] = ()) -> Conditioning:
    """Classes 0..num_classes - 1 as one-hot vectors; conditions are `i[B]`, the batch's `label`.

    Args:
        num_classes: The number of classes, at least 1.
        names: Names of the classes in their order, or ().

    Raises:
        ValueError: `num_classes` below 1, or names of another number.

    Examples:
        >>> from jaxgen.core import Variables
        >>> labels(3).encode(Variables({}), jnp.array([2, 0])).vector
        Array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")

    def encode(label: Shaped[Array, "..."]) -> Float[Array, "batch width"]:
        if label.ndim != 1 or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"labels must be integers [B], got {label.dtype}{list(label.shape)}")
        check_values("labels", label, 0, num_classes - 1)
        label = label.astype(jnp.int32)  # compared as bytes, 256 classes would be none
        known = (label >= 0) & (label < num_classes)
        return jnp.where(known[:, None], jax.nn.one_hot(label, num_classes), jnp.nan)

    kind = vector_conditioning(
        "label",
        (),
        num_classes,
        encode,
        sweep=np.arange(num_classes),
        num_classes=num_classes,
        names=names,
    )
    return kind._replace(sweep_names=names or tuple(map(str, range(num_classes))))
