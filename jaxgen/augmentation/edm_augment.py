"""Augmentation of training images that a diffusion model is informed of, so that it does not leak.

Karras et al. 2022 (EDM), appendix F.2: an image is mirrored, scaled, rotated, stretched or moved at
random, and nine labels tell the network what was done. They are zero of images as they are, and so
in sampling.

    images, labels = edm_augment(key, images, 0.12)
    output = network(images + noise, time, condition, labels)
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

NUM_LABELS = 9
"""Numbers that say what was done to an image."""

# The least asymmetric orthonormal wavelet of six vanishing moments (Daubechies 1992), its low-pass
# filter: of images it doubles the size, and halves it again without a loss.
_SYM6 = np.array(
    [
        0.015404109327, 0.003490712084, -0.117990111149, -0.048311742586,
        0.491055941928, 0.787641141029, 0.337929421728, -0.072637522786,
        -0.021060292512, 0.044724901771, 0.001767711864, -0.007800708325,
    ]
)  # fmt: skip
_PHASE = 5  # pixel i lies at the doubled image's place 2 i, entry k of the filter at 2 i - 5 + k


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
    inverse = _scaling(-scale, -scale) @ _rotation(angle)
    inverse = inverse @ _rotation(-along) @ _scaling(-stretch, stretch) @ _rotation(along)
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


def warp(
    images: Float[Array, "batch height width channels"],
    inverse: Float[Array, "batch 2 2"],
    shift: Float[Array, "batch 2"],
) -> Float[Array, "batch height width channels"]:
    """Each image at other places: pixel u shows what was at `inverse (u - shift)`.

    Places are (x, y) from the image's middle, in pixels. In between them images are what their
    doubling by an orthonormal wavelet says, interpolated linearly; the result is halved by the same
    wavelet, so that the identity and whole pixels change nothing (Karras et al. 2020, ADA, appendix
    B).

    Args:
        images: Images of at least 2x2 pixels, mirrored beyond their borders.
        inverse: Matrix from a pixel's place to that which it shows, of each image.
        shift: Pixels that each image is moved by.

    Raises:
        ValueError: Images too small.
    """
    _, height, width, _ = images.shape
    if min(height, width) < 2:
        raise ValueError(f"images must be of at least 2x2 pixels, got {height}x{width}")
    doubled = _along(_along(images, _doubling(height), 1), _doubling(width), 2)
    x, y = (_places(size) for size in (width, height))
    x, y = x[None, None] - shift[:, 0, None, None], y[None, :, None] - shift[:, 1, None, None]
    m = inverse[:, :, :, None, None]
    there_x, there_y = m[:, 0, 0] * x + m[:, 0, 1] * y, m[:, 1, 0] * x + m[:, 1, 1] * y
    moved = _bilinear(doubled, _index(there_y, height), _index(there_x, width))
    return _along(_along(moved, _halving(height), 1), _halving(width), 2)


def _rotation(angle: Float[Array, " batch"]) -> Float[Array, "batch 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)


def _scaling(x: Float[Array, " batch"], y: Float[Array, " batch"]) -> Float[Array, "batch 2 2"]:
    """By 2^(0.2 x) and 2^(0.2 y)."""
    zero = jnp.zeros_like(x)
    return jnp.stack([2 ** (0.2 * x), zero, zero, 2 ** (0.2 * y)], axis=-1).reshape(-1, 2, 2)


def _along(images: Array, matrix: np.ndarray, axis: int) -> Array:
    """A matrix applied to rows or columns."""
    product = jnp.tensordot(images, jnp.asarray(matrix, images.dtype), ((axis,), (1,)))
    return jnp.moveaxis(product, -1, axis)


@functools.cache
def _doubling(size: int) -> np.ndarray:
    """From the pixels of a line to twice as many places, over one period of the mirrored line."""
    period = 2 * (size - 1)
    matrix = np.zeros((2 * period, size))
    for i in range(period):
        for k, value in enumerate(_SYM6):
            matrix[(2 * i - _PHASE + k) % len(matrix), min(i, period - i)] += value
    return matrix


@functools.cache
def _halving(size: int) -> np.ndarray:
    """From places -5 .. 2 size + 4 to the pixels of a line: the transpose of the doubling."""
    matrix = np.zeros((size, 2 * size + 10))
    for i in range(size):
        matrix[i, 2 * i : 2 * i + 12] = _SYM6
    return matrix


def _places(size: int) -> Float[Array, " places"]:
    """The places that `_halving` reads, in pixels from the middle."""
    return (jnp.arange(2 * size + 10) - _PHASE) / 2 - (size - 1) / 2


def _index(place: Array, size: int) -> Array:
    """The index of a place among those of `_doubling`, not a whole one."""
    return 2 * (place + (size - 1) / 2)


def _bilinear(images: Array, y: Array, x: Array) -> Array:
    """Images at indices in between, f32[batch, rows, columns], periodic."""

    def ends(index: Array, size: int) -> tuple[tuple[Array, Array], Array]:
        below = jnp.floor(index)
        first = below.astype(jnp.int32) % size
        return (first, (first + 1) % size), (index - below)[..., None]

    (top, bottom), down = ends(y, images.shape[1])
    (left, right), across = ends(x, images.shape[2])

    def at(row: Array, column: Array) -> Array:
        return jax.vmap(lambda image, r, c: image[r, c])(images, row, column)

    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return upper * (1 - down) + lower * down
