"""Equal forms of a convolution that are fast on a CPU, and the rules that choose between them.

XLA's CPU backend multiplies matrices at nearly the machine's peak. Its convolutions come close to
that only in their canonical layout with whole kernels, far from it elsewhere (and its gradients are
forty times slower still inside a loop). So here the first of these rules that fits decides:

- holes between the input's elements (transposed convolution): one small convolution for each phase
  of the output (sub-pixel convolution), so no zeros are multiplied; to few features, scattered;
- one channel and one feature a group (depthwise): a sum of displaced products, no matrix at all;
- three taps along the last axis, unit steps and much work: Winograd's F(4, 3) along that axis,
  half the multiplications, its rounding twice that of a direct sum;
- a kernel larger than its input: one product of matrices, for XLA's own is a hundred times slower;
- a convolution to more than a few features: XLA's own, and for the kernel's gradient too where
  there is a stride or little work, in its canonical layout;
- all else, as one product of matrices (`jaxgen.models.conv.products`), the one that moves least
  memory: a 1x1 kernel, a last layer of three features, a large kernel's gradient.

The choice depends on shapes alone. Everything here takes `[N, *space, C]` and `[*space, C / groups,
features]`, of any rank.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array

from jaxgen.models.conv import products
from jaxgen.models.conv.products import TILE, Window, by_axis, dilated, pad

_FEW_CHANNELS = 16  # up to here copies of the array cost less than another form's many small steps
_WINOGRAD_CHANNELS = 32  # from here on the products take longer than the transforms around them
_MUCH_WORK = 1 << 28  # multiplications; with fewer no form repays the time that it takes to compile
_CACHED = 1 << 22  # elements of intermediates kept at once: 16 MB, half a usual last-level cache

Axes = tuple[int, ...]
Form = Callable[..., Array]


def convolve(x: Array, w: Array, win: Window) -> Array:
    """The convolution `[N, *size, C]`, `[*kernel, C / groups, O]` -> `[N, *out, O]`."""
    channels, features = x.shape[-1], w.shape[-1]
    if 0 in (*x.shape, *w.shape, *win.out):
        return lax.full((x.shape[0], *win.out, features), 0, x.dtype)
    if max(win.spacing) > 1 and max(win.strides) == 1:
        if features <= _FEW_CHANNELS and win.groups == 1:
            return _run(products.product, x, products.matrix(w, ()), win, (), features)
        return _subpixel(x, w, win)
    if win.groups == channels == features:
        return _run(products.depthwise, x, w, win, _all(win), features)
    if win.groups > 1:
        return _run(products.grouped_product, x, w, win, _all(win), features)
    if _winograd_pays(win, x.shape[0], channels, features):
        ms = products.winograd_kernel(w, _last(win))
        return _run(products.winograd, x, ms, win, _last(win), features)
    fits = all(k <= n for k, n in zip(win.kernel, win.size, strict=True))
    if max(win.spacing) == 1 < math.prod(win.kernel) and features > _FEW_CHANNELS and fits:
        return _cropped_convolve(x, w, win)
    gather = _fewest_copies(win, channels, features) if fits else _all(win)
    return _run(products.product, x, products.matrix(w, gather), win, gather, features)


def kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    """The kernel's gradient, `[N, *size, C]`, `[N, *out, O]` -> `[*kernel, C / groups, O]`."""
    channels, features = x.shape[-1], dy.shape[-1]
    if 0 in (*x.shape, *dy.shape):
        return lax.full((*win.kernel, channels // win.groups, features), 0, x.dtype)
    if max(win.spacing) > 1 and max(win.strides) == 1:  # input and output change their roles
        return flip(kernel_gradient(dy, x, win.transposed), win)
    if win.groups == channels == features:
        return _add_up(products.depthwise_kernel_gradient, x, dy, win, _all(win))
    if win.groups > 1:
        return _add_up(products.grouped_kernel_gradient, x, dy, win, _all(win))
    if _winograd_pays(win, x.shape[0], channels, features):
        return _add_up(products.winograd_kernel_gradient, x, dy, win, _last(win))
    if max(win.spacing) == 1 < math.prod(win.kernel) and (
        max(win.strides) > 1 or not _much_work(win, x.shape[0], channels, features)
    ):
        return _canonical_kernel_gradient(x, dy, win)
    gather = _fewest_copies(win, channels, features)
    return _add_up(products.product_kernel_gradient, x, dy, win, gather)


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
    for n, o, k, s, (lo, _), e, d in by_axis(win):
        padding.append((lo, (k - 1) * d + dilated(o, s) - dilated(n, e) - lo))
    return padding


# --- the rules ------------------------------------------------------------------------------------


def _all(win: Window) -> Axes:
    return tuple(range(len(win.size)))


def _last(win: Window) -> Axes:
    return (len(win.size) - 1,)


def _much_work(win: Window, batch: int, channels: int, features: int) -> bool:
    return batch * math.prod((*win.out, *win.kernel)) * channels * features >= _MUCH_WORK


def _winograd_pays(win: Window, batch: int, channels: int, features: int) -> bool:
    width = win.out[-1]
    return (
        win.winograd
        and len(win.size) <= 2
        and win.kernel[-1] == 3
        and max(*win.strides, *win.spacing, *win.dilation) == 1
        and min(channels, features) >= _WINOGRAD_CHANNELS
        and batch * math.prod(win.out) >= max(channels, features)  # else the kernel costs more
        and 2 * TILE * -(-width // TILE) <= 3 * width  # at most a third of the tiles is waste
        and _much_work(win, batch, channels, features)
    )


def _fewest_copies(win: Window, channels: int, features: int) -> Axes:
    """The axes to gather: those for which gathered input and output to be scattered are least."""
    if max(win.strides) > 1:  # a scattered axis computes the rows between the strides too
        return _all(win)

    def copies(gather: Sequence[int]) -> int:
        before = math.prod(win.kernel[a] for a in gather)
        return channels * before + features * (math.prod(win.kernel) // before)

    axes = _all(win)
    subsets = [s for n in range(len(axes) + 1) for s in itertools.combinations(axes, n)]
    return min(reversed(subsets), key=copies)


# --- running a form -------------------------------------------------------------------------------


def _chunk(x: Array, features: int, win: Window, gather: Sequence[int]) -> int:
    """How many examples' intermediates fit the cache together; a divisor of the batch."""
    before = math.prod(win.kernel[a] for a in gather)
    after = math.prod(win.kernel) // before
    sizes = zip(win.size, win.out, strict=True)
    rows = math.prod(out if a in gather else size for a, (size, out) in enumerate(sizes))
    fit = _CACHED // (rows * (before * x.shape[-1] + after * features))
    return next(n for n in range(min(max(fit, 1), x.shape[0]), 0, -1) if x.shape[0] % n == 0)


def _apart() -> AbstractContextManager:
    """Has XLA compile the functions called inside it apart from what surrounds them.

    Otherwise its CPU backend fuses whatever made the operands into each of a form's many readers of
    them, and computes it as many times over (measured: half the speed of a residual block).
    """
    return set_xla_metadata(inlineable="false")


@partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _map(form: Form, x: Array, kernel: Any, win: Window, gather: Axes, chunk: int) -> Array:
    if chunk == x.shape[0]:
        return form(x, kernel, win, gather)
    slices = x.reshape(-1, chunk, *x.shape[1:])
    y = lax.map(lambda part: form(part, kernel, win, gather), slices)
    return y.reshape(-1, *y.shape[2:])


@partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _sum(form: Form, x: Array, dy: Array, win: Window, gather: Axes, chunk: int) -> Array:
    if chunk == x.shape[0]:
        return form(x, dy, win, gather)
    pairs = (x.reshape(-1, chunk, *x.shape[1:]), dy.reshape(-1, chunk, *dy.shape[1:]))
    zero = lax.full((*win.kernel, x.shape[-1] // win.groups, dy.shape[-1]), 0, x.dtype)
    return lax.scan(lambda dw, pair: (dw + form(*pair, win, gather), None), zero, pairs)[0]


def _run(form: Form, x: Array, kernel: Any, win: Window, gather: Axes, features: int) -> Array:
    """A form of the convolution, over slices of the batch that fit the cache."""
    with _apart():
        return _map(form, x, kernel, win, gather, _chunk(x, features, win, gather))


def _add_up(form: Form, x: Array, dy: Array, win: Window, gather: Axes) -> Array:
    """A form of the kernel's gradient, added up over slices of the batch that fit the cache."""
    with _apart():
        return _sum(form, x, dy, win, gather, _chunk(x, dy.shape[-1], win, gather))


# --- forms made of other convolutions -------------------------------------------------------------


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


def _canonical_kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    """`lax_kernel_gradient` in the canonical layout, the only one XLA's CPU backend is fast in."""
    r = len(win.size)
    space = tuple(range(1, r + 1))
    padding = _kernel_gradient_padding(win)
    turned = win._replace(strides=win.dilation, dilation=win.strides, padding=tuple(padding))
    x, dy = lax.transpose(x, (r + 1, *space, 0)), lax.transpose(dy, (*space, 0, r + 1))
    return lax.transpose(_cropped_convolve(x, dy, turned), (*space, 0, r + 1))


def _cropped_convolve(x: Array, w: Array, win: Window) -> Array:
    """`lax_convolve` without negative padding: XLA's CPU backend reads past the end there."""
    for a, (before, after) in enumerate(win.padding):
        x = pad(x, a + 1, min(before, 0), min(after, 0))
    padding = tuple((max(before, 0), max(after, 0)) for before, after in win.padding)
    return lax_convolve(x, w, win._replace(padding=padding))
