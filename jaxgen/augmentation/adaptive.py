"""Adaptive discriminator augmentation (ADA), for adversarial training on little data.

Karras et al. 2020: real and fake images are transformed at random before the discriminator sees
them, each in several ways with a probability p. As long as p is well below 1 the generator learns
images that are not transformed. p follows a sign of overfitting: how often the discriminator calls
real images real.

    images = ada_augment(key, images, state["probability"])
    state = follow(adaptive, state, jnp.sign(real_logits).mean())
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen.augmentation.warp import rotation, scaling, warp

AdaptiveState = dict[str, Array]
"""`probability`, f32[]; `signs`, the sum of the signs since its last change, f32[]; and `turns`,
the number of them, i32[]."""


def ada_augment(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    probability: float | Float[Array, ""],
) -> Float[Array, "batch height width channels"]:
    """Transforms each image at random: "bgc" of the paper, pixel blitting, geometry and colour.

    Each line has the probability p by itself (rotations 1 - sqrt(1 - p), so that either of the two
    has p), n ~ N(0, 1), angles ~ U(-pi, pi), in this order:

        mirrored left to right, or not, and turned by 0, 1, 2 or 3 right angles, all alike likely
        moved by whole pixels, up to an eighth of the image along both axes
        scaled by 2^(0.2 n)
        rotated; stretched by 2^(0.2 n) across and squeezed down; rotated again
        moved by n / 8 of the image along both axes
        brighter by 0.2 n; of contrast 2^(0.5 n); in two of four cases bright for dark
        hues turned; of saturation 2^n

    Images go on beyond their borders as mirrored there. Gradients of any order pass.

    Args:
        key: PRNG key.
        images: Images in [-1, 1], of one or three channels, of at least 2x2 pixels.
        probability: Probability p; from 1 on everything is always done.

    Returns:
        The transformed images, in which values may leave [-1, 1].

    Raises:
        ValueError: Images of another number of channels, or too small.
    """
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[3]}")
    key_place, key_color = jax.random.split(key)
    p = jnp.clip(jnp.asarray(probability, jnp.float32), 0, 1)
    moved = warp(images, *_places(key_place, p, images.shape[:3]))
    return _colors(key_color, p, moved)


def _places(
    key: Key[Array, ""], p: Array, shape: tuple[int, ...]
) -> tuple[Float[Array, "batch 2 2"], Float[Array, "batch 2"]]:
    """The inverse matrix and the shift of each image, as `warp` takes them."""
    batch, height, width = shape
    keys = jax.random.split(key, 3)
    taken, once = jax.random.uniform(keys[0], (6, batch)) < p, 1 - jnp.sqrt(1 - p)
    u = jax.random.uniform(keys[1], (8, batch))
    n = jax.random.normal(keys[2], (4, batch))
    size = jnp.array([width, height], jnp.float32)
    flip = jnp.where(taken[0] & (u[0] < 0.5), -1.0, 1.0)
    turn = jnp.where(taken[1], jnp.floor(4 * u[1]), 0.0) * (math.pi / 2)
    whole = jnp.round((2 * u[2:4].T - 1) / 8 * size[None]) * taken[2][:, None]
    scale, stretch = n[0] * taken[3], n[1] * taken[4]
    first, second = ((2 * u[i] - 1) * math.pi * (u[i + 2] < once) for i in (4, 5))
    part = n[2:].T / 8 * size[None] * taken[5][:, None]

    zero = jnp.zeros(batch)
    mirrored = jnp.stack([flip, zero, zero, jnp.ones(batch)], axis=-1).reshape(-1, 2, 2)
    before = mirrored @ rotation(turn)
    inverse = scaling(-scale, -scale) @ rotation(first)
    inverse = inverse @ scaling(-stretch, stretch) @ rotation(second)
    # Whole pixels are moved before the rest, which moves them on.
    return before @ inverse, part + jnp.einsum("bij,bj->bi", _inverted(inverse), whole)


def _inverted(matrix: Float[Array, "batch 2 2"]) -> Float[Array, "batch 2 2"]:
    a, b, c, d = matrix.reshape(-1, 4).T
    adjugate = jnp.stack([d, -b, -c, a], axis=-1).reshape(-1, 2, 2)
    return adjugate / (a * d - b * c)[:, None, None]


def _colors(
    key: Key[Array, ""], p: Array, x: Float[Array, "batch height width channels"]
) -> Float[Array, "batch height width channels"]:
    """All changes of colour at once: of a pixel's grey part, and of the rest, which turns."""
    batch = len(x)
    keys = jax.random.split(key, 3)
    taken = jax.random.uniform(keys[0], (5, batch)) < p
    u = jax.random.uniform(keys[1], (2, batch))
    n = jax.random.normal(keys[2], (3, batch)) * taken[:3]
    brighter, contrast, saturation = 0.2 * n[0], 2 ** (0.5 * n[1]), 2 ** n[2]
    sign = jnp.where(taken[3] & (u[0] < 0.5), -1.0, 1.0)
    hue = (2 * u[1] - 1) * math.pi * taken[4]

    def each(value: Array) -> Array:
        return value[:, None, None, None]

    grey = jnp.mean(x, axis=3, keepdims=True)
    y = each(sign) * (grey + each(brighter))
    if x.shape[3] == 1:
        return each(contrast) * y
    rest = x - grey
    turned = (jnp.roll(x, 1, axis=3) - jnp.roll(x, -1, axis=3)) / math.sqrt(3)
    rest = each(jnp.cos(hue)) * rest + each(jnp.sin(hue)) * turned
    return each(contrast) * (y + each(saturation) * rest)


