"""Normalizing flows: a bijector and an optimizer become a `Family`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Bound,
    Evaluate,
    Family,
    Metrics,
    Optimizer,
    Params,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.losses import flow as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.bijectors.linear import check_invertible
from jaxgen.sampling.latent import normal_latents, normal_space

NAME, DEQUANTIZER = "flow", "dequantizer"
PHASE = "likelihood"
EXACT = 1e-4
"""The greatest error, in model space, of a round trip that counts as exact."""
ROUND_TRIP = (
    "|decode(encode(x)) - x| in model space: the mean of the examples' largest errors, "
    f"the share of examples whose largest is at most {EXACT:.0e}"
)
"""What `round_trip_error` and `round_trip_exact` are, averaged over examples: for a protocol."""

Values = Float[Array, " batch"]
Latents = Float[Array, "batch width"]


def flow(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    event_shape: tuple[int, ...],
    training_model: nn.Module | None = None,
    entry: str | None = None,
    conditioning: Conditioning | None = None,
    dequantizer: nn.Module | None = None,
    penalty: Callable[[Params], Array] | None = None,
    num_values: int = losses.BYTE,
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
    `sample` returns bytes. `check` refuses matrices that cannot be inverted.

    Args:
        model: A bijector (`jaxgen.models.bijectors.algebra`), initialized by the whole first batch.
        optimizer: The optimizer of all parameters.
        event_shape: Shape of an example: (H, W, C) of images, (D,) of vectors.
        training_model: Bijector of the loss, with the parameters of `model` but networks of lower
            precision; None for `model` itself. All else is computed by `model`: what bfloat16
            rounds away would not come back from the inverse.
        entry: The batch's entry that holds the data; "image" or "vector" by default.
        conditioning: What the model is conditioned on, or None.
        dequantizer: A learned q(noise | u) for images, a network
            `module(image, eps, condition) -> (noise, log_q)` with `image` in model space, `eps`
            standard normal of its shape, `noise` in [0, 1] computed from it, `log_q` f32[B] its
            log-density in nats; None for uniform noise.
        penalty: Nats f32[] that training adds to each example's loss, of the model's parameters,
            such as a multiple of `sum_of_squared_scales`; None for none.
        num_values: Number V of evenly spaced values that a pixel of the images takes, in the place
            of a byte's 256: x is then `(level + noise) / V`, samples have these values, and the
            bound is of the same 8-bit data, of which each value is one byte.
        temperature: Standard deviation of the latents that `sample` draws.
        round_trip: Whether `evaluate` also goes from data to latents and back, and adds two
            metrics: `round_trip_error`, the largest `|decode(encode(x)) - x|` of an example, and
            `round_trip_exact`, 1 where that is at most `EXACT` and 0 elsewhere.

    Raises:
        ValueError: An argument out of its range.
    """
    event_shape = tuple(event_shape)
    _check(event_shape, temperature, dequantizer, num_values)
    is_image, width = len(event_shape) == 3, math.prod(event_shape)
    entry = entry or ("image" if is_image else "vector")

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        key_flow, key_noise, key_dequantizer = jax.random.split(key, 3)
        params = conditions.init(conditioning, jax.random.fold_in(key, 3))
        x, state = _data(batch, entry, event_shape), {}
        if is_image:
            check_values(x, num_values)
        condition = conditions.encode_batch(conditioning, Variables(params, {}, fixed), batch)
        if dequantizer is not None:
            collections = dequantizer.init(key_dequantizer, x, jnp.zeros_like(x), condition)
            params[DEQUANTIZER], state[DEQUANTIZER] = split_collections(collections)
        if is_image:
            x, _ = losses.dequantize(key_noise, x, num_values=num_values)
        params[NAME], state[NAME] = split_collections(model.init(key_flow, x, condition))
        return Variables(params, state, fixed)

    def likelihood(
        variables: Variables,
        batch: Batch,
        key: Array,
        model: nn.Module = model,
        rngs: dict[str, Array] | None = None,
    ) -> tuple[Values, Metrics]:
        x = _data(batch, entry, event_shape)
        condition = conditions.encode_batch(conditioning, variables, batch)

        def forward(x: Array) -> Any:
            return model.apply(collections_of(variables, NAME), x, condition, rngs=rngs)

        if not is_image:
            latents, log_det = forward(x)
            nats = losses.negative_log_likelihood(latents, log_det)
            return nats, {"prior": nats + log_det, "volume": -log_det}
        noise = None
        if dequantizer is not None:
            noise = _learned_noise(dequantizer, variables, condition)
        nats, terms = losses.dequantized_bound(forward, x, key, noise, num_values)
        return nats, {"bits_per_dim": bits_per_dim(nats, width), **terms}

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        rngs = {"dropout": jax.random.fold_in(key, 4)}  # for networks that drop in training
        nats, metrics = likelihood(variables, batch, key, training_model or model, rngs)
        if penalty is None:
            return nats, Aux(metrics)
        added = jnp.broadcast_to(penalty(variables.params[NAME]), nats.shape)
        return nats + added, Aux({**metrics, "penalty": added})

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        nats, metrics = likelihood(variables, batch, key)
        latents = encode(variables, batch, key)
        condition = conditions.condition_of(conditioning, batch)
        rebuilt = decode(variables, latents, key, condition=condition)
        error = jnp.abs(rebuilt - _data(batch, entry, event_shape)).reshape(latents.shape).max(1)
        exact = (error <= EXACT).astype(error.dtype)
        return nats, {**metrics, "round_trip_error": error, "round_trip_exact": exact}

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Values:
        return -likelihood(variables, batch, key)[0]

    def encode(variables: Variables, batch: Batch, key: Array) -> Latents:
        x = _data(batch, entry, event_shape)
        condition = conditions.encode_batch(conditioning, variables, batch)
        if is_image:
            x = losses.to_unit(x, num_values)
        latents, _ = model.apply(collections_of(variables, NAME), x, condition)
        return jnp.concatenate(
            [z.reshape(z.shape[0], -1) for z in jax.tree.leaves(latents)], axis=1
        )

    def inverse(variables: Variables, latents: Array, condition: Any) -> Array:
        encoded = conditions.encode(conditioning, variables, condition)
        return _inverse(model, collections_of(variables, NAME), latents, encoded, event_shape)

    def decode(variables: Variables, latents: Array, key: Array, *, condition=None) -> Array:
        x = inverse(variables, latents, condition)
        return losses.from_unit(x, num_values) if is_image else x

    def sample(variables: Variables, key: Array, num: int, *, condition=None) -> Array:
        x = inverse(variables, temperature * normal_latents(key, num, width), condition)
        return losses.quantize(x, num_values) if is_image else x

    def check(params: Params) -> None:
        check_invertible({NAME: params[NAME]})

    own = (NAME,) if dequantizer is None else (NAME, DEQUANTIZER)
    trains = (*own, *conditions.trains(conditioning))
    measure: Evaluate = evaluate if round_trip else likelihood
    return Family(
        init,
        optimizers={PHASE: Optimizer(trains, optimizer)},
        phases=(Phase(PHASE, PHASE, loss),),
        evaluate=measure,
        sample=sample,
        log_prob=log_prob,
        bound=_bound(event_shape, dequantizer, conditioning),
        encode=encode,
        decode=decode,
        latents=normal_space(width),
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        check=check,
        name="Flow",
        sampling=_sampling(is_image),
    )


