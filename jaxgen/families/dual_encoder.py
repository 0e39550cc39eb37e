"""Two encoders, of pictures and of captions, trained until what belongs together is alike.

It is a `Family` for the loop's sake: without samples, its `evaluate` is the contrastive loss. Its
`encode` gives the vectors of both, by which obedience is measured (`jaxgen.metrics.obedience`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Conditioning
from jaxgen.core import Aux, Batch, Family, Metrics, Optimizer, Phase, PyTree, Variables
from jaxgen.losses.contrastive import contrastive

IMAGE, TEXT, SCALE, PHASE = "image", "text", "scale", "contrast"
FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0


def dual_encoder(
    network: nn.Module,
    conditioning: Conditioning,
    optimizer: optax.GradientTransformation,
    *,
    width: int,
) -> Family:
    """The family of a dual encoder (Radford et al. 2021).

    A caption's vector is a linear map of the conditioning's. The scale of the cosines is learned,
    from 1 / 0.07 and at most 100 as theirs. Captions of the same tokens are not told apart.
    `encode` gives `{"image": f32[B, width], "text": f32[B, width]}`.

    Args:
        network: Module `network(image)`, which gives vectors of `width`.
        conditioning: Conditioning by a text, whose encoder is trained with it or frozen.
        optimizer: Optimizer of all parameters.
        width: Width of the vectors that are compared.

    Raises:
        ValueError: A conditioning by anything but a text.
    """
    if conditioning.key != "text":
        raise ValueError(f"conditioning must be by a text, got {conditioning.key!r}")
    projection = nn.Dense(width)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        keys = jax.random.split(key, 3)
        params = {
            **conditions.init(conditioning, keys[0]),
            IMAGE: network.init(keys[1], batch["image"])["params"],
            TEXT: projection.init(keys[2], jnp.zeros((1, conditioning.width or 0)))["params"],
            SCALE: jnp.log(jnp.float32(FIRST_SCALE)),
        }
        return Variables(params, {}, fixed)

    def encode(variables: Variables, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        condition = conditions.encode_batch(conditioning, variables, batch)
        assert condition is not None
        read: Any = network.apply({"params": variables.params[IMAGE]}, batch["image"])
        mapped: Any = projection.apply({"params": variables.params[TEXT]}, condition.vector)
        return {IMAGE: read, TEXT: mapped}

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        vectors, ids = encode(variables, batch, key), batch["text"]
        alike = (ids[:, None] == ids[None]).all(axis=-1)
        scale = jnp.minimum(jnp.exp(variables.params[SCALE]), MOST_SCALE)
        nats = contrastive(vectors[IMAGE], vectors[TEXT], scale, alike)
        return nats, {"scale": jnp.broadcast_to(scale, nats.shape)}

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        nats, metrics = evaluate(variables, batch, key)
        return nats, Aux(metrics)

    trains = (IMAGE, TEXT, SCALE, *conditions.trains(conditioning))
    return Family(
        init,
        {PHASE: Optimizer(trains, optimizer)},
        (Phase(PHASE, PHASE, loss),),
        evaluate,
        encode=encode,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Dual encoder",
    )
