"""Normalizing flows: a bijector and an optimizer become a `Family`."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Key

from jaxgen import conditioning as conditions
from jaxgen.conditioning import Conditioning
from jaxgen.core import Aux, Batch, Bound, Family, Params, Phase, PyTree
from jaxgen.losses import flow as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.primitives import standard_normal
from jaxgen.sampling.latent import normal_latents

NAME, DEQUANTIZER = "flow", "dequantizer"
EXACT = 1e-4
"""The greatest error, in model space, of a round trip that counts as exact."""
ROUND_TRIP = (
    "|decode(encode(x)) - x| in model space: the mean of the examples' largest errors, "
    f"the share of examples whose largest is at most {EXACT:.0e}"
)
"""What `round_trip_error` and `round_trip_exact` are, averaged over examples: for a protocol."""


def flow(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    event_shape: tuple[int, ...],
    entry: str | None = None,
    conditioning: Conditioning | None = None,
    dequantizer: nn.Module | None = None,
    temperature: float = 1.0,
    round_trip: bool = False,
) -> Family:
    """The family of normalizing flows with a standard normal prior, trained by likelihood.

    Images are 8-bit data: the model sees `x = (u + noise) / 256` in [0, 1] (so that it often begins
    with `Logit()`), the loss and `-log_prob` are the bound of `losses.dequantized_bound` by one
    draw of the noise. Vectors are continuous data as they are, `log_prob` is exact.

    Latents are f32[B, D], all that the model factors out in one row; with a flow N(0, I), so they
    may be drawn, mixed (`jaxgen.sampling.latent.interpolate`) and moved. `encode` of images takes
    each byte as its bin's middle, and `decode` undoes it up to rounding, without rounding to bytes;
    `sample` returns bytes.

    Args:
        model: a bijector (`jaxgen.models.bijectors`); `init` shows it the whole first batch.
        optimizer: of all parameters.
        event_shape: of an example: (H, W, C) of images, (D,) of vectors.
        entry: the batch's entry that holds the data; "image" or "vector" by default.
        conditioning: what the model is told, or None for an unconditional model.
        dequantizer: a learned q(noise | u) for images: `module(image, eps, e) -> (noise, log_q)`,
            `image` in model space, `eps` standard normal of its shape, `noise` in [0, 1] made of
            it, `log_q` f32[B] its log-density in nats; None for uniform noise.
        temperature: deviation of the latents that `sample` draws.
        round_trip: `evaluate` also goes from data to latents and back, and adds two metrics:
            `round_trip_error`, the largest `|decode(encode(x)) - x|` of an example, and
            `round_trip_exact`, 1 where that is at most `EXACT` and 0 elsewhere.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if len(event_shape) not in (1, 3) or min(event_shape) < 1:
        raise ValueError(
            f"event_shape must be (height, width, channels) or (width,), got {event_shape}"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    is_image = len(event_shape) == 3
    if dequantizer is not None and not is_image:
        raise ValueError(f"dequantizer is for images, got event_shape {event_shape}")
    entry = entry or ("image" if is_image else "vector")
    made = _Flow(model, tuple(event_shape), is_image, entry, conditioning, dequantizer, temperature)
    trains = (NAME,) if dequantizer is None else (NAME, DEQUANTIZER)
    phase = Phase("likelihood", trains, made.loss, optimizer)
    evaluate = made.evaluate if round_trip else made.loss
    noise = "uniform" if dequantizer is None else "learned"
    bound = Bound(
        "exact",
        math.prod(event_shape),
        eight_bit=is_image,
        dequantization=noise if is_image else "none",
        given=conditions.key_of(conditioning),
    )
    return Family(
        made.init, (phase,), evaluate, made.sample, made.log_prob, made.encode, made.decode, bound
    )


@dataclass(frozen=True)
class _Flow:
    """The functions of `flow`, around its arguments."""

    model: Any
    event_shape: tuple[int, ...]
    is_image: bool
    entry: str
    conditioning: Conditioning | None
    dequantizer: Any
    temperature: float

    def init(self, key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        key_flow, key_noise, key_dequantizer = jax.random.split(key, 3)
        x, e = self._data(batch), conditions.encode_batch(self.conditioning, batch)
        params, state = {}, {}
        if self.dequantizer is not None:
            variables = self.dequantizer.init(key_dequantizer, x, jnp.zeros_like(x), e)
            params[DEQUANTIZER], state[DEQUANTIZER] = _parted(variables)
        if self.is_image:
            x, _ = losses.dequantize(key_noise, x)
        params[NAME], state[NAME] = _parted(self.model.init(key_flow, x, e))
        return params, state

    def loss(self, params, model_state, batch, key, *, train: bool):
        x, e = self._data(batch), conditions.encode_batch(self.conditioning, batch)

        def forward(x: Array) -> tuple[Any, Array]:
            return self.model.apply(_variables(params, model_state, NAME), x, e)

        if not self.is_image:
            latents, log_det = forward(x)
            nats = losses.negative_log_likelihood(latents, log_det)
            terms = {"prior": nats + log_det, "volume": -log_det}
            return nats, Aux(terms, model_state)

        def learned(key: Key[Array, ""], image: Array) -> tuple[Array, Array]:
            variables = _variables(params, model_state, DEQUANTIZER)
            return self.dequantizer.apply(variables, image, standard_normal(key, image.shape), e)

        noise = None if self.dequantizer is None else learned
        nats, terms = losses.dequantized_bound(forward, x, key, noise)
        bits = bits_per_dim(nats, math.prod(self.event_shape))
        return nats, Aux({"bits_per_dim": bits, **terms}, model_state)

    def evaluate(self, params, model_state, batch, key, *, train: bool):
        """The loss, and what a round trip loses."""
        nats, aux = self.loss(params, model_state, batch, key, train=train)
        z = self.encode(params, model_state, batch, key)
        condition = None if self.conditioning is None else batch[self.conditioning.key]
        back = self.decode(params, model_state, z, key, condition=condition)
        error = jnp.abs(back - self._data(batch)).reshape(z.shape).max(axis=1)
        exact = (error <= EXACT).astype(error.dtype)
        found = {"round_trip_error": error, "round_trip_exact": exact}
        return nats, aux._replace(metrics={**aux.metrics, **found})

    def log_prob(self, params, model_state, batch, key):
        return -self.loss(params, model_state, batch, key, train=False)[0]

    def sample(self, params, model_state, key, num: int, *, condition: Array | None = None):
        z = self.temperature * normal_latents(key, num, math.prod(self.event_shape))
        e = conditions.encode(self.conditioning, condition)
        x = self._inverse(params, model_state, z, e)
        return losses.quantize(x) if self.is_image else x

    def encode(self, params, model_state, batch, key):
        x, e = self._data(batch), conditions.encode_batch(self.conditioning, batch)
        if self.is_image:
            x = losses.to_unit(x)
        latents, _ = self.model.apply(_variables(params, model_state, NAME), x, e)
        return jnp.concatenate(
            [z.reshape(z.shape[0], -1) for z in jax.tree.leaves(latents)], axis=1
        )

    def decode(self, params, model_state, latents, key, *, condition: Array | None = None):
        e = conditions.encode(self.conditioning, condition)
        x = self._inverse(params, model_state, latents, e)
        return losses.from_unit(x) if self.is_image else x

    def _inverse(self, params, model_state, z: Array, e: Array | None) -> Array:
        width = math.prod(self.event_shape)
        if z.ndim != 2 or z.shape[1] != width:
            raise ValueError(f"latents must be [B, {width}], got {list(z.shape)}")
        variables = _variables(params, model_state, NAME)
        example = jax.ShapeDtypeStruct((z.shape[0], *self.event_shape), z.dtype)
        shapes, _ = jax.eval_shape(self.model.apply, variables, example, e)
        leaves, treedef = jax.tree.flatten(shapes)
        ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])
        parts = jnp.split(z, ends[:-1], axis=1)
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        latents = jax.tree.unflatten(treedef, shaped)
        return self.model.apply(variables, latents, e, method="inverse")[0]

    def _data(self, batch: Batch) -> Array:
        if self.entry not in batch:
            raise ValueError(f"entry is {self.entry!r}, but the batch has {sorted(batch)}")
        x = batch[self.entry]
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"event_shape is {self.event_shape}, the data has {x.shape[1:]}")
        if not isinstance(x, jax.core.Tracer) and not np.isfinite(np.asarray(x)).all():
            raise ValueError(f"batch[{self.entry!r}] must be finite, got NaN or infinite values")
        return x


def _parted(variables: Any) -> tuple[PyTree, PyTree]:
    """(parameters, the other collections)."""
    return variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}


def _variables(params: Params, model_state: PyTree, name: str) -> PyTree:
    return {"params": params[name], **model_state[name]}
