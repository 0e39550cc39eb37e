"""A convolution and its kernel's gradient as primitives of JAX: derivatives in both modes.

A convolution is linear in its input and in its kernel, so its derivatives are convolutions and one
more operation, and theirs are the same again:

    y = convolve(x, w)         dx = convolve(dy, flip(w), transposed window)
                               dw = kernel_gradient(x, dy)

Both are declared to JAX as what they are, bilinear, each with its transposes. That keeps every
derivative of every order, in forward mode and in reverse mode, out of the forms that XLA's CPU
backend is slow at (forty times inside `scan`, `fori_loop` and `cond`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jaxgen.models.conv import forms
from jaxgen.models.conv.products import Window


def convolve(x: Array, w: Array, win: Window) -> Array:
    """The convolution `[N, *size, C]`, `[*kernel, C / groups, O]` -> `[N, *out, O]`.

    Args:
        x: Input.
        w: Kernel, of the same dtype.
        win: Window.
    """
    return CONVOLVE.bind(x, w, win=win)


def kernel_gradient(x: Array, dy: Array, win: Window) -> Array:
    """The kernel's gradient, `[N, *size, C]`, `[N, *out, O]` -> `[*kernel, C / groups, O]`.

    Args:
        x: Input.
        dy: The output's gradient, of the same dtype.
        win: Window.
    """
    return KERNEL_GRADIENT.bind(x, dy, win=win)


def _input_gradient(dy: Array, w: Array, win: Window) -> Array:
    return convolve(dy, forms.flip(w, win), win.transposed)


def _wide(form: Callable[..., Array], win: Window) -> Callable[[Array, Array], Array]:
    """A form for the CPU, at least in single precision."""

    def call(x: Array, other: Array) -> Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return form(x.astype(wide), other.astype(wide), win).astype(x.dtype)

    return call


# Networks repeat a few shapes: each is traced and lowered once, and called wherever it recurs.
@partial(jax.jit, static_argnames="win")
def _convolve(x: Array, w: Array, *, win: Window) -> Array:
    library = partial(forms.lax_convolve, win=win)
    return lax.platform_dependent(x, w, cpu=_wide(forms.convolve, win), default=library)


@partial(jax.jit, static_argnames="win")
def _kernel_gradient(x: Array, dy: Array, *, win: Window) -> Array:
    library = partial(forms.lax_kernel_gradient, win=win)
    return lax.platform_dependent(x, dy, cpu=_wide(forms.kernel_gradient, win), default=library)


def _primitive(
    name: str, compute: Callable[..., Array], shape: Callable[..., tuple[int, ...]]
) -> Primitive:
    """A primitive of two arrays and a window.

    Args:
        name: Name in the program.
        compute: Function `(a, b, *, win) -> array` that it computes.
        shape: The result's shape, of the same arguments.
    """
    primitive = Primitive(name)
    primitive.def_impl(compute)
    primitive.def_abstract_eval(lambda a, b, *, win: ShapedArray(shape(a, b, win), a.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))

    def batched(args: Sequence[Array], dims: Sequence[int | None], *, win: Window) -> Any:
        return jax.vmap(partial(compute, win=win), dims)(*args), 0

    batching.primitive_batchers[primitive] = batched
    return primitive


CONVOLVE = _primitive("convolve", _convolve, lambda x, w, win: (x.shape[0], *win.out, w.shape[-1]))
KERNEL_GRADIENT = _primitive(
    "kernel_gradient",
    _kernel_gradient,
    lambda x, dy, win: (*win.kernel, x.shape[-1] // win.groups, dy.shape[-1]),
)
LIBRARY = {CONVOLVE: forms.lax_convolve, KERNEL_GRADIENT: forms.lax_kernel_gradient}
"""The library's own form of each primitive, `(a, b, win) -> array`, for those who read programs."""

ad.defbilinear(
    CONVOLVE,
    lambda dy, x, w, win: _input_gradient(dy, w, win),
    lambda dy, x, w, win: kernel_gradient(x, dy, win),
)
ad.defbilinear(
    KERNEL_GRADIENT,
    lambda dw, x, dy, win: _input_gradient(dy, dw, win),
    lambda dw, x, dy, win: convolve(x, dw, win),
)


def _batched_convolve(
    args: Sequence[Array], dims: Sequence[int | None], *, win: Window
) -> tuple[Array, int]:
    """Of many inputs and one kernel: one convolution of a larger batch."""
    x, w = args
    if dims[1] is not None or dims[0] is None:
        return jax.vmap(partial(_convolve, win=win), dims)(x, w), 0
    x = jnp.moveaxis(x, dims[0], 0)
    y = convolve(x.reshape(-1, *x.shape[2:]), w, win)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


batching.primitive_batchers[CONVOLVE] = _batched_convolve
