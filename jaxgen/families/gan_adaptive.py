"""Adaptive augmentation in a game of two players: its state, and who keeps it."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxgen.augmentation import adaptive as augmentation
from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.core import Aux, Batch, Family, PyTree, Variables

AUGMENT = "augment"
"""The key of an adaptive augmentation's state in `Variables.state`."""

_SIGN = "real_sign"


def with_adaptation(family: Family, adaptive: Adaptive) -> Family:
    """The family with the augmentation's state, which follows the discriminator's turns.

    The turn's metrics have the signs of its verdicts on real images, and the probability.

    Args:
        family: Family whose first phase is the discriminator's, with the metric `real_logit`.
        adaptive: Augmentation.

    Raises:
        ValueError: A number of the augmentation is out of range.
    """
    augmentation.check(adaptive)
    turn, *others = family.phases

    def init(key: Key[Array, ""], batch: Batch, fixed: PyTree = {}) -> Variables:  # noqa: B006
        variables = family.init(key, batch, fixed)
        return variables._replace(state={**variables.state, AUGMENT: augmentation.start()})

    def loss(variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]):
        value, aux = turn.loss(variables, batch, key, step)
        probability = jnp.broadcast_to(variables.state[AUGMENT]["probability"], value.shape)
        seen = {_SIGN: jnp.sign(aux.metrics["real_logit"]), "augment_probability": probability}
        return value, Aux({**aux.metrics, **seen}, aux.state)

    def observe(state: PyTree, means: Mapping[str, Array], step: Int[Array, ""]) -> PyTree:
        return {**state, AUGMENT: augmentation.follow(adaptive, state[AUGMENT], means[_SIGN])}

    changed = turn._replace(loss=loss, observe=observe)
    return family._replace(init=init, phases=(changed, *others))
