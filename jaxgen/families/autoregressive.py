"""Autoregressive networks over pixels or tokens: network and optimizer become a `Family`."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Conditioning
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
from jaxgen.families import raster
from jaxgen.losses import autoregressive as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.transformer import Transformer
from jaxgen.sampling import autoregressive as sampling

NAME, OF_TOKENS, PHASE = "pixelcnn", "transformer", "likelihood"
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
    """The family of PixelCNNs and ImageGPT: the exact likelihood of images, pixel after pixel.

        log p(x | c) = sum_t log p(x_t | x_1, ..., x_{t-1}, c)

    in raster order. Images are in [-1, 1], each channel one of `num_values` evenly spaced values;
    the loss and `-log_prob` are nats an example, summed over pixels and channels. A value that is
    none of them counts as the nearest.

    To a transformer the values are tokens, in raster order, a pixel's channels one after another.

    `sample` draws by the network's `row` and `pixel` methods, or a transformer's `step`, each
    position the work of one position. `complete` takes images f32[B, H, W, C] and `known`,
    bool[B, H, W], true where their pixels are kept; images are completed in raster order, so that a
    known pixel has an influence on those after it alone.

    Args:
        network: A network of `jaxgen.models.pixelcnn` or `pixelcnnpp`, or a `Transformer` of
            `num_values` tokens and as many positions as there are numbers in an image.
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
    image_shape, num_dims = tuple(image_shape), math.prod(image_shape)
    of_tokens = isinstance(network, Transformer)
    if isinstance(network, Transformer):
        _check_transformer(network, num_dims, likelihood, num_values)
    net = OF_TOKENS if of_tokens else NAME
    if by_channel:
        draw_values = sampling.draw_categorical(temperature)
    else:
        draw_values = sampling.draw_mixture_of_logistics(temperature, num_values)

    def inputs_of(x: Array) -> Array:
        if not of_tokens:
            return x
        # What is not a number is no token either: the network gives NaN, and the guard finds it.
        tokens = jnp.where(jnp.isnan(x), num_values, raster.to_classes(x, num_values))
        return tokens.reshape(len(x), -1)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        params = conditions.init(conditioning, jax.random.fold_in(key, 1))
        condition = conditions.encode_batch(conditioning, Variables(params, {}, fixed), batch)
        # With dropout, as the authors of PixelCNN++: its scales are such that training's first
        # outputs have unit variance.
        keys = {"params": key, "dropout": jax.random.fold_in(key, 2)}
        x = inputs_of(_images(batch, image_shape))
        params[net] = network.init(keys, x, condition, train=True)["params"]
        return Variables(params, {}, fixed)

    def measure(
        variables: Variables, batch: Batch, key: Array, *, train: bool
    ) -> tuple[Values, Metrics]:
        x = _images(batch, image_shape)
        condition = conditions.encode_batch(conditioning, variables, batch)
        params, inputs = {"params": variables.params[net]}, inputs_of(x)
        outputs: Any = network.apply(params, inputs, condition, train=train, rngs={"dropout": key})
        if of_tokens:
            nats = losses.categorical_nll(outputs, inputs)
        elif by_channel:
            nats = losses.categorical_nll(outputs, raster.to_classes(x, num_values))
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
        run: Any
        if of_tokens:
            run = raster.naive_tokens if sampler == "naive" else raster.cached_tokens
        else:
            run = raster.naive_pixels if sampler == "naive" else raster.cached_pixels
        return run(
            network,
            variables.params[net],
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

    trains = (net, *conditions.trains(conditioning))
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


def _check_transformer(
    network: Transformer, num_dims: int, likelihood: str, num_values: int
) -> None:
    """Raise ValueError for a transformer that does not fit the images or the likelihood."""
    if likelihood != "categorical":
        raise ValueError(f"likelihood must be categorical for a transformer, got {likelihood!r}")
    if (network.num_tokens, network.length) != (num_values, num_dims):
        raise ValueError(
            f"the transformer must be of {num_values} tokens and {num_dims} positions, got one of "
            f"{network.num_tokens} and {network.length}"
        )


def _images(batch: Batch, image_shape: tuple[int, ...]) -> Array:
    x = batch["image"]
    if x.shape[1:] != image_shape:
        raise ValueError(f"image_shape is {image_shape}, the images have {x.shape[1:]}")
    return x
