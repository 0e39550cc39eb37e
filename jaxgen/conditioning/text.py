"""Captions as conditions: rows of tokens, read by an encoder that is trained or pretrained."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxgen.conditioning.base import (
    NAME,
    Condition,
    Conditioning,
    check_values,
    check_width,
)
from jaxgen.core import PyTree, Variables

PAD = 0


class Encoder(NamedTuple):
    """A network that reads tokens.

    Attributes:
        apply: `(parameters, ids, mask) -> f32[B, L, width]`, one vector a token.
        width: The width of these vectors.
        num_tokens: The number of different tokens.
        init: `key -> parameters` to be trained with the model; None for a pretrained network.
        fixed: The parameters of a pretrained network.
    """

    apply: Callable[[Any, Int[Array, "batch length"], Bool[Array, "batch length"]], Array]
    width: int
    num_tokens: int
    init: Callable[[Key[Array, ""]], PyTree] | None = None
    fixed: PyTree = {}


def slowed(encoder: Encoder, rate: float) -> Encoder:
    """The same network, whose parameters learn at `rate` times the rate of all others.

    Its parameters are kept divided by `rate` and used multiplied by it, so that a step of Adam, as
    long whatever the gradient's scale, moves what is used `rate` times as far: the learning-rate
    multiplier of StyleGAN's mapping network (Karras et al. 2019, appendix C). What a caption begins
    with then stays told apart while the image network learns to listen.

    Args:
        encoder: A network that is trained with the model.
        rate: The factor, above 0.

    Raises:
        ValueError: `rate` not above 0, or a pretrained network, which does not learn.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate must be a finite number above 0, got {rate}")
    init = encoder.init
    if init is None:
        raise ValueError("a pretrained encoder has no learning rate")

    def scaled(params: Any, factor: float) -> Any:
        return jax.tree.map(lambda x: x * factor, params)

    return encoder._replace(
        apply=lambda params, ids, mask: encoder.apply(scaled(params, rate), ids, mask),
        init=lambda key: scaled(init(key), 1 / rate),
    )


def text(
    encoder: Encoder,
    length: int,
    *,
    with_tokens: bool = False,
    sweep: np.ndarray | None = None,
    sweep_names: tuple[str, ...] = (),
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None,
    files: Mapping[str, bytes] = {},
) -> Conditioning:
    """Captions, int32 [B, length] tokens in the batch's `text`, padded with 0.

    The vector is the mean of the encoder's vectors over a caption's tokens. No condition is a row
    of padding alone: a vector of zeros, and no token.

    Args:
        encoder: The network that reads the tokens.
        length: The number of tokens of a row, at least 1.
        with_tokens: Whether networks see the single vectors too, for cross-attention.
        sweep: Captions that show what the model can do, int [rows, length], or None.
        sweep_names: Captions of the sweep as people read them, or ().
        tokenize: Function from captions to their rows, for captions that people ask for.
        files: What a run keeps so that its tokens mean the same ever after, by the file's name.

    Raises:
        ValueError: `length` below 1, or a sweep of another length.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if sweep is not None:
        check_width("sweep", sweep, length)

    def encode(variables: Variables, values: Shaped[Array, "..."]) -> Condition:
        check_width("text", values, length)
        check_values("text", values, 0, encoder.num_tokens - 1)
        known = jnp.all((values >= 0) & (values < encoder.num_tokens), axis=1)
        ids = jnp.clip(values, 0, encoder.num_tokens - 1)
        mask = ids != PAD
        given = variables.params if encoder.init is not None else variables.fixed
        vectors = encoder.apply(given[NAME], ids, mask) * mask[..., None]
        vector = vectors.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return condition(jnp.where(known[:, None], vector, jnp.nan), vectors, mask)

    def null(variables: Variables, num: int) -> Condition:
        vectors = jnp.zeros((num, length, encoder.width))
        return condition(vectors[:, 0], vectors, jnp.zeros((num, length), bool))

    def condition(
        vector: Float[Array, "batch width"],
        vectors: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
    ) -> Condition:
        return Condition(vector, vectors, mask) if with_tokens else Condition(vector)

    plain = Conditioning(
        key="text",
        shape=(length,),
        encode=encode,
        null=null,
        width=encoder.width,
        sweep=sweep,
        fixed=encoder.fixed,
        tokenize=tokenize,
        files=files,
        sweep_names=sweep_names,
    )
    return plain if encoder.init is None else plain._replace(init=encoder.init, trained=True)
