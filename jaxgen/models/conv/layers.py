"""Convolutions with Flax's signatures and parameters, fast on every backend and inside loops.

`Conv` and `ConvTranspose` are `flax.linen.Conv` and `flax.linen.ConvTranspose`: same attributes,
same parameter names, shapes and initial values, same results up to rounding. Only the way to
compute differs, and only on a CPU: there each convolution, and each of its gradients, takes the
equal form that suits its shape (`jaxgen.models.conv.forms` has the rules). On accelerators it is
the library's own convolution, chosen when the program is lowered, so the forms for the CPU leave no
trace in it.

Derivatives of every order, forward and backward, are convolutions of the same kind
(`jaxgen.models.conv.bilinear`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from jaxgen.models.conv import forms
from jaxgen.models.conv.bilinear import convolve
from jaxgen.models.conv.products import Window

Padding = str | Sequence[tuple[int, int]]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    winograd: bool = True,
) -> Array:
    """`jax.lax.conv_general_dilated`, fast on a CPU: the same numbers up to rounding.

    For `nn.Conv(..., conv_general_dilated=conv_general_dilated)` and for direct use. Layouts other
    than channels-last (`NHWC`, `HWIO` and their like of other ranks), `batch_group_count`, another
    `preferred_element_type` and dtypes that are not real floating point go to the library as they
    are. Of 16-bit inputs the sums on a CPU are in float32.

    Derivatives of any order are exact, in forward mode (`jax.jvp`) and in reverse mode. Inside
    `jax.shard_map`, give that `check_vma=False`.

    Args:
        lhs: Input `[batch, *space, channels]`.
        rhs: Kernel `[*space, channels / feature_group_count, features]`.
        window_strides: One step for each spatial dimension.
        padding: `"SAME"`, `"VALID"` or (before, after) for each spatial dimension.
        lhs_dilation: Spacing of the input's elements (transposed convolution), 1 by default.
        rhs_dilation: Spacing of the kernel's taps, 1 by default.
        dimension_numbers: Layouts of the three arrays, as the library takes them.
        feature_group_count: Number of blocks of channels that do not mix.
        batch_group_count: Number of blocks of examples, as the library takes it.
        precision: Precision of the products, as the library takes it.
        preferred_element_type: Type of the sums, as the library takes it.
        winograd: Whether 3-tap kernels of many channels may, on a CPU, use Winograd's F(4, 3)
            (Lavin and Gray 2016), which halves the multiplications and doubles the rounding (about
            1e-6 of the output's size). With `False` an output depends on the values in its own
            window alone, bit for bit; causal networks, whose masked taps must not leak, need that.

    Returns:
        `[batch, *space, features]`, of the input's dtype.

    Raises:
        ValueError: Ranks, channels or groups of `lhs` and `rhs` that do not fit together, or a
            sequence without one entry for each spatial dimension.

    Examples:
        >>> x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
        >>> numbers = ("NHWC", "HWIO", "NHWC")
        >>> conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=numbers).shape
        (2, 4, 4, 16)
    """
    r = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    lhs_dilation = (1,) * r if lhs_dilation is None else tuple(lhs_dilation)
    rhs_dilation = (1,) * r if rhs_dilation is None else tuple(rhs_dilation)
    ours = (
        r > 0
        and numbers == forms.channels_last(r)
        and batch_group_count == 1
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and preferred_element_type in (None, lhs.dtype)
        and not (isinstance(padding, str) and max(lhs_dilation) > 1)
    )
    if not ours:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision, preferred_element_type,
        )  # fmt: skip
    _check_channels(lhs, rhs, feature_group_count)
    for name, value in (
        ("window_strides", window_strides),
        ("lhs_dilation", lhs_dilation),
        ("rhs_dilation", rhs_dilation),
    ):
        if len(value) != r or any(v < 1 for v in value):
            raise ValueError(f"{name} must be {r} positive integers, got {tuple(value)}")
    size, kernel = lhs.shape[1:-1], rhs.shape[:-2]
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(size, reach, window_strides, padding)
    elif len(padding) != r:
        raise ValueError(f"padding must be a name or {r} (before, after) pairs, got {padding}")
    win = Window(
        size=size,
        kernel=kernel,
        strides=tuple(map(int, window_strides)),
        padding=tuple((int(before), int(after)) for before, after in padding),
        spacing=tuple(map(int, lhs_dilation)),
        dilation=tuple(map(int, rhs_dilation)),
        groups=feature_group_count,
        winograd=winograd and precision is None,
        precision=precision,
    )
    return convolve(lhs, rhs, win)


def _check_channels(lhs: Array, rhs: Array, groups: int) -> None:
    channels, per_group, features = lhs.shape[-1], *rhs.shape[-2:]
    if groups < 1 or channels % groups or features % groups:
        raise ValueError(
            f"feature_group_count must divide the channels of lhs ({channels}) and the features of "
            f"rhs ({features}), got {groups}"
        )
    if per_group * groups != channels:
        raise ValueError(
            f"rhs of shape {rhs.shape} takes {per_group} channels for each of {groups} groups, but "
            f"lhs of shape {lhs.shape} has {channels} channels"
        )


def _check_layer(layer: Any, inputs: Array, groups: int = 1) -> tuple[int, ...]:
    """The layer's kernel size as a tuple, once it is known to fit the inputs."""
    size = layer.kernel_size
    size = (size,) if isinstance(size, int) else tuple(size)
    if layer.features < 1:
        raise ValueError(f"features must be positive, got {layer.features}")
    if not size or min(size) < 1:
        raise ValueError(f"kernel_size must be positive integers, got {layer.kernel_size}")
    if inputs.ndim < len(size) + 1:
        raise ValueError(
            f"inputs for a kernel_size of {size} must be [..., {len(size)} spatial dimensions, "
            f"channels], got shape {inputs.shape}"
        )
    if groups < 1 or inputs.shape[-1] % groups or layer.features % groups:
        raise ValueError(
            f"feature_group_count must divide the channels of inputs ({inputs.shape[-1]}) and "
            f"features ({layer.features}), got {groups}"
        )
    return size


