"""Images drawn in raster order: pixel by pixel, or as tokens, with a cache and without.

What is drawn are positions: channels' classes i32[B, H, W C] where there are `num_classes` of them,
or whole pixels f32[B, H, W, C] where `num_classes` is None. The four samplers have the signature of
`naive_pixels`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.conditioning.base import Condition
from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import NO_CLASS
from jaxgen.models import pixelcnn, transformer
from jaxgen.models.blocks.masked_conv import At
from jaxgen.models.transformer import Transformer
from jaxgen.sampling import autoregressive as sampling

Images = Float[Array, "batch height width channels"]


def to_classes(images: Array, num_classes: int) -> Int[Array, "..."]:
    """The nearest of `num_classes` values, evenly spaced from -1 to 1: its index.

    Args:
        images: Images of any shape.
        num_classes: Number of values, at least 2.
    """
    classes = jnp.round((images + 1) / 2 * (num_classes - 1))
    return jnp.clip(classes, 0, num_classes - 1).astype(jnp.int32)


def to_pixels(values: Array, num_classes: int | None) -> Float[Array, "..."]:
    """What positions are as pixels in [-1, 1], NaN where they are `NO_CLASS`.

    Args:
        values: Classes, or pixels where `num_classes` is None.
        num_classes: Number of values, at least 2, or None.
    """
    if num_classes is None:
        return values
    pixels = 2 * values.astype(jnp.float32) / (num_classes - 1) - 1
    return jnp.where(values == NO_CLASS, jnp.nan, pixels)


def _positions(
    shape: tuple[int, ...], num_classes: int | None, given: Array | None, known: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Blank positions of images of a shape; images and their mask as positions."""
    if num_classes is None:
        return jnp.zeros(shape), given, known
    num, height, width, channels = shape
    blank = jnp.zeros((num, height, width * channels), jnp.int32)
    if given is not None:
        given = to_classes(given, num_classes).reshape(blank.shape)
    if known is not None:
        known = jnp.repeat(jnp.asarray(known), channels, axis=2)
    return blank, given, known


def naive_pixels(
    network: Any,
    params: PyTree,
    condition: Condition | None,
    shape: tuple[int, ...],
    key: Array,
    draw: sampling.Draw,
    *,
    num_classes: int | None,
    given: Array | None,
    known: Array | None,
) -> Images:
    """Images by a pass of the whole network for each position.

    Args:
        network: Network of `jaxgen.models.pixelcnn` or `pixelcnnpp`.
        params: Parameters of the network.
        condition: Condition of the images, or None.
        shape: Shape [B, H, W, C] of the images.
        key: PRNG key of all draws.
        draw: Function `(key, params) -> values` of a position.
        num_classes: Number of a channel's classes; None where positions are whole pixels.
        given: Images to keep where `known` says so, or None.
        known: Mask of the pixels that are kept, or None.
    """
    blank, given, known = _positions(shape, num_classes, given, known)
    blank = blank.reshape(shape[0], -1, *blank.shape[3:])
    if given is not None and known is not None:
        given, known = given.reshape(blank.shape), known.reshape(blank.shape[:2])

    def forward(values: Array) -> Array:
        images = to_pixels(values, num_classes).reshape(shape)
        outputs = network.apply({"params": params}, images, condition)
        of_position = outputs.shape[3 if num_classes is None else 4 :]
        return outputs.reshape(*blank.shape[:2], *of_position)

    values = sampling.naive_ancestral(forward, blank, key, draw, given=given, known=known)
    return to_pixels(values, num_classes).reshape(shape)


