"""Causal convolutions over images: masked ones and shifted ones, whole or a position at a time.

An image has raster order: an output may depend on the rows above its own and on what stands left of
it. Called with `at=None` a layer convolves whole images. Called with a position it does the work of
that position alone, from the inputs of former calls, which it keeps in the variables of the
collection `cache`:

- `DownShiftedConv` sees the rows above it and its own, whole: it works a row at a time, and takes
  `[B, 1, W, C]`.
- `MaskedConv` and `DownRightShiftedConv` see their own row up to a column: they work a pixel at a
  time, and take `[B, 1, 1, C]`, or `[B, 1, 2, C]` to put right the pixel before it too. At no
  column they take in the row above, `[B, 1, W, C]`, and give nothing.

What a position needs of the parameters (masked or normalized kernels) is computed once and kept in
the collection `folded`: the first call in which that may change fills it, see
`jaxgen.models.pixelcnn.prime`.

None of the layers uses Winograd's form, whose rounding would let masked values leak.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxgen.checks import check_choice
from jaxgen.models.conv.layers import conv_general_dilated

Images = Float[Array, "batch rows columns channels"]
Maps = Float[Array, "batch _ _ _"]  # of whatever size and channels the layer has
_Index = Int[Array, ""] | int
_NUMBERS = ("NHWC", "HWIO", "NHWC")


class At(NamedTuple):
    """A position of an image, for a call that does its work alone.

    Attributes:
        row: Number of the row, from 0.
        column: Number of the column, from 0; None for the whole row.
        width: Width of the image.
    """

    row: _Index
    column: _Index | None
    width: int

    def halved(self) -> "At":
        """The position in the image of half the size."""
        column = None if self.column is None else self.column // 2
        return At(self.row // 2, column, self.width // 2)


def channel_mask(
    kernel_size: tuple[int, int],
    channels: int,
    features: int,
    kind: str,
    num_groups: int = 1,
    parts: int = 1,
) -> np.ndarray:
    """The mask of PixelCNN's convolutions (van den Oord et al. 2016a, section 3.4).

    The kernel's last row is the pixel's own, its middle column the pixel's own too where there is
    more than one row, its last column where there is only one: what is right of the pixel is not
    seen. Of the pixel itself, channel c belongs to group `c mod num_groups`, and a feature of group
    g sees groups below g (A, the first layer) or up to g (B, the others).

    Args:
        kernel_size: Rows and columns of the kernel.
        channels: Channels of the input.
        features: Features of the output.
        kind: Kind of the mask, "A" or "B".
        num_groups: Number of the image's channels, which are drawn in their order.
        parts: Number of parts of the features, each with groups from its own first feature on:
            features of several parts that are multiplied are then of one group.

    Returns:
        bool `[rows, columns, channels, features]`.

    Raises:
        ValueError: An unknown kind, parts that do not divide the features, or fewer channels, or
            features of a part, than groups.
    """
    check_choice("kind", kind, ("A", "B"))
    if parts < 1 or features % parts:
        raise ValueError(f"parts must divide features ({features}), got {parts}")
    if not 1 <= num_groups <= min(channels, features // parts):
        raise ValueError(
            f"num_groups must be from 1 to channels ({channels}) and to the features of a part "
            f"({features // parts}), got {num_groups}"
        )
    rows, columns = kernel_size
    own = columns // 2 if rows > 1 else columns - 1
    mask = np.ones((rows, columns, channels, features), bool)
    mask[-1, own + 1 :] = False
    before = np.arange(channels)[:, None] % num_groups
    after = np.arange(features) % (features // parts) % num_groups
    mask[-1, own] = before < after if kind == "A" else before <= after
    return mask


class _CausalConv(nn.Module):
    """What the layers share: parameters, weight normalization, and the forms of the work."""

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    strides: int = 1
    use_bias: bool = True
    weight_norm: bool = False
    init_scale: float = 1.0
    dtype: DTypeLike | None = None

    def _check(self) -> None:
        for name in ("features", "strides"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.kernel_size) != 2 or min(self.kernel_size) < 1:
            raise ValueError(f"kernel_size must be 2 positive integers, got {self.kernel_size}")

    def _weights(
        self,
        x: Array,
        size: tuple[int, int],
        convolve: Any = None,
        mask: np.ndarray | None = None,
        at: At | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Input, kernel and bias, in the dtype of the computation."""
        shape = (*size, x.shape[-1], self.features)
        if at is None:
            kernel, bias = self._folded(x, shape, convolve, mask)
        else:
            folded = self.variable("folded", "kernel", lambda: self._folded(x, shape, None, mask))
            kernel, bias = folded.value
        return tuple(nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype))

    def _folded(self, x: Array, shape: tuple[int, ...], convolve: Any, mask: Any) -> Any:
        """The kernel and the bias out of the parameters."""
        init = nn.initializers
        if not self.weight_norm:
            kernel = self.param("kernel", init.lecun_normal(), shape)
            bias = self.param("bias", init.zeros, shape[-1:]) if self.use_bias else None
            return kernel if mask is None else kernel * mask, bias
        direction = self.param("direction", init.normal(0.05), shape)
        if mask is not None:
            direction = direction * mask
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(0, 1, 2), keepdims=True) + 1e-12)
        unit = direction / norm
        scale, bias = jnp.ones(shape[-1:]), jnp.zeros(shape[-1:])
        if self.is_initializing() and convolve is not None:
            y = convolve(x.astype(jnp.float32), unit)
            mean, variance = jnp.mean(y, axis=(0, 1, 2)), jnp.var(y, axis=(0, 1, 2))
            scale = self.init_scale / jnp.sqrt(variance + 1e-10)
            bias = -mean * scale
        scale = self.param("scale", lambda key: scale)
        offset = self.param("bias", lambda key: bias) if self.use_bias else None
        return unit * scale[None, None, None], offset

    def _by_row(self, x: Array, at: At, size: tuple[int, int], columns: tuple[int, int]) -> Array:
        above = size[0] - 1
        if above:
            shape = (x.shape[0], above, *x.shape[2:])
            cache = self.variable("cache", "rows", jnp.zeros, shape, x.dtype)
            window = jnp.concatenate([cache.value, x], axis=1)
            cache.value = window[:, 1:]
            x = window
        x, kernel, bias = self._weights(x, size, at=at)
        strides = (1, self.strides)
        return _plus(_convolve(x, kernel, strides=strides, padding=((0, 0), columns)), bias)

    def _by_pixel(
        self, x: Array, at: At, size: tuple[int, int], left: int, mask: np.ndarray | None = None
    ) -> Array:
        (rows, columns), (batch, _, num, channels) = size, x.shape
        if rows * columns > 1:
            # A ring of rows, with the padding of zeros that the whole image would have.
            shape = (rows, batch, at.width + columns - 1, channels)
            cache = self.variable("cache", "pixels", jnp.zeros, shape, x.dtype)
            row, first = (
                (at.row - 1, left) if at.column is None else (at.row, at.column + left + 1 - num)
            )
            start = (row % rows, 0, first, 0)
            cache.value = lax.dynamic_update_slice(cache.value, x[:, 0][None], start)
            if at.column is None:
                return x
            taps = [
                lax.dynamic_slice(
                    cache.value,
                    ((at.row + 1 + row) % rows, 0, at.column, 0),
                    (1, batch, columns, channels),
                ).reshape(batch, -1)
                for row in range(rows)
            ]
            inputs = jnp.concatenate(taps, axis=1)
        else:
            inputs = x[:, 0, -1]
        x, kernel, bias = self._weights(x, size, None, mask, at)
        y = inputs.astype(x.dtype) @ kernel.reshape(-1, self.features)
        return _plus(y[:, None, None], bias)


