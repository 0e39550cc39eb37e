"""Masked models of codes (MaskGIT): a bidirectional network and an optimizer become a `Family`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import Aux, Batch, Family, Metrics, Optimizer, Phase, PyTree, Sampling, Variables
from jaxgen.families import raster
from jaxgen.losses.masked import masked_accuracy, masked_cross_entropy
from jaxgen.models.masked_transformer import MaskedTransformer
from jaxgen.noise.masking import Schedule, cosine, draw_masks
from jaxgen.sampling.autoregressive import check_completion
from jaxgen.sampling.guidance import guided_logits
from jaxgen.sampling.masked import check_decoding, parallel_decode

NAME, PHASE = "transformer", "masked"

Values = Float[Array, " batch"]
Images = Float[Array, "batch height width channels"]
Codes = Int[Array, "batch positions"]
Masked = Bool[Array, "batch positions"]


class Sampler(NamedTuple):
    """How samples are drawn, by `jaxgen.sampling.masked.parallel_decode`.

    Attributes:
        num_steps: Number of steps, each a pass of the network for all codes.
        temperature: Divisor of the logits, by which codes are drawn.
        choice_temperature: Size of the noise on which codes are kept first; None for random order.
        guidance_scale: Scale of classifier-free guidance; 1 for none.
    """

    num_steps: int = 8
    temperature: float = 1.0
    choice_temperature: float | None = 4.5
    guidance_scale: float = 1.0


def masked(
    network: MaskedTransformer,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, ...],
    num_values: int = 256,
    schedule: Schedule = cosine,
    label_smoothing: float = 0.1,
    sampler: Sampler | None = None,
    conditioning: Conditioning | None = None,
    condition_dropout: float = 0.0,
) -> Family:
    """The family of MaskGIT (Chang et al. 2022): hidden codes from those that are not.

    Images are in [-1, 1], each channel one of `num_values` evenly spaced values (others count as
    the nearest): the codes of `jaxgen.families.latent.codes`, of a palette, or grey levels. They
    are tokens in raster order, a pixel's channels one after another.

    Training hides a share of each example's codes, drawn by the schedule, and minimizes the cross
    entropy of these, in nats a code, with label smoothing. `evaluate` gives it of held-out examples
    without smoothing and without dropout, their masks drawn likewise; the metric `accuracy` is the
    share of hidden codes that are named right. There is no likelihood.

    `sample` takes one more option, `sampler`, a `Sampler` in the place of the family's.
    `complete` takes images f32[B, H, W, C] and `known`, bool[B, H, W], true where their pixels are
    kept; every known pixel has an influence on all others.

    Args:
        network: Transformer of `num_values` tokens and as many positions as there are numbers in
            an image.
        optimizer: Optimizer of all parameters.
        image_shape: Shape (height, width, channels) of an image.
        num_values: Number of values of a channel.
        schedule: Schedule of the masked share, in training and in sampling.
        label_smoothing: Share of the target that all values have alike, in training.
        sampler: How samples are drawn; None for the default.
        conditioning: What the network is conditioned on, or None.
        condition_dropout: Probability of training an example without its condition.

    Raises:
        ValueError: An argument out of its range, dropout or guidance of a condition that the
            network does not take, or a network that does not fit.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    image_shape, length = tuple(image_shape), math.prod(image_shape)
    if (network.num_tokens, network.length) != (num_values, length):
        raise ValueError(
            f"the network must be of {num_values} tokens and {length} positions, got one of "
            f"{network.num_tokens} and {network.length}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if not 0 <= condition_dropout < 1:
        raise ValueError(f"condition_dropout must be in [0, 1), got {condition_dropout}")
    if condition_dropout and conditioning is None:
        raise ValueError("condition_dropout needs a conditioning to leave out")
    own = sampler or Sampler()
    _check(own, conditioning)

    def to_tokens(x: Array) -> Codes:
        if x.shape[1:] != image_shape:
            raise ValueError(f"image_shape is {image_shape}, the images have {x.shape[1:]}")
        # What is not a number is no token either: the network gives NaN, and the guard finds it.
        tokens = jnp.where(jnp.isnan(x), num_values, raster.to_classes(x, num_values))
        return tokens.reshape(len(x), length)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        params = conditions.init(conditioning, jax.random.fold_in(key, 1))
        condition = conditions.encode_batch(conditioning, Variables(params, {}, fixed), batch)
        tokens = to_tokens(batch["image"])
        hidden = jnp.ones(tokens.shape, bool)
        params[NAME] = network.init(key, tokens, hidden, condition)["params"]
        return Variables(params, {}, fixed)

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        key_masks, key_condition, key_dropout = jax.random.split(key, 3)
        condition = conditions.encode_batch(conditioning, variables, batch)
        tokens = to_tokens(batch["image"])
        if conditioning is not None and condition is not None and condition_dropout:
            null = conditioning.null(variables, len(tokens))
            condition = conditions.drop(key_condition, condition, null, condition_dropout)
        hidden = draw_masks(key_masks, len(tokens), length, schedule)
        params, rngs = {"params": variables.params[NAME]}, {"dropout": key_dropout}
        logits: Any = network.apply(params, tokens, hidden, condition, train=True, rngs=rngs)
        values = masked_cross_entropy(logits, tokens, hidden, label_smoothing)
        return values, Aux({"accuracy": masked_accuracy(logits, tokens, hidden)})

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        condition = conditions.encode_batch(conditioning, variables, batch)
        tokens = to_tokens(batch["image"])
        hidden = draw_masks(key, len(tokens), length, schedule)
        logits: Any = network.apply({"params": variables.params[NAME]}, tokens, hidden, condition)
        values = masked_cross_entropy(logits, tokens, hidden)
        return values, {"accuracy": masked_accuracy(logits, tokens, hidden)}

    def draw(
        variables: Variables,
        key: Array,
        num: int,
        condition: Any,
        by: Sampler,
        given: Codes | None = None,
        known: Masked | None = None,
    ) -> Images:
        encoded = conditions.encode(conditioning, variables, condition)

        def plain(inputs: tuple[Codes, Masked], condition: Condition | None) -> Any:
            return network.apply({"params": variables.params[NAME]}, *inputs, condition)

        predict: Any = plain
        if conditioning is not None and by.guidance_scale != 1:
            predict = guided_logits(plain, conditioning.null(variables, 1), by.guidance_scale)
        codes = parallel_decode(
            lambda codes, hidden: predict((codes, hidden), encoded),
            (num, length),
            key,
            by.num_steps,
            schedule=schedule,
            temperature=by.temperature,
            choice_temperature=by.choice_temperature,
            given=given,
            known=known,
        )
        return raster.to_pixels(codes, num_values).reshape(num, *image_shape)

    def sample(
        variables: Variables,
        key: Array,
        num: int,
        *,
        condition: Any = None,
        sampler: Sampler | None = None,
    ) -> Images:
        by = sampler or own
        _check(by, conditioning)
        return draw(variables, key, num, condition, by)

    def complete(
        variables: Variables, key: Array, given: Array, known: Array, *, condition: Any = None
    ) -> Images:
        check_completion(given, known, (len(given), *image_shape), positions=2)
        of_codes = jnp.repeat(jnp.asarray(known).reshape(len(given), -1), image_shape[-1], axis=1)
        return draw(variables, key, len(given), condition, own, to_tokens(given), of_codes)

    return Family(
        init,
        optimizers={PHASE: Optimizer((NAME, *conditions.trains(conditioning)), optimizer)},
        phases=(Phase(PHASE, PHASE, loss),),
        evaluate=evaluate,
        sample=sample,
        complete=complete,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Masked",
        sampling=Sampling(own.num_steps, "steps of decoding, each for all codes"),
    )


def _check(sampler: Sampler, conditioning: Conditioning | None) -> None:
    """Raise ValueError for a sampler that cannot draw."""
    check_decoding(sampler.num_steps, sampler.temperature, sampler.choice_temperature)
    if not math.isfinite(sampler.guidance_scale):
        raise ValueError(f"guidance_scale must be finite, got {sampler.guidance_scale}")
    if sampler.guidance_scale != 1 and conditioning is None:
        raise ValueError(
            "guidance_scale must be 1 where the network takes no condition, got "
            f"{sampler.guidance_scale}"
        )
