"""The auxiliary classifier of a GAN: what it names follows from the kind of condition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Conditioning
from jaxgen.losses.auxiliary import auxiliary_attributes_loss, auxiliary_classifier_loss


class Auxiliary(NamedTuple):
    """Weights of the auxiliary classifier's cross-entropy (ACGAN), and of the game beside it.

    Attributes:
        real: Weight in the discriminator's loss, on real images.
        fake: Weight in the discriminator's loss, on fakes (Odena et al. 2017; 0 in Gulrajani et al.
            2017).
        generator: Weight in the generator's loss.
        game: Weight of the game in both players' losses; Jin et al. 2017 weight it by the number of
            attributes, whose losses are summed.
    """

    real: float = 1.0
    fake: float = 1.0
    generator: float = 1.0
    game: float = 1.0


class Naming(NamedTuple):
    """What a classifier names of an image, of conditions as the data has them.

    Attributes:
        loss: `(logits, conditions) -> f32[B]`, the cross-entropy in nats.
        right: `(logits, conditions) -> f32[B]`, the share of what is named right.
    """

    loss: Callable[[Array, Array], Float[Array, " batch"]]
    right: Callable[[Array, Array], Float[Array, " batch"]]


def naming(conditioning: Conditioning | None, discriminator: Any) -> Naming:
    """One of the classes, or each of the attributes.

    Args:
        conditioning: Kind of condition.
        discriminator: Module with the attribute `num_classes`, the number of its logits.

    Raises:
        ValueError: Another kind of condition or none, or a discriminator without as many logits.
    """
    if conditioning is not None and conditioning.num_classes is not None:
        width, named = conditioning.num_classes, Naming(auxiliary_classifier_loss, _right_class)
    elif conditioning is not None and conditioning.num_attributes is not None:
        width = conditioning.num_attributes
        named = Naming(auxiliary_attributes_loss, _right_attributes)
    else:
        kind = "none" if conditioning is None else repr(conditioning.key)
        raise ValueError(f"auxiliary needs a condition of classes or attributes, got {kind}")
    has = getattr(discriminator, "num_classes", None)
    if has != width:
        raise ValueError(f"auxiliary needs a discriminator with num_classes {width}, got {has}")
    return named


def _right_class(logits: Array, label: Array) -> Float[Array, " batch"]:
    return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)


def _right_attributes(logits: Array, attributes: Array) -> Float[Array, " batch"]:
    return jnp.mean((logits > 0) == (attributes == 1), axis=-1, dtype=jnp.float32)