class MaskedConv(_CausalConv):
    """A masked convolution (van den Oord et al. 2016a): PixelCNN's, and horizontal stacks'.

    Only the taps that the mask leaves are stored by rows: of an n x n kernel the upper half and the
    middle row, of a 1 x n kernel the left half and the middle.

    Attributes:
        features: Features of the output.
        kernel_size: Rows and columns of the kernel, both odd.
        strides: Stride of the convolution, 1.
        use_bias: Whether to add a bias.
        weight_norm: Whether the parameters are direction and length (Salimans & Kingma 2016),
            initialized by the first batch to outputs of zero mean and variance `init_scale ** 2`.
        init_scale: Deviation of the first batch's outputs with `weight_norm`.
        dtype: Type of the computation; None for the input's.
        kind: Kind of the mask: "A" hides the pixel's own group, "B" does not; see `channel_mask`.
        num_groups: Number of the image's channels, which are drawn in their order.
        parts: Number of parts of the output that have groups of their own, see `channel_mask`.
    """

    kind: str = "B"
    num_groups: int = 1
    parts: int = 1

    @nn.compact
    def __call__(self, x: Images, at: At | None = None) -> Maps:
        """Convolves whole images `[B, H, W, C]`, or one pixel of them: see above.

        Raises:
            ValueError: An even kernel size, strides, or sizes that do not fit.
        """
        self._check()
        if any(size % 2 == 0 for size in self.kernel_size) or self.strides != 1:
            raise ValueError(
                f"kernel_size must be odd and strides 1, got {self.kernel_size} and {self.strides}"
            )
        rows, columns = self.kernel_size[0] // 2 + 1, self.kernel_size[1]
        left = columns // 2
        right = left
        if rows == 1:
            columns, right = left + 1, 0
        size = (rows, columns)
        groups = (self.kind, self.num_groups, self.parts)
        mask = channel_mask(size, x.shape[-1], self.features, *groups)
        if at is not None:
            return self._by_pixel(x, at, size, left, mask)
        run = partial(_convolve, strides=(1, 1), padding=((rows - 1, 0), (left, right)))
        x, kernel, bias = self._weights(x, size, run, mask)
        return _plus(run(x, kernel), bias)