def _sampling(is_image: bool) -> Sampling | None:
    # Vectors may have an autoregressive flow, whose inverse takes a pass for each number.
    return Sampling(1, "one inverse pass through all layers for all pixels") if is_image else None


def _check(
    event_shape: tuple[int, ...], temperature: float, dequantizer: Any, num_values: int
) -> None:
    if len(event_shape) not in (1, 3) or min(event_shape) < 1:
        raise ValueError(
            f"event_shape must be (height, width, channels) or (width,), got {event_shape}"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if dequantizer is not None and len(event_shape) != 3:
        raise ValueError(f"dequantizer is for images, got event_shape {event_shape}")
    if not 2 <= num_values <= losses.BYTE:
        raise ValueError(f"num_values must be from 2 to {losses.BYTE}, got {num_values}")


def check_values(image: Array | np.ndarray, num_values: int) -> None:
    """Raise ValueError unless images in model space have `num_values` evenly spaced values.

    Each rounded to a byte. For concrete arrays: of traced ones nothing is known.
    """
    if num_values == losses.BYTE or isinstance(image, jax.core.Tracer):
        return
    unit, highest = 0.5 * (np.asarray(image, np.float32) + 1), num_values - 1
    off = np.abs(unit - np.round(unit * highest) / highest)
    if off.max() > 0.51 / (losses.BYTE - 1):
        raise ValueError(
            f"pixels must have {num_values} values, evenly spaced in 0..255, as num_values says, "
            f"got one of {255 * unit.flat[off.argmax()]:.0f}"
        )


def _bound(
    event_shape: tuple[int, ...], dequantizer: Any, conditioning: Conditioning | None
) -> Bound:
    is_image = len(event_shape) == 3
    noise = "uniform" if dequantizer is None else "learned"
    return Bound(
        "exact",
        math.prod(event_shape),
        eight_bit=is_image,
        dequantization=noise if is_image else "none",
        given=conditions.key_of(conditioning),
    )


def _data(batch: Batch, entry: str, event_shape: tuple[int, ...]) -> Array:
    if entry not in batch:
        raise ValueError(f"entry is {entry!r}, but the batch has {sorted(batch)}")
    x = batch[entry]
    if x.shape[1:] != event_shape:
        raise ValueError(f"event_shape is {event_shape}, the data has {x.shape[1:]}")
    if not isinstance(x, jax.core.Tracer) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"batch[{entry!r}] must be finite, got NaN or infinite values")
    return x


