"""Images compared in the features of a frozen network.

`perceptual_loss` and `lpips` are functions of features. `by_features` and `by_lpips` join them with
a network, given as a function, to a `Perceptual`: what a family takes, a distance between images
and the arrays that it reads, which travel in `Variables.fixed`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.checks import check_same_shape
from jaxgen.core import PyTree

NAME = "perceptual"
"""The key of the frozen network's arrays in `Variables.fixed`."""
_EPSILON = 1e-10

Image = Float[Array, "batch height width channels"]


class Perceptual(NamedTuple):
    """A distance between images, and the arrays that it reads.

    Attributes:
        distance: `(fixed, x, y) -> f32[B]`, of images in model space; differentiable in both.
        fixed: The arrays of the frozen network.
    """

    distance: Callable[[PyTree, Image, Image], Float[Array, " batch"]]
    fixed: PyTree


def fixed(perceptual: Perceptual | None) -> Mapping[str, PyTree]:
    """The arrays that a model's `Variables.fixed` must have, `{}` or by the key `NAME`."""
    return {} if perceptual is None else {NAME: perceptual.fixed}


def by_features(features: Callable[[PyTree, Image], Any], params: PyTree) -> Perceptual:
    """`perceptual_loss` in a network's features.

    Args:
        features: The network, `(params, images) -> features`, a pytree of arrays [B, ...].
        params: The network's parameters.

    Examples:
        network, params = load_vgg16().at("relu3_3")
        by_features(lambda params, x: network.apply({"params": params}, x), params)
    """

    def distance(fixed: PyTree, x: Image, y: Image) -> Float[Array, " batch"]:
        check_same_shape(x=x, y=y)
        return perceptual_loss(features(fixed, x), features(fixed, y))

    return Perceptual(distance, params)


def by_lpips(
    features: Callable[[PyTree, Image], Sequence[Array]],
    params: PyTree,
    weights: Sequence[Float[Array, " _"]],
) -> Perceptual:
    """`lpips` in a network's features.

    Args:
        features: The network, `(params, images) -> activations` of each layer.
        params: The network's parameters.
        weights: The weight of each channel, by layer.

    Examples:
        vgg = load_vgg16()
        network = vgg.network
        by_lpips(lambda params, x: network.apply({"params": params}, x), vgg.params, vgg.weights)
    """

    def distance(fixed: PyTree, x: Image, y: Image) -> Float[Array, " batch"]:
        check_same_shape(x=x, y=y)
        return lpips(features(fixed["params"], x), features(fixed["params"], y), fixed["weights"])

    return Perceptual(distance, {"params": params, "weights": tuple(weights)})


def perceptual_loss(features_x: Any, features_y: Any) -> Float[Array, " batch"]:
    """`sum_l |C_l(x) - C_l(y)|^2`: images compared in a given network's features.

    The feature loss of Dosovitskiy & Brox 2016 (section 2), for which C is one layer of a network.

    Squares are summed over each layer's positions and channels, and over the layers; weigh layers
    by scaling their features. A mean over positions and channels is this divided by their number.

        >>> network = lambda x: [x, x.mean(axis=(1, 2))]  # two layers
        >>> perceptual_loss(network(jnp.ones((1, 2, 2, 3))), network(jnp.zeros((1, 2, 2, 3))))
        Array([15.], dtype=float32)

    Args:
        features_x: An array [B, ...], or a pytree of them, one per layer.
        features_y: The features of the other images, of the same shapes.

    Returns:
        f32[B], without a unit.

    Raises:
        ValueError: If the two differ in structure or shape, or hold no features.
    """
    _check_alike(features_x, features_y)

    def distance(a: Array, b: Array) -> Array:
        return jnp.square(a - b).reshape(a.shape[0], -1).sum(axis=1)

    distances = jax.tree.map(distance, features_x, features_y)
    return jnp.stack(jax.tree.leaves(distances)).sum(axis=0)


def lpips(
    features_x: Sequence[Float[Array, "batch _ _ _"]],
    features_y: Sequence[Float[Array, "batch _ _ _"]],
    weights: Sequence[Float[Array, " _"]],
) -> Float[Array, " batch"]:
    """`sum_l mean_hw sum_c w_lc (u_lhwc(x) - u_lhwc(y))^2`, u a pixel's features as a unit vector.

    The learned perceptual image patch similarity (Zhang et al. 2018, equation 1, with the weights
    outside of the square, as in their code), 0 of equal images. Features that are all 0 stay 0, and
    have no gradient.

    Args:
        features_x: The activations of each layer of a network, [B, H, W, C] of its own H, W, C.
        features_y: The activations of the other images, of the same shapes.
        weights: The weight of each channel, by layer, [C]; none of them negative.

    Returns:
        f32[B], without a unit, in about [0, 1].

    Raises:
        ValueError: If the two differ in number or shape, or `weights` do not fit them.
    """
    _check_alike(features_x, features_y)
    shapes = [jnp.shape(f)[-1:] for f in features_x]
    if [jnp.shape(weight) for weight in weights] != shapes:
        raise ValueError(
            f"weights must have the shapes {shapes}, a number for each channel of each layer, got "
            f"{[jnp.shape(weight) for weight in weights]}"
        )

    def distance(a: Array, b: Array, weight: Array) -> Array:
        squares = jnp.square(_unit(a) - _unit(b)) * weight.reshape(1, 1, 1, -1)
        return squares.sum(axis=-1).mean(axis=(1, 2))

    return sum(map(distance, features_x, features_y, weights), jnp.float32(0))


def _unit(features: Array) -> Array:
    """Features divided by their length over the channels; 0 stays 0, with a finite gradient."""
    squares = jnp.square(features).sum(axis=-1, keepdims=True)
    is_zero = squares == 0
    length = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))
    return jnp.where(is_zero, 0, features / (length + _EPSILON))


def _check_alike(features_x: Any, features_y: Any) -> None:
    shapes_x, shapes_y = (jax.tree.map(jnp.shape, f) for f in (features_x, features_y))
    if shapes_x != shapes_y or not jax.tree.leaves(features_x):
        raise ValueError(
            "features_x and features_y must be the same layers, at least one, of equal shapes, got "
            f"shapes {shapes_x} and {shapes_y}"
        )
