"""A discriminator of patches, as flags: for recipes that rebuild images."""

from dataclasses import dataclass

import jax.numpy as jnp
import optax

from jaxgen.core import Family
from jaxgen.families.patch_game import PatchGame, with_game
from jaxgen.losses.gan import non_saturating
from jaxgen.models import patch_gan


@dataclass(frozen=True)
class GameConfig:
    """A discriminator of patches, which tells reconstructions from images."""

    weight: float = 0.0
    """Weight of the adversarial loss; 0 for no discriminator."""
    start: int = 0
    """Step from which on there is a discriminator."""
    channels: int = 64
    """Channels of the discriminator's first layer."""
    num_layers: int = 3
    """Number of its convolutions of stride 2."""


def make_discriminator(
    config: GameConfig, image_shape: tuple[int, int, int], precision: str, axis_name: str | None
) -> patch_gan.PatchDiscriminator:
    """The discriminator of the flags.

    Args:
        config: The flags.
        image_shape: (H, W, C) of the images.
        precision: The type of the arithmetic in its hidden layers.
        axis_name: The mapped axis over which the batch is spread (pmap), or None.

    Raises:
        ValueError: If images are too small for it.
    """
    patch_gan.check_image_size(image_shape[:2], config.num_layers)
    return patch_gan.PatchDiscriminator(
        config.channels, config.num_layers, axis_name=axis_name, dtype=jnp.dtype(precision)
    )


def against_game(
    family: Family,
    config: GameConfig,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    precision: str,
    axis_name: str | None,
) -> Family:
    """The family with the discriminator of the flags, as it is where their weight is 0.

    Args:
        family: Family with `encode` and `decode`.
        config: The flags.
        optimizer: Transformation of the discriminator's gradients.
        image_shape: (H, W, C) of the images.
        precision: The type of the arithmetic in its hidden layers.
        axis_name: The mapped axis over which the batch is spread (pmap), or None.

    Raises:
        ValueError: If a number is out of its range, or images are too small.
    """
    if not config.weight:
        return family
    network = make_discriminator(config, image_shape, precision, axis_name)
    game = PatchGame(network, optimizer, config.weight, config.start, non_saturating)
    return with_game(family, game)