def split_collections(collections: Any) -> tuple[PyTree, PyTree]:
    """What `init` of a module made, as (parameters, the other collections)."""
    others = {name: values for name, values in collections.items() if name != "params"}
    return collections.get("params", {}), others


def collections_of(variables: Variables, name: str) -> PyTree:
    """Both together again, as the module's `apply` takes them."""
    return {"params": variables.params[name], **variables.state[name]}


def _learned_noise(
    dequantizer: nn.Module, variables: Variables, condition: Condition | None
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """The noise and its log-density, as `losses.dequantize` takes them."""

    def draw(key: Array, image: Array) -> tuple[Array, Array]:
        eps = standard_normal(key, image.shape)
        module: Any = dequantizer
        return module.apply(collections_of(variables, DEQUANTIZER), image, eps, condition)

    return draw


def _inverse(
    model: nn.Module,
    collections: PyTree,
    latents: Array,
    condition: Condition | None,
    event_shape: tuple[int, ...],
) -> Array:
    """Data of latents [B, D], which are taken apart as the model factors them out."""
    width = math.prod(event_shape)
    if latents.ndim != 2 or latents.shape[1] != width:
        raise ValueError(f"latents must be [B, {width}], got {list(latents.shape)}")
    example = jax.ShapeDtypeStruct((latents.shape[0], *event_shape), latents.dtype)
    shapes, _ = jax.eval_shape(model.apply, collections, example, condition)
    leaves, treedef = jax.tree.flatten(shapes)
    ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])
    parts = jnp.split(latents, ends[:-1], axis=1)
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    x, _ = model.apply(
        collections, jax.tree.unflatten(treedef, shaped), condition, method="inverse"
    )
    return x
