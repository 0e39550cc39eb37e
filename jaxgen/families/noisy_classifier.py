"""A classifier of noisy data, for guidance: trained like a denoiser, on what it is to classify.

It is a `Family` for the loop's sake: without samples, its `evaluate` is the cross-entropy at random
levels. `class_log_prob` is what `jaxgen.sampling.guidance.classifier_guided` takes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxgen.core import Aux, Batch, Family, Metrics, Optimizer, Phase, PyTree, Variables
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.parametrization import Parametrization, ask
from jaxgen.noise.process import Level, Process, q_sample
from jaxgen.noise.times import Times

NAME, PHASE = "classifier", "classify"


def noisy_classifier(
    network: nn.Module,
    process: Process,
    parametrization: Parametrization,
    optimizer: optax.GradientTransformation,
    *,
    times: Times,
) -> Family:
    """The family of a classifier of noisy examples (Dhariwal & Nichol 2021, section 4).

    Each example's time is drawn, and it is noised to that level; the loss is the cross-entropy of
    its entry `label` in nats. The network sees what a denoiser of the parametrization would: by
    `parametrization.edm` examples of any process look alike at equal ratios of noise to signal, so
    one classifier serves all.

    Args:
        network: Module `network(x, time, train=...)`, which gives logits.
        process: Process from data to noise.
        parametrization: Scale and time that the network is given; what is predicted is not used.
        optimizer: Optimizer of all parameters.
        times: Distribution of the times.
    """

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        x = batch["image"]
        own = network.init(key, x, jnp.zeros(len(x)), train=False)["params"]
        return Variables({NAME: own}, {}, fixed)

    def cross_entropy(
        variables: Variables, batch: Batch, key: Key[Array, ""], dropout: Key[Array, ""] | None
    ) -> tuple[Float[Array, " batch"], Metrics]:
        key_t, key_eps = jax.random.split(key)
        x0, label = batch["image"], batch["label"].astype(jnp.int32)
        level = process.at(times(key_t, len(x0)))
        x = q_sample(x0, standard_normal(key_eps, x0.shape), level)
        logits = _logits(network, parametrization, variables, x, level, dropout)
        right = jnp.argmax(logits, axis=-1) == label
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return nats, {"accuracy": right.astype(jnp.float32)}

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        nats, metrics = cross_entropy(variables, batch, key, jax.random.fold_in(key, 2))
        return nats, Aux(metrics)

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        return cross_entropy(variables, batch, key, None)

    return Family(
        init,
        {PHASE: Optimizer((NAME,), optimizer)},
        (Phase(PHASE, PHASE, loss),),
        evaluate,
        name="Classifier",
    )


def class_log_prob(
    network: nn.Module, parametrization: Parametrization, variables: Variables
) -> Callable[[Array, Level, Any], Float[Array, " batch"]]:
    """The function `(x, level, label) -> log p(label | x)` in nats, f32[B].

    Args:
        network: The classifier's network.
        parametrization: Scale and time that it was trained with.
        variables: Its variables.
    """

    def log_prob(x: Array, level: Level, label: Array) -> Float[Array, " batch"]:
        logits = _logits(network, parametrization, variables, x, level, None)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, label)

    return log_prob


def _logits(
    network: nn.Module,
    parametrization: Parametrization,
    variables: Variables,
    x: Array,
    level: Level,
    dropout: Key[Array, ""] | None,
) -> Float[Array, "batch classes"]:
    rngs = None if dropout is None else {"dropout": dropout}

    def call(x: Array, time: Array, condition: Any) -> Array:
        own = {"params": variables.params[NAME]}
        output: Any = network.apply(own, x, time, train=dropout is not None, rngs=rngs)
        return output

    return ask(call, parametrization, x, level)