def cached_pixels(
    network: Any,
    params: PyTree,
    condition: Condition | None,
    shape: tuple[int, ...],
    key: Array,
    draw: sampling.Draw,
    *,
    num_classes: int | None,
    given: Array | None,
    known: Array | None,
) -> Images:
    """The images of `naive_pixels`, each position by the work of one position."""
    blank, given, known = _positions(shape, num_classes, given, known)
    num, _, width, channels = shape
    folded, cache = pixelcnn.prime(network, params, num, shape[1:], condition)
    constant = {"params": params, "folded": folded}
    per_pixel = 1 if num_classes is None else channels

    def run(cache: PyTree, method: str, *args: Any) -> tuple[Any, PyTree]:
        collections = {**constant, "cache": cache}
        outputs, new = network.apply(collections, *args, method=method, mutable=["cache"])
        return outputs, new.get("cache", cache)

    def begin_row(carried: tuple, above: Array, row: Array) -> tuple[sampling.Step, tuple]:
        above = to_pixels(above, num_classes).reshape(num, 1, width, channels)
        above = jnp.where(row > 0, above, 0.0)
        cache, left, current = carried
        features, cache = run(cache, "row", above, condition, At(row, None, width))

        def step(carried: tuple, previous: Array, t: Array) -> tuple[Array, tuple]:
            cache, left, current = carried
            column, channel = t // per_pixel % width, t % per_pixel
            pixel = to_pixels(previous, num_classes)
            if num_classes is None:
                left = jnp.where(column > 0, pixel, 0.0)
            else:
                left, current = _take_in_channel(left, current, pixel, column, channel)
            pair = [x[:, None, None] for x in (left, current)]
            at = At(row, column, width)
            outputs, cache = run(cache, "pixel", *pair, features, condition, at)
            outputs = outputs[:, 0, 0] if num_classes is None else outputs[:, 0, 0, channel]
            return outputs, (cache, left, current)

        return step, (cache, left, current)

    none = jnp.zeros((num, channels))
    carried = (cache, none, none)
    values = sampling.ancestral_by_row(
        begin_row, carried, blank, key, draw, given=given, known=known
    )
    return to_pixels(values, num_classes).reshape(shape)


def _take_in_channel(
    left: Array, current: Array, previous: Array, column: Array, channel: Array
) -> tuple[Array, Array]:
    """The pixel to the left, and the known channels of the current one, after one more value."""
    begun = current.at[:, (channel - 1) % current.shape[1]].set(previous)
    left = jnp.where(channel == 0, jnp.where(column > 0, begun, 0.0), left)
    return left, jnp.where(channel == 0, 0.0, begun)


def naive_tokens(
    network: Transformer,
    params: PyTree,
    condition: Condition | None,
    shape: tuple[int, ...],
    key: Array,
    draw: sampling.Draw,
    **options: Any,
) -> Images:
    """`naive_pixels` for a transformer."""

    def forward(tokens: Array) -> Any:
        return network.apply({"params": params}, tokens, condition)

    def run(blank: Array, **completion: Any) -> Array:
        return sampling.naive_ancestral(forward, blank, key, draw, **completion)

    return _as_tokens(run, shape, **options)


def cached_tokens(
    network: Transformer,
    params: PyTree,
    condition: Condition | None,
    shape: tuple[int, ...],
    key: Array,
    draw: sampling.Draw,
    **options: Any,
) -> Images:
    """The images of `naive_tokens`, each position by the work of one position."""
    folded, cache = transformer.prime(network, params, shape[0], condition)
    constant = {"params": params, "folded": folded}

    def step(cache: PyTree, previous: Array, t: Array) -> Any:
        collections = {**constant, "cache": cache}
        logits, new = network.apply(
            collections, previous, t, condition, method="step", mutable=["cache"]
        )
        return logits, new["cache"]

    def run(blank: Array, **completion: Any) -> Array:
        start, length = blank[:, 0], blank.shape[1]
        return sampling.ancestral(step, cache, start, key, length, draw, **completion)[0]

    return _as_tokens(run, shape, **options)


def _as_tokens(
    run: Callable[..., Array],
    shape: tuple[int, ...],
    *,
    num_classes: int,
    given: Array | None,
    known: Array | None,
) -> Images:
    """Images by a sampler `(blank, *, given, known)` of tokens [B, T]."""
    blank, given, known = _positions(shape, num_classes, given, known)
    blank = blank.reshape(shape[0], -1)
    if given is not None and known is not None:
        given, known = given.reshape(blank.shape), known.reshape(blank.shape)
    return to_pixels(run(blank, given=given, known=known), num_classes).reshape(shape)
