"""Conversions between bytes and model space: pure functions of whole batches on the device."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped, UInt8


def to_model_space(image: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Bytes u in 0..255 to float32 in [-1, 1]: 2 u / 255 - 1."""
    return image.astype(jnp.float32) / 127.5 - 1


def to_uint8(x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Model space to the nearest byte, the inverse of `to_model_space`; clipped outside [-1, 1]."""
    return jnp.clip(jnp.round((x.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


def random_flip(
    key: Key[Array, ""], image: Shaped[Array, "batch height width channels"]
) -> Shaped[Array, "batch height width channels"]:
    """Mirrors each image left to right with probability 1/2; images may have any dtype."""
    flip = jax.random.bernoulli(key, shape=(image.shape[0],))
    return jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)


def prepare_images(*, flip: bool) -> Callable[[Key[Array, ""], Mapping[str, Any], bool], Any]:
    """`(key, raw batch, train) -> batch`, which brings `image` into model space.

    Args:
        flip: Whether to mirror training images at random (`random_flip`).
    """

    def prepare(key: Key[Array, ""], raw: Mapping[str, Any], train: bool) -> dict[str, Any]:
        image = to_model_space(raw["image"])
        return {**raw, "image": random_flip(key, image) if train and flip else image}

    return prepare