class Adaptive(NamedTuple):
    """An augmentation whose probability follows the discriminator's overfitting.

    Attributes:
        images: Real images that the discriminator sees at a turn.
        transform: Function `(key, images, probability) -> images`, differentiable.
        target: Mean sign of the discriminator's logits on real images above which p rises.
        every: Turns from one change of p to the next.
        ramp: Images in which p can rise from 0 to 1.
    """

    images: int
    transform: Callable[[Key[Array, ""], Array, Array], Array] = ada_augment
    target: float = 0.6
    every: int = 4
    ramp: int = 500_000


def start() -> AdaptiveState:
    """The state before the first turn: a probability of 0."""
    return {"probability": jnp.zeros(()), "signs": jnp.zeros(()), "turns": jnp.int32(0)}


def follow(adaptive: Adaptive, state: AdaptiveState, sign: Float[Array, ""]) -> AdaptiveState:
    """The state after a turn: every few of them p rises or falls by one step of its ramp.

    p does not fall below 0. It may rise beyond 1, as in the authors' code, which then takes as many
    images to come back.

    Args:
        adaptive: Augmentation.
        state: State before the turn.
        sign: Mean sign of the discriminator's logits on the turn's real images.
    """
    signs, turns = state["signs"] + sign, state["turns"] + 1
    due: Int[Array, ""] = turns == adaptive.every
    size = adaptive.images * adaptive.every / adaptive.ramp
    step = size * jnp.sign(signs / adaptive.every - adaptive.target)
    moved = jnp.maximum(state["probability"] + step, 0)
    return {
        "probability": jnp.where(due, moved, state["probability"]),
        "signs": jnp.where(due, 0.0, signs),
        "turns": jnp.where(due, 0, turns),
    }


def check(adaptive: Adaptive) -> None:
    """Raise ValueError for an augmentation whose numbers are out of range.

    Args:
        adaptive: Augmentation.
    """
    for name in ("images", "every", "ramp"):
        if getattr(adaptive, name) < 1:
            raise ValueError(f"augment: {name} must be at least 1, got {getattr(adaptive, name)}")
    if not -1 <= adaptive.target <= 1:
        raise ValueError(f"augment: target must be in [-1, 1], got {adaptive.target}")
