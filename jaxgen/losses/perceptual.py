"""Images compared in the features of a given network."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def perceptual_loss(features_x: Any, features_y: Any) -> Float[Array, " batch"]:
    """`sum_l |C_l(x) - C_l(y)|^2`: images compared in a given network's features.

    The feature loss of Dosovitskiy & Brox 2016 (section 2), for which C is one layer of a network.

    Squares are summed over each layer's positions and channels, and over the layers; weigh layers
    by scaling their features. A mean over positions and channels is this divided by their number.

        >>> loss = perceptual_loss(network(reconstruction), network(batch["image"]))

    Args:
        features_x: An array [B, ...], or a pytree of them, one per layer.
        features_y: The features of the other images, of the same shapes.

    Returns:
        f32[B], without a unit.

    Raises:
        ValueError: If the two differ in structure or shape, or hold no features.
    """
    shapes_x, shapes_y = (jax.tree.map(jnp.shape, f) for f in (features_x, features_y))
    if shapes_x != shapes_y or not jax.tree.leaves(features_x):
        raise ValueError(
            "features_x and features_y must be the same layers, at least one, of equal shapes, got "
            f"shapes {shapes_x} and {shapes_y}"
        )

    def distance(a: Array, b: Array) -> Array:
        return jnp.square(a - b).reshape(a.shape[0], -1).sum(axis=1)

    distances = jax.tree.map(distance, features_x, features_y)
    return jnp.stack(jax.tree.leaves(distances)).sum(axis=0)
