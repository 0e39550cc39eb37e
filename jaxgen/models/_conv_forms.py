"""Equal forms of a convolution that are fast on a CPU, and the rules that choose between them.

XLA's CPU backend multiplies matrices at nearly the machine's peak, but its convolutions run at a
third to a half of that, its gradients of convolutions far below (and forty times slower still
inside a loop). So here every convolution is written as matrix products. A convolution sums, over
the taps of its kernel, a product of the displaced input with the tap's matrix:

    y[h] = sum_i x[h + i] w[i]

and along each axis the displacement may be done to the input before the product (*gathered*: the
product then contracts the taps as well), or to the output after it (*scattered*: the product then
makes the taps' outputs side by side). Gathering every axis is im2col, scattering every axis is
col2im, gathering columns and scattering rows lies between; `_fewest_copies` picks the split that
moves the least memory, so a first layer of three channels gathers and a last one scatters. The
kernel's gradient is the same product turned around. Four special cases do better still:

- three taps along the last axis, unit strides and enough channels: Winograd's F(4, 3) along that
  axis, half the multiplications, rounding twice that of a direct sum;
- one input channel a group (depthwise): a sum of displaced products, no matrix at all;
- holes between the input's elements (transposed convolution): one small convolution for each
  phase of the output (sub-pixel convolution), so no zeros are multiplied;
- the kernel's gradient under a stride: XLA's convolution in its canonical layout.

The choice depends on shapes alone. Everything here takes `[N, *space, C]` and `[*space, C / groups,
features]`, of any rank.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax import lax
from jaxtyping import Array


class Window(NamedTuple):
    """Everything about a convolution but its arrays: hashable, so static under `jit`.

    Attributes:
        size: the input's spatial shape.
        kernel: the kernel's spatial shape.
        strides: steps of the window.
        padding: zeros before and after (negative: cropped), counted after `spacing`.
        spacing: the input's elements stand this far apart, zeros between (`lhs_dilation`).
        dilation: the kernel's taps stand this far apart (`rhs_dilation`).
        groups: blocks of features that do not mix.
        winograd: allow F(4, 3). Without it an output depends on its own window's values alone, bit
            for bit, which causal networks need; with it, other inputs may move its rounding.
        precision: as `jax.lax.Precision`.
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
            sizes.append(max(0, (_dilated(n, e) + lo + hi - _dilated(k, d)) // s + 1))
        return tuple(sizes)

    @property
    def transposed(self) -> "Window":
        """The window of the gradient for the input: strides and spacing change places."""
        padding = []
        for n, o, k, s, (lo, _), e, d in _by_axis(self):
            reach, before = (k - 1) * d, (k - 1) * d - lo
            padding.append((before, _dilated(n, e) + reach - _dilated(o, s) - before))
        return self._replace(
            size=self.out, strides=self.spacing, spacing=self.strides, padding=tuple(padding)
        )


def _dilated(length: int, step: int) -> int:
    """The length of so many elements that stand `step` apart."""
    return (length - 1) * step + 1 if length else 0


def _by_axis(win: Window) -> Iterator[tuple]:
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


# Winograd's F(4, 3): y = A ((G w) * (B x)) makes 4 outputs of a 3-tap sum from 6 products instead
# of 12. Interpolation points 0, 1, -1, 1/2, -2 and infinity, which round half as much as the usual
# 0, 1, -1, 2, -2.
_TILE = 4
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

_FEW_CHANNELS = 16  # up to here copies of the array cost less than another form's many small steps
_WINOGRAD_CHANNELS = 32  # from here the saved multiplications outweigh the transforms
_CACHED = 1 << 22  # elements of intermediates kept at once: 16 MB, half a usual last-level cache


def convolve(x: Array, w: Array, win: Window) -> Array:
    """The convolution `[N, *size, C]`, `[*kernel, C / groups, O]` -> `[N, *out, O]`."""
    channels, features = x.shape[-1], w.shape[-1]
    if 0 in (*x.shape, *w.shape, *win.out):
        return lax.full((x.shape[0], *win.out, features), 0, x.dtype)
    if max(win.spacing) > 1 and max(win.strides) == 1:
        if features <= _FEW_CHANNELS and win.groups == 1:
            return _in_chunks(_product, x, w, win, ())
        return _subpixel(x, w, win)
    if win.groups == channels == features:
        return _depthwise(x, w, win)
    if _winograd_pays(win, channels, features):
        return _in_chunks(_winograd, x, w, win, (len(win.size) - 1,))
    return _in_chunks(_product, x, w, win, _fewest_copies(win, channels, features))


def kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    """The kernel's gradient, `[N, *size, C]`, `[N, *out, O]` -> `[*kernel, C / groups, O]`."""
    channels, features = x.shape[-1], dy.shape[-1]
    if 0 in (*x.shape, *dy.shape):
        return lax.full((*win.kernel, channels // win.groups, features), 0, x.dtype)
    if (
        max(win.spacing) > 1 and max(win.strides) == 1
    ):  # the roles of input and output change places
        return flip(kernel_gradient(dy, x, win.transposed), win)
    if win.groups == channels == features:
        return _depthwise_kernel_gradient(x, dy, win)
    if _winograd_pays(win, channels, features):
        return _sum_chunks(_winograd_kernel_gradient, x, dy, win, (len(win.size) - 1,))
    if win.groups == max(win.spacing) == 1 < max(win.strides) and channels > _FEW_CHANNELS:
        return _strided_kernel_gradient(x, dy, win)
    gather = _fewest_copies(win, channels, features)
    return _sum_chunks(_product_kernel_gradient, x, dy, win, gather)


def flip(w: Array, win: Window) -> Array:
    """The kernel of the gradient for the input: taps reversed, features and channels exchanged."""
    taps = tuple(range(len(win.kernel)))
    *space, channels, features = w.shape
    w = w.reshape(*space, channels, win.groups, features // win.groups)
    r = len(space)
    w = lax.transpose(lax.rev(w, taps), (*taps, r + 2, r + 1, r))
    return w.reshape(*space, features // win.groups, win.groups * channels)


def channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """The layout of all arrays here, as the library names it."""
    x = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(x, (rank + 1, rank, *range(rank)), x)


def lax_convolve(x: Array, w: Array, win: Window) -> Array:
    """The library's own convolution."""
    return lax.conv_general_dilated(
        x,
        w,
        win.strides,
        win.padding,
        win.spacing,
        win.dilation,
        channels_last(len(win.size)),
        win.groups,
        precision=win.precision,
    )


def lax_kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    """The library's own gradient for the kernel: a convolution that swaps batch and channels."""
    r = len(win.size)
    space = tuple(range(1, r + 1))
    numbers = lax.ConvDimensionNumbers(
        (r + 1, 0, *space), (r + 1, 0, *space), (r, r + 1, *range(r))
    )
    return lax.conv_general_dilated(
        x,
        dy,
        win.dilation,
        _kernel_gradient_padding(win),
        win.spacing,
        win.strides,
        numbers,
        batch_group_count=win.groups,
        precision=win.precision,
    )


def _kernel_gradient_padding(win: Window) -> list[tuple[int, int]]:
    padding = []
    for n, o, k, s, (lo, _), e, d in _by_axis(win):
        padding.append((lo, (k - 1) * d + _dilated(o, s) - _dilated(n, e) - lo))
    return padding


# --- the rules ------------------------------------------------------------------------------------


def _winograd_pays(win: Window, channels: int, features: int) -> bool:
    width = win.out[-1]
    return (
        win.winograd
        and len(win.size) <= 2
        and win.kernel[-1] == 3
        and max(*win.strides, *win.spacing, *win.dilation) == win.groups == 1
        and min(channels, features) >= _WINOGRAD_CHANNELS
        and 2 * _TILE * -(-width // _TILE) <= 3 * width  # at most a third of the tiles is waste
    )


def _fewest_copies(win: Window, channels: int, features: int) -> tuple[int, ...]:
    """The axes to gather: those for which gathered input and output to be scattered are least."""
    axes = range(len(win.size))
    if max(win.strides) > 1 or win.groups > 1:  # a scattered axis computes every row, strided or no
        return tuple(axes)

    def copies(gather: Sequence[int]) -> int:
        before = math.prod(win.kernel[a] for a in gather)
        return channels * before + features * (math.prod(win.kernel) // before)

    subsets = [s for n in range(len(axes) + 1) for s in itertools.combinations(axes, n)]
    return min(reversed(subsets), key=copies)


def _chunk(x: Array, features: int, win: Window, gather: Sequence[int]) -> int:
    """How many examples' intermediates fit the cache together; a divisor of the batch."""
    before = math.prod(win.kernel[a] for a in gather)
    after = math.prod(win.kernel) // before
    sizes = (
        o if a in gather else n for a, (n, o) in enumerate(zip(win.size, win.out, strict=True))
    )
    fit = _CACHED // (math.prod(sizes) * (before * x.shape[-1] + after * features))
    return next(n for n in range(min(max(fit, 1), x.shape[0]), 0, -1) if x.shape[0] % n == 0)


def _in_chunks(form: Callable, x: Array, w: Array, win: Window, gather: Sequence[int]) -> Array:
    """A form of the convolution, over slices of the batch that fit the cache."""
    chunk = _chunk(x, w.shape[-1], win, gather)
    if chunk == x.shape[0]:
        return form(x, w, win, gather)
    y = lax.map(lambda part: form(part, w, win, gather), x.reshape(-1, chunk, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _sum_chunks(form: Callable, x: Array, dy: Array, win: Window, gather: Sequence[int]) -> Array:
    """A form of the kernel's gradient, added up over slices of the batch that fit the cache."""
    chunk = _chunk(x, dy.shape[-1], win, gather)
    if chunk == x.shape[0]:
        return form(x, dy, win, gather)
    pairs = (x.reshape(-1, chunk, *x.shape[1:]), dy.reshape(-1, chunk, *dy.shape[1:]))
    zero = lax.full((*win.kernel, x.shape[-1] // win.groups, dy.shape[-1]), 0, x.dtype)
    return lax.scan(lambda dw, pair: (dw + form(*pair, win, gather), None), zero, pairs)[0]


# --- gathering, scattering and the product between ------------------------------------------------


def _pad(x: Array, axis: int, before: int, after: int, between: int = 0) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, between)
    return lax.pad(x, lax.full((), 0, x.dtype), config)


def _taps(x: Array, win: Window, axes: Sequence[int]) -> list[Array]:
    """The input as each tap of the given axes sees it, those axes of output size."""
    for a in axes:
        x = _pad(x, a + 1, *win.padding[a], win.spacing[a] - 1)
    views = []
    for tap in itertools.product(*(range(win.kernel[a]) for a in axes)):
        view = x
        for i, a in zip(tap, axes, strict=True):
            start, stride = i * win.dilation[a], win.strides[a]
            stop = start + _dilated(win.out[a], stride)
            view = lax.slice_in_dim(view, start, stop, stride, a + 1)
        views.append(view)
    return views


def _join(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, parts[0].ndim - 1)


def _scattered(win: Window, gather: Sequence[int]) -> list[int]:
    return [a for a in range(len(win.size)) if a not in gather]


def _scatter(z: Array, win: Window, axes: Sequence[int]) -> Array:
    """The sum of the taps' outputs, `[..., taps * O]` -> `[..., O]`, each moved to its place."""
    features = z.shape[-1] // math.prod(win.kernel[a] for a in axes)
    total: Array | None = None
    for t, tap in enumerate(itertools.product(*(range(win.kernel[a]) for a in axes))):
        part = lax.slice_in_dim(z, t * features, (t + 1) * features, axis=z.ndim - 1)
        for i, a in zip(tap, axes, strict=True):
            before = win.padding[a][0] - i * win.dilation[a]
            after = win.out[a] - _dilated(win.size[a], win.spacing[a]) - before
            part = _pad(part, a + 1, before, after, win.spacing[a] - 1)
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
            view = _pad(view, a + 1, before, win.size[a] - win.out[a] - before)
        views.append(view)
    return _join(views)


def _matrix(w: Array, gather: Sequence[int], scatter: Sequence[int]) -> Array:
    """The kernel as `[gathered taps * C, scattered taps * O]`."""
    r = w.ndim - 2
    rows = math.prod(w.shape[a] for a in gather) * w.shape[r]
    return lax.transpose(w, (*gather, r, *scatter, r + 1)).reshape(rows, -1)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _product(x: Array, w: Array, win: Window, gather: Sequence[int]) -> Array:
    if win.groups > 1:
        return _grouped_product(x, w, win)
    scatter = _scattered(win, gather)
    p = _join(_taps(x, win, gather))
    z = lax.dot(_rows(p), _matrix(w, gather, scatter), precision=win.precision)
    return _scatter(z.reshape(*p.shape[:-1], -1), win, scatter)


def _product_kernel_gradient(x: Array, dy: Array, win: Window, gather: Sequence[int]) -> Array:
    if win.groups > 1:
        return _grouped_kernel_gradient(x, dy, win)
    r, scatter = len(win.size), _scattered(win, gather)
    p, q = _rows(_join(_taps(x, win, gather))), _rows(_spread(dy, win, scatter))
    dw = lax.dot_general(p, q, (((0,), (0,)), ((), ())), precision=win.precision)
    order = (*gather, r, *scatter, r + 1)
    shape = (*win.kernel, x.shape[-1], dy.shape[-1])
    return lax.transpose(dw.reshape([shape[a] for a in order]), np.argsort(order))


def _grouped_product(x: Array, w: Array, win: Window) -> Array:
    axes, channels, features = range(len(win.size)), x.shape[-1], w.shape[-1]
    p = _join(_taps(x, win, axes)).reshape(-1, math.prod(win.kernel), win.groups, w.shape[-2])
    m = w.reshape(math.prod(win.kernel), channels // win.groups, win.groups, -1)
    y = lax.dot_general(p, m, (((1, 3), (0, 1)), ((2,), (2,))), precision=win.precision)
    return lax.transpose(y, (1, 0, 2)).reshape(x.shape[0], *win.out, features)


def _grouped_kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    axes, channels, features = range(len(win.size)), x.shape[-1], dy.shape[-1]
    p = _join(_taps(x, win, axes))
    p = p.reshape(-1, math.prod(win.kernel), win.groups, channels // win.groups)
    q = dy.reshape(-1, win.groups, features // win.groups)
    dw = lax.dot_general(p, q, (((0,), (0,)), ((2,), (1,))), precision=win.precision)
    return lax.transpose(dw, (1, 2, 0, 3)).reshape(*win.kernel, channels // win.groups, features)


# --- special cases --------------------------------------------------------------------------------


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
    x = _pad(x, axis, before, _TILE * (tiles + (count > _TILE)) - width - before)
    x = x.reshape(*lead, -1, _TILE * channels)
    views = []
    for j in range(count):
        start = (j % _TILE) * channels
        view = lax.slice_in_dim(x, start, start + channels, axis=axis + 1)
        views.append(lax.slice_in_dim(view, j // _TILE, j // _TILE + tiles, axis=axis))
    return views


def _winograd(x: Array, w: Array, win: Window, gather: Sequence[int]) -> Array:
    (last,), scatter = gather, _scattered(win, gather)
    tiles = -(-win.out[last] // _TILE)
    views = _tiles(x, win.padding[last][0], tiles, len(_B))
    taps = [lax.index_in_dim(w, i, last, keepdims=True) for i in range(3)]
    z = []
    for b, g in zip(_B, _G, strict=True):
        p, m = _combine(b, views), _matrix(_combine(g, taps), gather, scatter)
        z.append(lax.dot(_rows(p), m, precision=win.precision).reshape(*p.shape[:-1], -1))
    y = _join([_scatter(_combine(a, z), win, scatter) for a in _A])
    y = y.reshape(*y.shape[:-2], _TILE * tiles, w.shape[-1])
    return lax.slice_in_dim(y, 0, win.out[last], axis=last + 1)


def _winograd_kernel_gradient(x: Array, dy: Array, win: Window, gather: Sequence[int]) -> Array:
    (last,), scatter = gather, _scattered(win, gather)
    r, tiles = len(win.size), -(-win.out[last] // _TILE)
    views = _tiles(x, win.padding[last][0], tiles, len(_B))
    dviews = _tiles(dy, 0, tiles, _TILE)
    products = []
    for b, a in zip(_B, _A.T, strict=True):
        p, q = _rows(_combine(b, views)), _rows(_spread(_combine(a, dviews), win, scatter))
        products.append(lax.dot_general(p, q, (((0,), (0,)), ((), ())), precision=win.precision))
    shape = (x.shape[-1], *(win.kernel[a] for a in scatter), dy.shape[-1])
    taps = [_combine(g, products).reshape(1, *shape) for g in _G.T]
    order = (last, r, *scatter, r + 1)
    return lax.transpose(lax.concatenate(taps, 0), np.argsort(order))


def _depthwise(x: Array, w: Array, win: Window) -> Array:
    total: Array | None = None
    for view, tap in zip(_taps(x, win, range(len(win.size))), _rows(w), strict=True):
        term = view * lax.broadcast_in_dim(tap, view.shape, (x.ndim - 1,))
        total = term if total is None else total + term
    assert total is not None
    return total


def _depthwise_kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    views = _taps(x, win, range(len(win.size)))
    summed = tuple(range(x.ndim - 1))
    dw = lax.concatenate([lax.reduce_sum(view * dy, summed)[None] for view in views], 0)
    return dw.reshape(*win.kernel, 1, dy.shape[-1])


def _subpixel(x: Array, w: Array, win: Window) -> Array:
    """One convolution for each phase of the output along the first spaced axis, interleaved."""
    axis = next(a for a, e in enumerate(win.spacing) if e > 1)
    e, d, k = win.spacing[axis], win.dilation[axis], win.kernel[axis]
    length, lo = -(-win.out[axis] // e), win.padding[axis][0]
    step = e // math.gcd(d, e)  # from one tap of a phase to the next
    parts = []
    for phase in range(e):
        first = next((i for i in range(k) if (phase + i * d - lo) % e == 0), None)
        if first is None:  # no tap meets an element of the input here
            shape = [length if a == axis else n for a, n in enumerate(win.out)]
            parts.append(lax.full((x.shape[0], *shape, w.shape[-1]), 0, x.dtype))
            continue
        taps = lax.slice_in_dim(w, first, k, step, axis)
        before = -((phase + first * d - lo) // e)
        dilation = d * step // e
        reach = (taps.shape[axis] - 1) * dilation
        part = win._replace(
            kernel=_put(win.kernel, axis, taps.shape[axis]),
            spacing=_put(win.spacing, axis, 1),
            dilation=_put(win.dilation, axis, dilation),
            padding=_put(win.padding, axis, (before, length + reach - win.size[axis] - before)),
        )
        parts.append(convolve(x, taps, part))
    y = lax.concatenate(parts, axis + 2)
    y = y.reshape(*y.shape[: axis + 1], e * length, y.shape[axis + 2] // e, *y.shape[axis + 3 :])
    return lax.slice_in_dim(y, 0, win.out[axis], axis=axis + 1)


def _put(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _strided_kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    """`lax_kernel_gradient` in the canonical layout, the only one XLA's CPU backend is fast in."""
    r = len(win.size)
    space = tuple(range(1, r + 1))
    padding = _kernel_gradient_padding(win)
    for a, (before, after) in zip(space, padding, strict=True):
        x = _pad(x, a, min(before, 0), min(after, 0))  # that backend reads past the end if left to
    turned = win._replace(
        strides=win.dilation,
        dilation=win.strides,
        padding=tuple((max(before, 0), max(after, 0)) for before, after in padding),
    )
    x, dy = lax.transpose(x, (r + 1, *space, 0)), lax.transpose(dy, (*space, 0, r + 1))
    return lax.transpose(lax_convolve(x, dy, turned), (*space, 0, r + 1))