class DownShiftedConv(_CausalConv):
    """A convolution over the rows above and the pixel's own, as wide to the left as to the right
    (Salimans et al. 2017): vertical stacks', whose input is shifted down by a row.

    Its attributes are those of `MaskedConv`; the kernel has an odd number of columns.
    """

    @nn.compact
    def __call__(self, x: Images, at: At | None = None) -> Maps:
        """Convolves whole images, or one row of them.

        Raises:
            ValueError: An even number of columns, or sizes that do not fit.
        """
        self._check()
        rows, columns = self.kernel_size
        if columns % 2 == 0:
            raise ValueError(f"kernel_size must have odd columns, got {self.kernel_size}")
        sides = (columns // 2, columns // 2)
        if at is not None:
            return self._by_row(x, at, self.kernel_size, sides)
        run = partial(_convolve, strides=(self.strides,) * 2, padding=((rows - 1, 0), sides))
        x, kernel, bias = self._weights(x, self.kernel_size, run)
        return _plus(run(x, kernel), bias)


class DownRightShiftedConv(_CausalConv):
    """A convolution over the rows above and the pixel's own, up to the pixel's column (Salimans et
    al. 2017): horizontal stacks', whose input is shifted right by a column.

    Its attributes are those of `MaskedConv`, of any kernel size.
    """

    @nn.compact
    def __call__(self, x: Images, at: At | None = None) -> Maps:
        """Convolves whole images, or one pixel of them.

        Raises:
            ValueError: Sizes that do not fit.
        """
        self._check()
        rows, columns = self.kernel_size
        if at is not None:
            return self._by_pixel(x, at, self.kernel_size, columns - 1)
        padding = ((rows - 1, 0), (columns - 1, 0))
        run = partial(_convolve, strides=(self.strides,) * 2, padding=padding)
        x, kernel, bias = self._weights(x, self.kernel_size, run)
        return _plus(run(x, kernel), bias)


class DownShiftedConvTranspose(_CausalConv):
    """A 2x3 transposed convolution of stride 2: a row of the small image to two of the large one.

    Of a position it takes the small image's row and gives the large one's, at `at`.

    Its attributes are those of `MaskedConv`; `kernel_size` and `strides` are fixed.
    """

    @nn.compact
    def __call__(self, x: Images, at: At | None = None) -> Maps:
        """Convolves whole images, or one row of them."""
        self._check()
        if at is None:
            run = partial(_convolve, strides=(1, 1), padding=((1, 1), (1, 2)), spacing=2)
            x, kernel, bias = self._weights(x, (2, 3), run)
            return _plus(run(x, kernel), bias)
        x, kernel, bias = self._weights(x, (2, 3), at=at)
        row = lax.dynamic_slice_in_dim(kernel, 1 - at.row % 2, 1)
        padding = ((0, 0), (1, 2))
        return _plus(_convolve(x, row, strides=(1, 1), padding=padding, spacing=2), bias)


class DownRightShiftedConvTranspose(_CausalConv):
    """A 2x2 transposed convolution of stride 2: a pixel of the small image to four of the large.

    Of a position it takes the small image's pixel and gives the large one's, at `at`.

    Its attributes are those of `MaskedConv`; `kernel_size` and `strides` are fixed.
    """

    @nn.compact
    def __call__(self, x: Images, at: At | None = None) -> Maps:
        """Convolves whole images, or one pixel of them."""
        self._check()
        if at is None:
            run = partial(_convolve, strides=(1, 1), padding=((1, 1), (1, 1)), spacing=2)
            x, kernel, bias = self._weights(x, (2, 2), run)
            return _plus(run(x, kernel), bias)
        assert at.column is not None
        x, kernel, bias = self._weights(x, (2, 2), at=at)
        tap = kernel[1 - at.row % 2, 1 - at.column % 2]
        return _plus(x @ tap, bias)


def shift_down(x: Images) -> Images:
    """The image with each row in its lower neighbour's place: `y[i] = x[i - 1]`, zeros first."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]


def shift_right(x: Images) -> Images:
    """The image with each column in its right neighbour's place, zeros first."""
    return jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]


def _convolve(x: Array, kernel: Array, *, strides: Any, padding: Any, spacing: int = 1) -> Array:
    if math.prod(kernel.shape[:2]) == 1 and strides == (1, 1) and spacing == 1:
        return x @ kernel[0, 0]
    return conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=(spacing, spacing),
        dimension_numbers=_NUMBERS,
        winograd=False,
    )


def _plus(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias[None, None, None]
