"""Augmentation of training images that a diffusion model is informed of, so that it does not leak.

Karras et al. 2022 (EDM), appendix F.2: an image is mirrored, scaled, rotated, stretched or moved at
random, and nine labels tell the network what was done. They are zero of images as they are, and so
in sampling.

    images, labels = edm_augment(key, images, 0.12)
    output = network(images + noise, time, condition, labels)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.augmentation.warp import rotation, scaling, warp

NUM_LABELS = 9
"""Numbers that say what was done to an image."""


def edm_augment(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    probability: float = 0.12,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch labels"]]:
    """Transforms each image at random, and says how.

        labels      what is done                                        n ~ N(0, 1), w ~ U(-pi, pi)
        0           mirrored left to right, with probability 1/2
        1           mirrored upside down, with probability p/2
        2           scaled by 2^(0.2 n)                                 n
        3, 4        rotated by the angle w                              cos w - 1, sin w
        5, 6        stretched by 2^(0.2 n) along the angle v, squeezed  n cos v, n sin v
                    across it; v = 0 or, with probability 1/2, U(-pi, pi)
        7, 8        moved by n_x width / 8, n_y height / 8              n_x, n_y

    Each of the last four lines has the probability p by itself, and labels 0 where it is not taken.
    Images go on beyond their borders as mirrored there. Labels 5 and 6 are alike of n along v and
    of -n along v + pi, as in the authors' code.

    Args:
        key: PRNG key.
        images: Images of at least 2x2 pixels.
        probability: Probability p, in [0, 1]; 0.12 on CIFAR-10, 0.15 on FFHQ and AFHQv2 in the
            paper.

    Returns:
        The images, in which values may leave the range of the data, and f32[batch, 9].

    Raises:
        ValueError: A probability out of range, or images too small.
    """
    check_probability(probability)
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 3)
    # Coins of flips and of the four transformations; then normals; then angles.
    coins = jax.random.uniform(keys[0], (8, batch))
    taken = (coins[3:7] < probability).astype(jnp.float32)
    flip_x, flip_y = coins[0] < 0.5, (coins[1] < 0.5) & (coins[2] < probability)
    scale, stretch, move_x, move_y = jax.random.normal(keys[1], (4, batch)) * jnp.stack(
        [taken[0], taken[2], taken[3], taken[3]]
    )
    angle, along = math.pi * jax.random.uniform(keys[2], (2, batch), minval=-1, maxval=1)
    angle, along = angle * taken[1], along * (coins[7] < 0.5)

    images = jnp.where(flip_x[:, None, None, None], images[:, :, ::-1], images)
    images = jnp.where(flip_y[:, None, None, None], images[:, ::-1], images)
    inverse = scaling(-scale, -scale) @ rotation(angle)
    inverse = inverse @ rotation(-along) @ scaling(-stretch, stretch) @ rotation(along)
    shift = jnp.stack([move_x * (width / 8), move_y * (height / 8)], axis=-1)
    labels = jnp.stack(
        [
            flip_x,
            flip_y,
            scale,
            jnp.cos(angle) - 1,
            jnp.sin(angle),
            stretch * jnp.cos(along),
            stretch * jnp.sin(along),
            move_x,
            move_y,
        ],
        axis=-1,
    )
    return warp(images, inverse, shift), labels


def check_probability(probability: float) -> None:
    """Raises ValueError where a probability is out of range.

    Args:
        probability: Probability of each transformation.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
