"""Images at other places: the affine maps of augmentations, by a wavelet that loses nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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


def rotation(angle: Float[Array, " batch"]) -> Float[Array, "batch 2 2"]:
    """The matrices that turn places by angles.

    Args:
        angle: Angles in radians.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)


def scaling(x: Float[Array, " batch"], y: Float[Array, " batch"]) -> Float[Array, "batch 2 2"]:
    """The matrices that stretch places by 2^(0.2 x) and 2^(0.2 y).

    Args:
        x: Exponents across, in units of 0.2.
        y: Exponents down.
    """
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
