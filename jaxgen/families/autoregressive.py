"""Autoregressive networks over pixels: a network and an optimizer become a `Family`."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Key

from jaxgen import conditioning as conditions
from jaxgen.conditioning import Conditioning
from jaxgen.core import Aux, Batch, Bound, Family, Params, Phase, PyTree
from jaxgen.losses import autoregressive as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.masked_conv import At
from jaxgen.models.pixelcnn import prime
from jaxgen.primitives import check_choice
from jaxgen.sampling import autoregressive as sampling

NAME = "pixelcnn"
LIKELIHOODS = ("categorical", "mixture_of_logistics")


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

        log p(x | e) = sum_t log p(x_t | x_1, ..., x_{t-1}, e)

    in raster order. Images are in [-1, 1], each channel one of `num_values` evenly spaced values;
    the loss and `-log_prob` are nats an example, summed over pixels and channels. A value that is
    none of them counts as the nearest.

    `sample` draws by the network's `row` and `pixel` methods, each position the work of one
    position; it also takes `given`, images f32[num, H, W, C], and `known`, bool[num, H, W], true
    where their pixels are to be kept: images are completed in raster order, so that a known pixel
    tells those after it alone.

    Args:
        network: of `jaxgen.models.pixelcnn` or `pixelcnnpp`.
        optimizer: of all parameters.
        image_shape: (height, width, channels).
        likelihood: of the network's output: logits of a channel's values, or a mixture of logistics
            of whole pixels.
        num_values: values of a channel: 256 of 8-bit data, 2 of binary.
        conditioning: what the network is told, or None.
        temperature: of `sample`: logits divided, logistics' scales multiplied.
        sampler: "naive" runs the whole network for each position instead, for comparison.

    Raises:
        ValueError: if an argument is out of its range.
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_choice("sampler", sampler, ("cached", "naive"))
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")
    if likelihood == "categorical":
        draw = sampling.draw_categorical(temperature)
    else:
        draw = sampling.draw_mixture_of_logistics(temperature, num_values)
    made = _PixelCNN(
        network, tuple(image_shape), likelihood == "categorical", num_values, conditioning, draw,
        sampler,
    )  # fmt: skip
    phase = Phase("likelihood", (NAME,), made.loss, optimizer)
    bound = Bound(
        "exact",
        math.prod(image_shape),
        eight_bit=num_values == 256,
        given=conditions.key_of(conditioning),
    )
    return Family(made.init, (phase,), made.loss, made.sample, made.log_prob, bound=bound)


@dataclass(frozen=True)
class _PixelCNN:
    """The functions of `autoregressive`, around its arguments."""

    network: Any
    image_shape: tuple[int, ...]
    by_channel: bool
    num_values: int
    conditioning: Conditioning | None
    draw: Any
    sampler: str

    def init(self, key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        x, e = self._images(batch), conditions.encode_batch(self.conditioning, batch)
        return {NAME: self.network.init(key, x, e)["params"]}, {}

    def loss(self, params, model_state, batch, key, *, train: bool):
        x, e = self._images(batch), conditions.encode_batch(self.conditioning, batch)
        variables = {"params": params[NAME]}
        found = self.network.apply(variables, x, e, train=train, rngs={"dropout": key})
        if self.by_channel:
            nats = losses.categorical_nll(found, self._classes(x))
        else:
            nats = losses.mixture_of_logistics_nll(found, x, self.num_values)
        metrics = {"bits_per_dim": bits_per_dim(nats, math.prod(self.image_shape))}
        return nats, Aux(metrics, model_state)

    def log_prob(self, params, model_state, batch, key):
        return -self.loss(params, model_state, batch, key, train=False)[0]

    def sample(
        self,
        params,
        model_state,
        key,
        num: int,
        *,
        condition: Array | None = None,
        given: Array | None = None,
        known: Array | None = None,
    ):
        shape = (num, *self.image_shape)
        if given is not None or known is not None:
            sampling.check_completion(given, known, shape, positions=2)
        e = conditions.encode(self.conditioning, condition)
        values, mask = self._as_values(given), known
        height, width, channels = self.image_shape
        if self.by_channel and known is not None:
            mask = jnp.repeat(jnp.asarray(known), channels, axis=2)
        drawn = self._naive if self.sampler == "naive" else self._cached
        blank = jnp.zeros((num, height, width * channels), jnp.int32)
        if not self.by_channel:
            blank = jnp.zeros(shape)
        return self._as_images(drawn(params[NAME], key, e, blank, values, mask))

    def _naive(self, params, key, e, blank, given, known):
        flat = [
            None if x is None else x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (given, known)
        ]
        positions = blank.reshape(blank.shape[0], -1, *blank.shape[3:])

        def forward(values: Array) -> Array:
            found = self.network.apply({"params": params}, self._as_images(values), e)
            return found.reshape(*positions.shape[:2], *found.shape[4 if self.by_channel else 3 :])

        return sampling.naive_ancestral(
            forward, positions, key, self.draw, given=flat[0], known=flat[1]
        )

    def _cached(self, params, key, e, blank, given, known):
        num, (_, width, channels) = blank.shape[0], self.image_shape
        folded, cache = prime(self.network, params, num, self.image_shape, e)
        fixed = {"params": params, "folded": folded}

        def run(cache, method, *args):
            variables = {**fixed, "cache": cache}
            found, new = self.network.apply(variables, *args, method=method, mutable=["cache"])
            return found, new.get("cache", cache)

        def begin_row(cache, above, row):
            above = self._as_pixels(above).reshape(num, 1, width, channels)
            above = jnp.where(row > 0, above, 0.0)
            cache, left, current = cache
            features, cache = run(cache, "row", above, e, At(row, None, width))

            def step(cache, previous, t):
                cache, left, current = cache
                column, c = t // positions % width, t % positions
                left, current = self._take_in(left, current, previous, column, c)
                pair = [x[:, None, None] for x in (left, current)]
                found, cache = run(cache, "pixel", *pair, features, e, At(row, column, width))
                found = found[:, 0, 0, c] if self.by_channel else found[:, 0, 0]
                return found, (cache, left, current)

            return step, (cache, left, current)

        positions = channels if self.by_channel else 1
        none = jnp.zeros((num, channels))
        return sampling.ancestral_by_row(
            begin_row, (cache, none, none), blank, key, self.draw, given=given, known=known
        )

    def _take_in(self, left, current, previous, column, c):
        """The pixel to the left and what is known of the current one, after one more value."""
        previous = self._as_pixels(previous)
        if not self.by_channel:
            return jnp.where(column > 0, previous, 0.0), current
        channels = self.image_shape[-1]
        begun = current.at[:, (c - 1) % channels].set(previous)
        left = jnp.where(c == 0, jnp.where(column > 0, begun, 0.0), left)
        return left, jnp.where(c == 0, 0.0, begun)

    def _classes(self, x: Array) -> Array:
        return jnp.clip(
            jnp.round((x + 1) / 2 * (self.num_values - 1)), 0, self.num_values - 1
        ).astype(jnp.int32)

    def _as_values(self, images: Array | None) -> Array | None:
        """What the sampler draws, [B, H, W C] classes or [B, H, W, C] pixels."""
        if images is None or not self.by_channel:
            return images
        return self._classes(images).reshape(*images.shape[:2], -1)

    def _as_pixels(self, values: Array) -> Array:
        if not self.by_channel:
            return values
        return 2 * values.astype(jnp.float32) / (self.num_values - 1) - 1

    def _as_images(self, values: Array) -> Array:
        return self._as_pixels(values).reshape(-1, *self.image_shape)

    def _images(self, batch: Batch) -> Array:
        x = batch["image"]
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"image_shape is {self.image_shape}, the images have {x.shape[1:]}")
        return x
