"""Autoregressive networks over pixels: a network and an optimizer become a `Family`."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxgen.checks import check_choice
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Bound,
    Family,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.distributions.elementwise import NO_CLASS
from jaxgen.losses import autoregressive as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.blocks.masked_conv import At
from jaxgen.models.pixelcnn import prime
from jaxgen.sampling import autoregressive as sampling

NAME, PHASE = "pixelcnn", "likelihood"
LIKELIHOODS = ("categorical", "mixture_of_logistics")

Values = Float[Array, " batch"]
Images = Float[Array, "batch height width channels"]


def autoregressive(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, ...],
    likelihood: str = "categorical",
    num_values: int = 256,
    conditioning: Conditioning | None = None,
    temperature: float = 1.0,
    sampler: str = "cached",
) -> Family:
    """The family of PixelCNNs: the exact likelihood of images, pixel after pixel.

        log p(x | c) = sum_t log p(x_t | x_1, ..., x_{t-1}, c)

    in raster order. Images are in [-1, 1], each channel one of `num_values` evenly spaced values;
    the loss and `-log_prob` are nats an example, summed over pixels and channels. A value that is
    none of them counts as the nearest.

    `sample` draws by the network's `row` and `pixel` methods, each position the work of one
    position. `complete` takes images f32[B, H, W, C] and `known`, bool[B, H, W], true where their
    pixels are kept; images are completed in raster order, so that a known pixel has an influence on
    those after it alone.

    Args:
        network: A network of `jaxgen.models.pixelcnn` or `pixelcnnpp`.
        optimizer: The optimizer of all parameters.
        image_shape: Shape (height, width, channels) of an image.
        likelihood: Meaning of the network's output: "categorical", logits of a channel's values, or
            "mixture_of_logistics", a mixture of logistics of whole pixels.
        num_values: Number of values of a channel: 256 of 8-bit data, 2 of binary.
        conditioning: What the network is conditioned on, or None.
        temperature: Temperature of samples: logits are divided and logistics' scales multiplied
            by it.
        sampler: The way to sample: "cached", or "naive", which runs the whole network for each
            position, for comparison.

    Raises:
        ValueError: An argument out of its range.
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_choice("sampler", sampler, ("cached", "naive"))
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")
    by_channel = likelihood == "categorical"
    if by_channel:
        draw_values = sampling.draw_categorical(temperature)
    else:
        draw_values = sampling.draw_mixture_of_logistics(temperature, num_values)
    image_shape, num_dims = tuple(image_shape), math.prod(image_shape)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        params = conditions.init(conditioning, jax.random.fold_in(key, 1))
        condition = conditions.encode_batch(conditioning, Variables(params, {}, fixed), batch)
        # With dropout, as the authors of PixelCNN++: its scales are such that training's first
        # outputs have unit variance.
        keys = {"params": key, "dropout": jax.random.fold_in(key, 2)}
        x = _images(batch, image_shape)
        params[NAME] = network.init(keys, x, condition, train=True)["params"]
        return Variables(params, {}, fixed)

    def measure(
        variables: Variables, batch: Batch, key: Array, *, train: bool
    ) -> tuple[Values, Metrics]:
        x = _images(batch, image_shape)
        condition = conditions.encode_batch(conditioning, variables, batch)
        params = {"params": variables.params[NAME]}
        outputs: Any = network.apply(params, x, condition, train=train, rngs={"dropout": key})
        if by_channel:
            nats = losses.categorical_nll(outputs, _to_classes(x, num_values))
        else:
            nats = losses.mixture_of_logistics_nll(outputs, x, num_values)
        return nats, {"bits_per_dim": bits_per_dim(nats, num_dims)}

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        nats, metrics = measure(variables, batch, key, train=True)
        return nats, Aux(metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        return measure(variables, batch, key, train=False)

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Values:
        return -evaluate(variables, batch, key)[0]

    def draw_images(
        variables: Variables,
        key: Array,
        num: int,
        condition: Any,
        given: Array | None = None,
        known: Array | None = None,
    ) -> Images:
        encoded = conditions.encode(conditioning, variables, condition)
        run = _naive_sampler if sampler == "naive" else _cached_sampler
        return run(
            network,
            variables.params[NAME],
            encoded,
            (num, *image_shape),
            key,
            draw_values,
            num_classes=num_values if by_channel else None,
            given=given,
            known=known,
        )

    def sample(variables: Variables, key: Array, num: int, *, condition=None) -> Images:
        return draw_images(variables, key, num, condition)

    def complete(variables: Variables, key: Array, given, known, *, condition=None) -> Images:
        num = len(given)
        sampling.check_completion(given, known, (num, *image_shape), positions=2)
        return draw_images(variables, key, num, condition, given, known)

    trains = (NAME, *conditions.trains(conditioning))
    unit = "channel of a pixel" if by_channel else "pixel"
    note = f"one {unit} after another ({sampler} sampler)"
    return Family(
        init,
        optimizers={PHASE: Optimizer(trains, optimizer)},
        phases=(Phase(PHASE, PHASE, loss),),
        evaluate=evaluate,
        sample=sample,
        log_prob=log_prob,
        bound=Bound(
            "exact",
            num_dims,
            eight_bit=num_values == 256,
            given=conditions.key_of(conditioning),
        ),
        complete=complete,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Autoregressive",
        sampling=Sampling(num_dims if by_channel else num_dims // image_shape[-1], note),
    )


def _images(batch: Batch, image_shape: tuple[int, ...]) -> Array:
    x = batch["image"]
    if x.shape[1:] != image_shape:
        raise ValueError(f"image_shape is {image_shape}, the images have {x.shape[1:]}")
    return x


# What the samplers draw are positions: channels' classes i32[B, H, W C] where there are
# `num_classes` of them, or whole pixels f32[B, H, W, C] where `num_classes` is None.


def _to_classes(images: Array, num_classes: int) -> Int[Array, "..."]:
    classes = jnp.round((images + 1) / 2 * (num_classes - 1))
    return jnp.clip(classes, 0, num_classes - 1).astype(jnp.int32)


def _to_pixels(values: Array, num_classes: int | None) -> Float[Array, "..."]:
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
        given = _to_classes(given, num_classes).reshape(blank.shape)
    if known is not None:
        known = jnp.repeat(jnp.asarray(known), channels, axis=2)
    return blank, given, known


def _naive_sampler(
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
        images = _to_pixels(values, num_classes).reshape(shape)
        outputs = network.apply({"params": params}, images, condition)
        of_position = outputs.shape[3 if num_classes is None else 4 :]
        return outputs.reshape(*blank.shape[:2], *of_position)

    values = sampling.naive_ancestral(forward, blank, key, draw, given=given, known=known)
    return _to_pixels(values, num_classes).reshape(shape)


def _cached_sampler(
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
    """The images of `_naive_sampler`, each position by the work of one position."""
    blank, given, known = _positions(shape, num_classes, given, known)
    num, _, width, channels = shape
    folded, cache = prime(network, params, num, shape[1:], condition)
    constant = {"params": params, "folded": folded}
    per_pixel = 1 if num_classes is None else channels

    def run(cache: PyTree, method: str, *args: Any) -> tuple[Any, PyTree]:
        collections = {**constant, "cache": cache}
        outputs, new = network.apply(collections, *args, method=method, mutable=["cache"])
        return outputs, new.get("cache", cache)

    def begin_row(carried: tuple, above: Array, row: Array) -> tuple[sampling.Step, tuple]:
        above = _to_pixels(above, num_classes).reshape(num, 1, width, channels)
        above = jnp.where(row > 0, above, 0.0)
        cache, left, current = carried
        features, cache = run(cache, "row", above, condition, At(row, None, width))

        def step(carried: tuple, previous: Array, t: Array) -> tuple[Array, tuple]:
            cache, left, current = carried
            column, channel = t // per_pixel % width, t % per_pixel
            pixel = _to_pixels(previous, num_classes)
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
    return _to_pixels(values, num_classes).reshape(shape)


def _take_in_channel(
    left: Array, current: Array, previous: Array, column: Array, channel: Array
) -> tuple[Array, Array]:
    """The pixel to the left, and the known channels of the current one, after one more value."""
    begun = current.at[:, (channel - 1) % current.shape[1]].set(previous)
    left = jnp.where(channel == 0, jnp.where(column > 0, begun, 0.0), left)
    return left, jnp.where(channel == 0, 0.0, begun)
