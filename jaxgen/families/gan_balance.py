"""The balance of a GAN's two players: what is observed of it, and when to warn."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgen.losses.gan import discriminator_accuracy


def observe(
    loss: str, real_logits: Float[Array, " batch"], fake_logits: Float[Array, " batch"]
) -> dict[str, Float[Array, " batch"]]:
    """Metrics of the discriminator: its logits, and how often it is right, on each side.

    Scores of games that have no zero are told apart at the middle between the two sides' means.

    Args:
        loss: Name of the game.
        real_logits: Logits of data.
        fake_logits: Logits of samples, as many.
    """
    threshold: float | Array = 0.5 if loss == "least_squares" else 0.0
    if loss in ("wasserstein", "relativistic_average"):
        threshold = 0.5 * (jnp.mean(real_logits) + jnp.mean(fake_logits))
    right_real, right_fake = discriminator_accuracy(real_logits, fake_logits, threshold)
    return {
        "real_logit": real_logits,
        "fake_logit": fake_logits,
        "real_accuracy": right_real,
        "fake_accuracy": right_fake,
    }


def diversity(
    fake: Float[Array, "batch *dims"], real: Float[Array, "batch *dims"]
) -> Float[Array, " batch"]:
    """How much fakes differ from each other, in units of how much real images do.

    The standard deviation over the batch, averaged over an image's numbers; the ratio stands at
    every example, and carries no gradient.

    Args:
        fake: Samples.
        real: Data, as many.
    """
    fake, real = lax.stop_gradient((fake, real))
    deviation = [jnp.mean(jnp.std(x, axis=0)) for x in (fake, real)]
    return jnp.broadcast_to(deviation[0] / jnp.maximum(deviation[1], 1e-6), fake.shape[:1])


def warnings(loss: str, discriminator: str, metrics: Mapping[str, float]) -> list[str]:
    """What a user should know of the balance of the two players, from a row of averaged metrics.

    Args:
        loss: Name of the game; the scores of "wasserstein" are not bounded, and a critic that
            separates them is as it should be.
        discriminator: Name of the discriminator's phase, which its metrics are prefixed with.
        metrics: Averaged metrics as the loop logs them.

    Returns:
        Warnings, none where all is well.
    """

    def value(name: str) -> float:
        return float(metrics.get(f"{discriminator}/{name}", float("nan")))

    messages = []
    right = (value("real_accuracy"), value("fake_accuracy"))
    if loss != "wasserstein" and min(right) > 0.995:
        messages.append(
            "the discriminator has won (it is right on more than 99.5 % of both sides), so the "
            "generator learns little: lower its learning rate or its updates a step, or regularize "
            "it (spectral normalization, a gradient penalty, augmentation)"
        )
    if right[1] < 0.05:
        messages.append(
            "the generator has won (more than 95 % of the fakes pass as real): give the "
            "discriminator a higher learning rate or more updates a step"
        )
    if value("diversity") < 0.3:
        messages.append(
            "the fakes are much alike (their pixels vary less than 0.3 times as much as the "
            "data's): modes may have collapsed"
        )
    return messages
