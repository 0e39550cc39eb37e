"""Halving and doubling images: by a finite impulse response (FIR) filter, by shuffled channels.

The filters are separable, symmetric and of an even number of taps: `BOX`, of mean pooling and
nearest neighbours, or `BINOMIAL`, which aliases less (Zhang 2019, "Making Convolutional Networks
Shift-Invariant Again"; NCSN++, Song et al. 2021, appendix H; StyleGAN2). All are sums of shifted
images, fast on every backend and differentiable in both modes.
"""

import operator
from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

BOX = (1, 1)
"""Means of two pixels; doubling repeats each pixel."""

BINOMIAL = (1, 3, 3, 1)
"""The binomial filter of four taps."""


def downsample(
    x: Float[Array, "batch height width channels"], taps: Sequence[int] = BOX
) -> Float[Array, "batch height2 width2 channels"]:
    r"""Filters and keeps every other pixel, along both axes.

    $$y_i = \sum_{k=0}^{K-1} f_k\, x_{2i + k - (K/2 - 1)}$$ with the taps' sum scaled to 1 and zeros
    beyond the border.

    Args:
        x: Images of even height and width.
        taps: The filter, symmetric and of an even number of taps.

    Returns:
        Images of half the height and width.

    Raises:
        ValueError: If a side is odd or the filter is another.
    """
    weights = _weights(taps)
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"x: height and width must be even to be halved, got {height}x{width}")
    if tuple(taps) == BOX:
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    reach = len(weights) // 2 - 1
    for axis in (1, 2):
        x = _filter(x, weights, axis, reach, stride=2)
    return x


def upsample(
    x: Float[Array, "batch height width channels"], taps: Sequence[int] = BOX
) -> Float[Array, "batch height2 width2 channels"]:
    r"""Puts a zero after every pixel and filters, along both axes; the transpose of `downsample`.

    $$y_j = 2 \sum_{k=0}^{K-1} f_k\, u_{j + k - K/2}, \quad u_{2i} = x_i, \quad u_{2i+1} = 0$$ with
    the taps' sum scaled to 1 and zeros beyond the border. A constant image stays that within the
    border.

    Args:
        x: Images.
        taps: The filter, symmetric and of an even number of taps.

    Returns:
        Images of twice the height and width.

    Raises:
        ValueError: If the filter is another.
    """
    weights = _weights(taps)
    batch, height, width, channels = x.shape
    if tuple(taps) == BOX:
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        return x.reshape(batch, 2 * height, 2 * width, channels)
    for axis in (1, 2):
        x = _double(x, [2 * weight for weight in weights], axis)
    return x


def pixel_shuffle(
    x: Float[Array, "batch height width channels"], factor: int = 2
) -> Float[Array, "batch height2 width2 channels2"]:
    r"""Channels become pixels (Shi et al. 2016, eq. 4).

    $$y_{ri + a,\,rj + b,\,c} = x_{i,\,j,\,r^2 c + r a + b}$$ with r the factor. A convolution
    before it is a transposed one of stride r, whose overlaps are even.

    Args:
        x: Images whose channels are a multiple of `factor^2`.
        factor: Number of pixels along each side that a pixel becomes, at least 1.

    Returns:
        Images of `factor` times the height and width, of `factor^2` times fewer channels.

    Raises:
        ValueError: If the factor is below 1 or its square does not divide the channels.
    """
    batch, height, width, channels = x.shape
    if factor < 1 or channels % factor**2:
        raise ValueError(
            f"factor must be at least 1, and its square must divide the {channels} channels, got "
            f"{factor}"
        )
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * factor, width * factor, -1)


def smooth(
    x: Float[Array, "batch height width channels"], taps: Sequence[int], reach: int
) -> Float[Array, "batch height2 width2 channels"]:
    r"""Filters along both axes at every place, also beyond the border, where the image is zero.

    $$y_i = \sum_{k=0}^{K-1} f_k\, x_{i + k - r}$$ for i from 0 to `size + 2 reach - K`. Before a
    convolution of stride 2 without padding, this makes one that does not alias.

    Args:
        x: Images.
        taps: The filter, symmetric and of an even number of taps.
        reach: Number of zeros, r, that stand on each side of the image.

    Returns:
        Images of `size + 2 reach - K + 1` pixels, K the number of taps.

    Raises:
        ValueError: If the filter is another.
    """
    weights = _weights(taps)
    for axis in (1, 2):
        x = _filter(x, weights, axis, reach, stride=1)
    return x


def _weights(taps: Sequence[int]) -> list[float]:
    """The taps, scaled to the sum 1."""
    even = len(taps) > 0 and len(taps) % 2 == 0
    if not even or list(taps) != list(taps)[::-1] or not sum(taps) > 0:
        raise ValueError(
            f"taps must be an even number of symmetric taps of a positive sum, such as {BINOMIAL}, "
            f"got {tuple(taps)}"
        )
    return [tap / sum(taps) for tap in taps]


def _filter(x: Array, weights: list[float], axis: int, reach: int, stride: int) -> Array:
    """The sum of the image's shifted copies, of every `stride`th pixel."""
    length = x.shape[axis] + 2 * reach - len(weights) + 1
    x = _pad(x, axis, reach)
    copies = (
        weight * lax.slice_in_dim(x, k, k + length, stride, axis)
        for k, weight in enumerate(weights)
    )
    return reduce(operator.add, copies)


def _double(x: Array, weights: list[float], axis: int) -> Array:
    """Doubles one axis: even and odd pixels each take every other tap."""
    half = len(weights) // 2  # taps of each phase
    size, before = x.shape[axis], (half + 1) // 2
    padded = _pad(x, axis, before)
    phases = []
    for phase in (0, 1):
        # y[2i + phase] takes tap k of x[i + (phase + k - half) / 2], where that is a whole number.
        first = (half + phase) % 2
        shifts = [before + (phase + k - half) // 2 for k in range(first, len(weights), 2)]
        copies = (
            weight * lax.slice_in_dim(padded, shift, shift + size, 1, axis)
            for shift, weight in zip(shifts, weights[first::2], strict=True)
        )
        phases.append(reduce(operator.add, copies))
    doubled = jnp.stack(phases, axis + 1)
    return doubled.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _pad(x: Array, axis: int, reach: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (reach, reach)
    return jnp.pad(x, widths)
