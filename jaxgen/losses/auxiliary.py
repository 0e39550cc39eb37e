"""Losses of a discriminator's second head, which names what an image shows (Odena et al. 2017).

Both players add them to their game: the discriminator on real (and fake) images, the generator on
its own, each against what was asked for. Both are per example, in nats, in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def auxiliary_classifier_loss(
    class_logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]
) -> Float[Array, " batch"]:
    """`-log softmax(class_logits)[label]`, ACGAN's L_C (Odena et al. 2017, eq. 3), negated.

    Args:
        class_logits: Logits of the discriminator's second head.
        labels: Classes of data, or those that samples were asked for, 0..C-1.

    Returns:
        The loss of each example, f32[B], nats. NaN where a label lies outside the classes, since
        values cannot raise under `jit`; the training step stops at it.

    Raises:
        ValueError: The shapes do not fit, or the labels are not integers.
    """
    _check_logits(class_logits)
    _check_integers("labels", labels, class_logits.shape[:1])
    nats = -jax.nn.log_softmax(class_logits.astype(jnp.float32), axis=1)
    labels = labels.astype(jnp.int32)  # compared as bytes, 256 classes would be none
    inside = (labels >= 0) & (labels < class_logits.shape[1])
    chosen = jnp.take_along_axis(nats, jnp.where(inside, labels, 0)[:, None], axis=1)[:, 0]
    return jnp.where(inside, chosen, jnp.nan)


def auxiliary_attributes_loss(
    class_logits: Float[Array, "batch attributes"], attributes: Integer[Array, "batch attributes"]
) -> Float[Array, " batch"]:
    r"""$-\sum_k a_k \log s(l_k) + (1 - a_k) \log(1 - s(l_k))$, the classes of Jin et al. 2017.

    Each attribute is a class of its own, there or not; their losses are summed, not averaged
    (section 3.3 of "Towards the Automatic Anime Characters Creation with Generative Adversarial
    Networks"), so that the weight of the game beside them is that of as many losses.

    Args:
        class_logits: Logits l of the discriminator's second head.
        attributes: Attributes a of data, or those that samples were asked for, 0 or 1.

    Returns:
        The loss of each example, f32[B], nats. NaN where an attribute is neither 0 nor 1.

    Raises:
        ValueError: The shapes do not fit, or the attributes are not integers.
    """
    _check_logits(class_logits)
    _check_integers("attributes", attributes, class_logits.shape)
    logits = class_logits.astype(jnp.float32)
    nats = jax.nn.softplus(jnp.where(attributes == 1, -logits, logits))
    return jnp.where((attributes == 0) | (attributes == 1), nats, jnp.nan).sum(axis=1)


def _check_logits(class_logits: Array) -> None:
    if class_logits.ndim != 2 or not jnp.issubdtype(class_logits.dtype, jnp.floating):
        raise ValueError(f"class_logits must be floats of shape [B, C], got {_of(class_logits)}")


def _check_integers(name: str, values: Array, shape: tuple[int, ...]) -> None:
    if values.shape != shape or not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape {shape}, as class_logits have, got {_of(values)}"
        )


def _of(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"
