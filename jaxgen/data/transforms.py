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
    """Model space to the nearest byte, the inverse of `to_model_space`; clipped outside [-1, 1].

    A NaN would become a byte like any other. Compiled functions cannot raise: there the caller
    looks, as `jaxgen.training.evaluation` does.

    Args:
        x: Images of any shape.

    Raises:
        FloatingPointError: If `x` has NaN, outside of compiled functions.
    """
    if not isinstance(x, jax.core.Tracer) and bool(jnp.isnan(x).any()):
        raise FloatingPointError(f"x has {int(jnp.isnan(x).sum())} NaN, which no byte can be")
    return jnp.clip(jnp.round((x.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


def random_flip(
    key: Key[Array, ""], image: Shaped[Array, "batch height width channels"]
) -> Shaped[Array, "batch height width channels"]:
    """Mirrors each image left to right with probability 1/2; images may have any dtype."""
    flip = jax.random.bernoulli(key, shape=(image.shape[0],))
    return jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)


def random_shift(
    key: Key[Array, ""], image: UInt8[Array, "batch height width channels"], fraction: float
) -> UInt8[Array, "batch height width channels"]:
    """Moves each image up or down and left or right by up to a fraction of its sides.

    The shifts are uniform in -fraction..fraction of a side and of no whole number of pixels: values
    are interpolated linearly, those at the edges repeated, and rounded down to bytes, as by the
    data generator of Keras 2.2 and the code of Kingma and Dhariwal 2018.

    Args:
        key: Random key.
        image: Bytes.
        fraction: Greatest shift as a share of a side, in [0, 1).

    Raises:
        ValueError: A fraction outside of its range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")
    shifts = jax.random.uniform(key, (image.shape[0], 2), minval=-fraction, maxval=fraction)

    def along(x: Array, axis: int, shift: Array) -> Array:
        size = x.shape[axis]
        place = jnp.arange(size) + size * shift
        below = jnp.floor(place)
        ends = (jnp.clip(below + i, 0, size - 1).astype(jnp.int32) for i in (0, 1))
        low, high = (jnp.take(x, end, axis=axis) for end in ends)
        weight = jnp.expand_dims(place - below, [i for i in range(x.ndim) if i != axis])
        return low + weight * (high - low)  # exact where both are equal

    def moved(x: Array, shift: Array) -> Array:
        return jnp.floor(along(along(x.astype(jnp.float32), 0, shift[0]), 1, shift[1]))

    return jax.vmap(moved)(image, shifts).astype(jnp.uint8)


def draw_caption(
    key: Key[Array, ""] | None, text: Shaped[Array, "batch captions length"]
) -> Shaped[Array, "batch length"]:
    """One caption of each example, at random of those it has.

    Args:
        key: Random key; None for the first caption.
        text: Captions, as tokens or in UTF-8; of an example with fewer the last ones begin with 0.
    """
    if key is None:
        return text[:, 0]
    count = jnp.sum(text[:, :, 0] != 0, axis=1)
    chosen = jax.random.randint(key, count.shape, 0, jnp.maximum(count, 1))
    return jnp.take_along_axis(text, chosen[:, None, None], axis=1)[:, 0]


def prepare_images(
    *, flip: bool, shift: float = 0.0
) -> Callable[[Key[Array, ""], Mapping[str, Any], bool], Any]:
    """`(key, raw batch, train) -> batch`, which brings `image` into model space.

    Of the captions in `text`, where there are any, it draws one when training, else the first.

    Args:
        flip: Whether to mirror training images at random (`random_flip`).
        shift: Greatest shift of training images as a share of their sides (`random_shift`), or 0.

    Raises:
        ValueError: A shift outside of [0, 1).
    """
    if not 0 <= shift < 1:
        raise ValueError(f"shift must be in [0, 1), got {shift}")

    def prepare(key: Key[Array, ""], raw: Mapping[str, Any], train: bool) -> dict[str, Any]:
        image = raw["image"]
        if train and shift:
            image = random_shift(jax.random.fold_in(key, 1), image, shift)
        image = to_model_space(image)
        batch = {**raw, "image": random_flip(key, image) if train and flip else image}
        if "text" in raw:
            key_text = jax.random.fold_in(key, 2) if train else None
            batch["text"] = draw_caption(key_text, jnp.asarray(raw["text"]))
        return batch

    return prepare
