"""A convolution as products of matrices: the forms that `jaxgen.models.conv.forms` chooses from.

A convolution sums, over the taps of its kernel, the displaced input times the tap's matrix,

    y[h] = sum_i x[h + i] w[i]

and along each axis the displacement may be done to the input before the product (*gathered*: the
product then sums over these taps as well) or to the output after it (*scattered*: the product then
makes these taps' outputs side by side). Gathering every axis is im2col, scattering every axis is
col2im. The kernel's gradient is the same product turned around.

Every form takes `(x, kernel, win, gather)`, or `(x, dy, win, gather)` for the kernel's gradient,
with `gather` the axes to gather.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax import lax
from jaxtyping import Array


class Window(NamedTuple):
    """Everything about a convolution but its arrays: hashable, so static under `jit`.

    Attributes:
        size: Spatial shape of the input.
        kernel: Spatial shape of the kernel.
        strides: Steps of the window.
        padding: Zeros before and after (negative: cropped), counted after `spacing`.
        spacing: Distance between the input's elements, with zeros between (`lhs_dilation`).
        dilation: Distance between the kernel's taps (`rhs_dilation`).
        groups: Number of blocks of features that do not mix.
        winograd: Whether F(4, 3) is allowed. Without it an output depends on its own window's
            values alone, bit for bit, which causal networks need; with it, other inputs may move
            its rounding.
        precision: Precision of the products, a `jax.lax.Precision`.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    spacing: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    winograd: bool = True
    precision: lax.PrecisionLike = None

    @property
    def out(self) -> tuple[int, ...]:
        """The output's spatial shape."""
        sizes = []
        for n, k, s, (lo, hi), e, d in zip(
            self.size,
            self.kernel,
            self.strides,
            self.padding,
            self.spacing,
            self.dilation,
            strict=True,
        ):
            sizes.append(max(0, (dilated(n, e) + lo + hi - dilated(k, d)) // s + 1))
        return tuple(sizes)

    @property
    def transposed(self) -> "Window":
        """The window of the gradient for the input: strides and spacing change places."""
        padding = []
        for n, o, k, s, (lo, _), e, d in by_axis(self):
            reach, before = (k - 1) * d, (k - 1) * d - lo
            padding.append((before, dilated(n, e) + reach - dilated(o, s) - before))
        return self._replace(
            size=self.out, strides=self.spacing, spacing=self.strides, padding=tuple(padding)
        )


def dilated(length: int, step: int) -> int:
    """The length of so many elements that stand `step` apart."""
    return (length - 1) * step + 1 if length else 0


def by_axis(win: Window) -> Iterator[tuple]:
    """(size, out, kernel, stride, padding, spacing, dilation) of each spatial axis."""
    return zip(
        win.size,
        win.out,
        win.kernel,
        win.strides,
        win.padding,
        win.spacing,
        win.dilation,
        strict=True,
    )


def pad(x: Array, axis: int, before: int, after: int, between: int = 0) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, between)
    return lax.pad(x, lax.full((), 0, x.dtype), config)


def _taps(x: Array, win: Window, axes: Sequence[int]) -> list[Array]:
    """The input as each tap of the given axes sees it, those axes of output size."""
    for a in axes:
        x = pad(x, a + 1, *win.padding[a], win.spacing[a] - 1)
    views = []
    for tap in itertools.product(*(range(win.kernel[a]) for a in axes)):
        view = x
        for i, a in zip(tap, axes, strict=True):
            start, stride = i * win.dilation[a], win.strides[a]
            stop = start + dilated(win.out[a], stride)
            view = lax.slice_in_dim(view, start, stop, stride, a + 1)
        views.append(view)
    return views


def _join(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, parts[0].ndim - 1)


def scattered(win: Window, gather: Sequence[int]) -> list[int]:
    return [a for a in range(len(win.size)) if a not in gather]


def _scatter(z: Array, win: Window, axes: Sequence[int]) -> Array:
    """The sum of the taps' outputs, `[..., taps * O]` -> `[..., O]`, each moved to its place."""
    features = z.shape[-1] // math.prod(win.kernel[a] for a in axes)
    total: Array | None = None
    for t, tap in enumerate(itertools.product(*(range(win.kernel[a]) for a in axes))):
        part = lax.slice_in_dim(z, t * features, (t + 1) * features, axis=z.ndim - 1)
        for i, a in zip(tap, axes, strict=True):
            before = win.padding[a][0] - i * win.dilation[a]
            after = win.out[a] - dilated(win.size[a], win.spacing[a]) - before
            part = pad(part, a + 1, before, after, win.spacing[a] - 1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _spread(dy: Array, win: Window, axes: Sequence[int]) -> Array:
    """The transpose of `_scatter`: the output's gradient as each tap sees it, side by side."""
    views = []
    for tap in itertools.product(*(range(win.kernel[a]) for a in axes)):
        view = dy
        for i, a in zip(tap, axes, strict=True):
            before = i * win.dilation[a] - win.padding[a][0]
            view = pad(view, a + 1, before, win.size[a] - win.out[a] - before)
        views.append(view)
    return _join(views)


def matrix(w: Array, gather: Sequence[int]) -> Array:
    """The kernel as `[gathered taps * C, scattered taps * O]`."""
    r = w.ndim - 2
    scatter = [a for a in range(r) if a not in gather]
    rows = math.prod(w.shape[a] for a in gather) * w.shape[r]
    return lax.transpose(w, (*gather, r, *scatter, r + 1)).reshape(rows, -1)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def product(x: Array, m: Array, win: Window, gather: Sequence[int]) -> Array:
    """The convolution with a kernel laid out by `matrix`."""
    p = _join(_taps(x, win, gather))
    z = lax.dot(_rows(p), m, precision=win.precision)
    return _scatter(z.reshape(*p.shape[:-1], -1), win, scattered(win, gather))


def product_kernel_gradient(x: Array, dy: Array, win: Window, gather: Sequence[int]) -> Array:
    """The gradient for the kernel, whose layout `matrix` had changed."""
    r, scatter = len(win.size), scattered(win, gather)
    p, q = _rows(_join(_taps(x, win, gather))), _rows(_spread(dy, win, scatter))
    dw = lax.dot_general(p, q, (((0,), (0,)), ((), ())), precision=win.precision)
    order = (*gather, r, *scatter, r + 1)
    shape = (*win.kernel, x.shape[-1], dy.shape[-1])
    return lax.transpose(dw.reshape([shape[a] for a in order]), np.argsort(order))


def grouped_product(x: Array, w: Array, win: Window, _: Sequence[int]) -> Array:
    axes, channels, features = range(len(win.size)), x.shape[-1], w.shape[-1]
    p = _join(_taps(x, win, axes)).reshape(-1, math.prod(win.kernel), win.groups, w.shape[-2])
    m = w.reshape(math.prod(win.kernel), channels // win.groups, win.groups, -1)
    y = lax.dot_general(p, m, (((1, 3), (0, 1)), ((2,), (2,))), precision=win.precision)
    return lax.transpose(y, (1, 0, 2)).reshape(x.shape[0], *win.out, features)


def grouped_kernel_gradient(x: Array, dy: Array, win: Window, _: Sequence[int]) -> Array:
    axes, channels, features = range(len(win.size)), x.shape[-1], dy.shape[-1]
    p = _join(_taps(x, win, axes))
    p = p.reshape(-1, math.prod(win.kernel), win.groups, channels // win.groups)
    q = dy.reshape(-1, win.groups, features // win.groups)
    dw = lax.dot_general(p, q, (((0,), (0,)), ((2,), (1,))), precision=win.precision)
    return lax.transpose(dw, (1, 2, 0, 3)).reshape(*win.kernel, channels // win.groups, features)


def depthwise(x: Array, w: Array, win: Window, _: Sequence[int]) -> Array:
    total: Array | None = None
    for view, tap in zip(_taps(x, win, range(len(win.size))), _rows(w), strict=True):
        term = view * lax.broadcast_in_dim(tap, view.shape, (x.ndim - 1,))
        total = term if total is None else total + term
    assert total is not None
    return total


def depthwise_kernel_gradient(x: Array, dy: Array, win: Window, _: Sequence[int]) -> Array:
    views = _taps(x, win, range(len(win.size)))
    summed = tuple(range(x.ndim - 1))
    dw = lax.concatenate([lax.reduce_sum(view * dy, summed)[None] for view in views], 0)
    return dw.reshape(*win.kernel, 1, dy.shape[-1])


# Winograd's F(4, 3): y = A ((G w) * (B x)) makes 4 outputs of a 3-tap sum from 6 products instead
# of 12. Interpolation points 0, 1, -1, 1/2, -2 and infinity, which round half as much as the usual
# 0, 1, -1, 2, -2.
TILE = 4
_A = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 1 / 2, -2, 0], [0, 1, 1, 1 / 4, 4, 0], [0, 1, -1, 1 / 8, -8, 1]]
)
_B = np.array(
    [
        [2, -3, -4, 3, 2, 0],
        [0, -2, 1, 5, 2, 0],
        [0, -2, 5, -1, -2, 0],
        [0, 2, 1, -2, -1, 0],
        [0, 1, -2, -1, 2, 0],
        [0, 2, -3, -4, 3, 2],
    ]
)
_G = np.array(
    [
        [1 / 2, 0, 0],
        [1 / 6, 1 / 6, 1 / 6],
        [1 / 6, -1 / 6, 1 / 6],
        [16 / 15, 8 / 15, 4 / 15],
        [1 / 30, -1 / 15, 2 / 15],
        [0, 0, 1 / 2],
    ]
)


def _combine(weights: np.ndarray, parts: Sequence[Array]) -> Array:
    """`sum_i weights[i] parts[i]`, without the terms of weight zero."""
    total: Array | None = None
    for weight, part in zip(weights.tolist(), parts, strict=True):
        if weight:
            term = part if weight == 1 else part * weight
            total = term if total is None else total + term
    assert total is not None
    return total


def _tiles(x: Array, before: int, tiles: int, count: int) -> list[Array]:
    """The `count` strided views `x[..., 4 t + j, :]`, with zeros around."""
    *lead, width, channels = x.shape
    axis = x.ndim - 2
    x = pad(x, axis, before, TILE * (tiles + (count > TILE)) - width - before)
    x = x.reshape(*lead, -1, TILE * channels)
    views = []
    for j in range(count):
        start = (j % TILE) * channels
        view = lax.slice_in_dim(x, start, start + channels, axis=axis + 1)
        views.append(lax.slice_in_dim(view, j // TILE, j // TILE + tiles, axis=axis))
    return views


def winograd_kernel(w: Array, gather: Sequence[int]) -> tuple[Array, ...]:
    """The six matrices `G w`, each laid out by `matrix`."""
    (last,) = gather
    taps = [lax.index_in_dim(w, i, last, keepdims=True) for i in range(3)]
    return tuple(matrix(_combine(g, taps), gather) for g in _G)


def winograd(x: Array, ms: Sequence[Array], win: Window, gather: Sequence[int]) -> Array:
    """The convolution by F(4, 3) along the last axis, the others scattered."""
    (last,), scatter = gather, scattered(win, gather)
    tiles = -(-win.out[last] // TILE)
    views = _tiles(x, win.padding[last][0], tiles, len(_B))
    z = []
    for b, m in zip(_B, ms, strict=True):
        p = _combine(b, views)
        z.append(lax.dot(_rows(p), m, precision=win.precision).reshape(*p.shape[:-1], -1))
    y = _join([_scatter(_combine(a, z), win, scatter) for a in _A])
    y = y.reshape(*y.shape[:-2], TILE * tiles, -1)
    return lax.slice_in_dim(y, 0, win.out[last], axis=last + 1)


def winograd_kernel_gradient(x: Array, dy: Array, win: Window, gather: Sequence[int]) -> Array:
    """The gradient for the kernel `w` of `winograd_kernel`, by the same six products."""
    (last,), scatter = gather, scattered(win, gather)
    r, tiles = len(win.size), -(-win.out[last] // TILE)
    views = _tiles(x, win.padding[last][0], tiles, len(_B))
    dviews = _tiles(dy, 0, tiles, TILE)
    products = []
    for b, a in zip(_B, _A.T, strict=True):
        p, q = _rows(_combine(b, views)), _rows(_spread(_combine(a, dviews), win, scatter))
        products.append(lax.dot_general(p, q, (((0,), (0,)), ((), ())), precision=win.precision))
    shape = (x.shape[-1], *(win.kernel[a] for a in scatter), dy.shape[-1])
    taps = [_combine(g, products).reshape(1, *shape) for g in _G.T]
    order = (last, r, *scatter, r + 1)
    return lax.transpose(lax.concatenate(taps, 0), np.argsort(order))