def _exact_if_masked(layer: Any) -> None:
    if layer.mask is not None and layer.conv_general_dilated is conv_general_dilated:
        exact = partial(conv_general_dilated, winograd=False)
        object.__setattr__(layer, "conv_general_dilated", exact)


class Conv(nn.Conv):
    """`flax.linen.Conv` with the same attributes, parameters and results, fast on a CPU too.

    With a `mask` it does without Winograd's form, so that masked taps leak nothing at all.

    Examples:
        >>> layer = Conv(features=16, kernel_size=(3, 3))
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        >>> layer.apply(variables, jnp.ones((4, 8, 8, 3))).shape
        (4, 8, 8, 16)
    """

    conv_general_dilated: Any = conv_general_dilated
    promote_dtype: Any = promote_dtype  # Flax's annotation is a protocol that nothing can check

    def __post_init__(self) -> None:
        _exact_if_masked(self)
        super().__post_init__()

    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """Convolves `[*batch, *space, channels]` into `[*batch, *space, features]`.

        Raises:
            ValueError: `inputs` of fewer dimensions than the kernel needs, `features` or a
                `kernel_size` below 1, or a `feature_group_count` that does not divide the channels
                or the features.
        """
        _check_layer(self, inputs, self.feature_group_count)
        return super().__call__(inputs)


class ConvTranspose(nn.ConvTranspose):
    """`flax.linen.ConvTranspose` with the same attributes, parameters and results, fast on a CPU.

    Examples:
        >>> layer = ConvTranspose(features=16, kernel_size=(4, 4), strides=(2, 2))
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        >>> layer.apply(variables, jnp.ones((4, 8, 8, 3))).shape
        (4, 16, 16, 16)
    """

    conv_general_dilated: Any = conv_general_dilated
    promote_dtype: Any = promote_dtype  # Flax's annotation is a protocol that nothing can check

    def __post_init__(self) -> None:
        _exact_if_masked(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """Convolves `[*batch, *space, channels]` into `[*batch, *larger space, features]`.

        Raises:
            ValueError: `inputs` of fewer dimensions than the kernel needs, `features` or a
                `kernel_size` below 1, a `mask` without the kernel's shape, or an unknown `padding`.
        """
        kernel_size = _check_layer(self, inputs)
        r, channels = len(kernel_size), inputs.shape[-1]
        ends = (self.features, channels) if self.transpose_kernel else (channels, self.features)
        shape = (*kernel_size, *ends)
        if self.mask is not None and self.mask.shape != shape:
            raise ValueError(f"mask must have the kernel's shape {shape}, got {self.mask.shape}")
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.mask is not None:
            kernel = kernel * self.mask
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)

        batch = x.shape[: -r - 1]
        y = self._convolve(x.reshape(-1, *x.shape[-r - 1 :]), kernel)
        if bias is not None:
            y = y + bias.reshape((1,) * (r + 1) + (-1,))
        return y.reshape(*batch, *y.shape[1:])

    def _convolve(self, x: Array, kernel: Array) -> Array:
        r = x.ndim - 2
        strides, dilation = _each(self.strides, r), _each(self.kernel_dilation, r)
        if self.transpose_kernel:
            kernel = jnp.flip(kernel, range(r)).swapaxes(-1, -2)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
        y = self.conv_general_dilated(
            x,
            kernel,
            (1,) * r,
            _transposed_padding(self.padding, reach, strides),
            lhs_dilation=strides,
            rhs_dilation=dilation,
            dimension_numbers=forms.channels_last(r),
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
        if self.padding == "CIRCULAR":
            for axis in range(r):
                y = _wrap(y, axis + 1, x.shape[axis + 1] * strides[axis], self.transpose_kernel)
        return y


def _each(value: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
        return (value or 1,) * rank
    return tuple(value)


def _transposed_padding(
    padding: Any, reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding of the spaced-out input, so that the output is as long as Flax makes it.

    `SAME`: the input's length times the stride. `VALID` and `CIRCULAR` (which wraps what stands
    over): every position that the kernel reaches. Numbers are taken as they are.
    """
    if padding == "SAME":
        befores = [
            k - 1 if s > k - 1 else (k + s - 1) // 2 for k, s in zip(reach, strides, strict=True)
        ]
        return [(b, k + s - 2 - b) for b, k, s in zip(befores, reach, strides, strict=True)]
    if padding in ("VALID", "CIRCULAR"):
        return [(k - 1, max(k, s) - 1) for k, s in zip(reach, strides, strict=True)]
    if isinstance(padding, int):
        return [(padding, padding)] * len(reach)
    if isinstance(padding, str) or len(padding) != len(reach):
        raise ValueError(
            f"padding must be 'SAME', 'VALID', 'CIRCULAR', an integer or {len(reach)} pairs of "
            f"integers, got {padding!r}"
        )
    return [(p, p) if isinstance(p, int) else tuple(p) for p in padding]


def _wrap(y: Array, axis: int, period: int, transpose_kernel: bool) -> Array:
    """Sums `y` over whole periods along an axis, its middle staying where it is."""
    missing = -(y.shape[axis] - period) % (2 * period)
    before = (missing + (not transpose_kernel)) // 2
    widths = [(0, 0)] * y.ndim
    widths[axis] = (before, missing - before)
    y = jnp.pad(y, widths)
    return y.reshape(*y.shape[:axis], -1, period, *y.shape[axis + 1 :]).sum(axis)
