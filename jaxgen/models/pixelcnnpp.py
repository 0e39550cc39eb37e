"""PixelCNN++ (Salimans et al. 2017): two streams, down and up through three resolutions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.distributions.logistic import mixture_of_logistics_rows
from jaxgen.models.blocks.masked_conv import (
    At,
    DownRightShiftedConv,
    DownRightShiftedConvTranspose,
    DownShiftedConv,
    DownShiftedConvTranspose,
    Images,
    shift_down,
    shift_right,
)
from jaxgen.models.pixelcnn import Vectors, here

Params = Float[Array, "batch rows columns params mixtures"]


class Stage(NamedTuple):
    """The outputs of a stream's blocks at one resolution, each list in the order of the blocks.

    Attributes:
        down: Outputs of the blocks on the way down.
        inner: Outputs at the next smaller resolution, or None at the last.
        up: Outputs of the blocks on the way up.
    """

    down: list[Array]
    inner: "Stage | None"
    up: list[Array]


class PixelCNNPP(nn.Module):
    """PixelCNN++ (Salimans et al. 2017, section 2), of any number of resolutions.

    Streams of weight-normalized residual blocks: the vertical one sees the rows above a pixel, the
    horizontal one also what is left of it and the vertical one. Both halve the image between the
    levels of the way down, double it on the way up, and lead each block's result on the way down
    to one on the way up. The authors' code shifts the first layers' outputs; here their inputs
    are, with a channel of ones that tells the image from the zeros around it.

    Attributes:
        channels: Channels of the images, at least 1.
        features: Features of every layer.
        num_res_blocks: Number of residual blocks in each level of each way.
        num_levels: Number of resolutions; the sides must be divisible by `2 ** (num_levels - 1)`.
        num_mixtures: Number of logistics of a pixel's mixture.
        dropout: Rate of dropout within the blocks.
        dtype: Type of the computation; the first layers and the parameters of the mixtures are
            float32.
    """

    channels: int
    features: int = 160
    num_res_blocks: int = 5
    num_levels: int = 3
    num_mixtures: int = 10
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        for name in ("channels", "features", "num_res_blocks", "num_levels", "num_mixtures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        shared: dict[str, Any] = {"weight_norm": True, "dtype": jnp.float32}
        self.first_vertical = DownShiftedConv(self.features, (2, 3), **shared)
        self.first_row = DownShiftedConv(self.features, (1, 3), **shared)
        self.first_column = DownRightShiftedConv(self.features, (2, 1), **shared)
        sizes = (self.features, self.num_res_blocks, self.num_levels, self.dropout, self.dtype)
        self.vertical = _Stream(*sizes, horizontal=False)
        self.horizontal = _Stream(*sizes, horizontal=True)
        self.rows = mixture_of_logistics_rows(self.channels)
        self.head = DownRightShiftedConv(self.rows * self.num_mixtures, **shared)

    def __call__(
        self, x: Images, condition: Condition | None = None, *, train: bool = False
    ) -> Params:
        """Rows of parameters of every pixel's mixture, `[B, H, W, rows, mixtures]`.

        Args:
            x: Pixels in [-1, 1].
            condition: Condition of one vector an example, or None.
            train: Whether to drop, by the random numbers `dropout`.

        Raises:
            ValueError: Sizes that do not fit, or a condition with tokens.
        """
        e = vector_of(condition)
        if x.shape[-1] != self.channels:
            raise ValueError(f"images must have {self.channels} channels, got {x.shape[-1]}")
        step = 2 ** (self.num_levels - 1)
        if x.shape[1] % step or x.shape[2] % step:
            raise ValueError(
                f"{self.num_levels} levels need sides divisible by {step}, got {x.shape[1:3]}"
            )
        padded = _with_ones(x, 1.0)
        features = self._down(shift_down(padded), e, None, train)
        return self._across(shift_right(padded), features, e, None, train)

    def row(self, above: Images, condition: Condition | None, at: At) -> Any:
        """The vertical stream's features of a row."""
        above = _with_ones(above, jnp.where(at.row > 0, 1.0, 0.0))
        return self._down(above, vector_of(condition), at._replace(column=None), False)

    def pixel(
        self, left: Images, current: Images, features: Any, condition: Condition | None, at: At
    ) -> Params:
        """The mixture of one pixel; `current` is not looked at: a mixture is of whole pixels."""
        assert at.column is not None
        left = _with_ones(left, jnp.where(at.column > 0, 1.0, 0.0))
        return self._across(left, features, vector_of(condition), at, False)

    def _down(self, above: Array, e: Vectors | None, at: At | None, train: bool) -> Any:
        x = self.first_vertical(above, at).astype(self.dtype)
        _, levels = self.vertical(x, None, e, at, train)
        return self.first_row(above, at), levels

    def _across(
        self, left: Array, features: Any, e: Vectors | None, at: At | None, train: bool
    ) -> Params:
        first, levels = features
        x = here(first, at) + self.first_column(left, at)
        h, _ = self.horizontal(x.astype(self.dtype), levels, e, at, train)
        y = self.head(nn.elu(h), at)
        return y.reshape(*y.shape[:-1], self.rows, self.num_mixtures)


class _Stream(nn.Module):
    """One stream, down and up; a horizontal one takes the outputs of the vertical one's blocks."""

    features: int
    num_res_blocks: int
    num_levels: int
    dropout: float
    dtype: DTypeLike
    horizontal: bool

    @nn.compact
    def __call__(
        self, x: Array, vertical: Stage | None, e: Vectors | None, at: At | None, train: bool
    ) -> tuple[Array, Stage]:
        return self._level(x, vertical, e, at, train, 0)

    def _level(
        self, x: Array, vertical: Stage | None, e: Any, at: At | None, train: bool, level: int
    ) -> tuple[Array, Stage]:
        skips, inner = [x], None
        down: list[Array] = []
        up: list[Array] = []
        for i in range(self.num_res_blocks):
            guide = None if vertical is None else here(vertical.down[i], at)
            x = self._block(f"down{level}_{i}")(x, guide, e, at, train)
            down.append(x)
        skips += down
        if level + 1 == self.num_levels:
            y = skips.pop()
        else:
            y, inner = self._inner(x, vertical, e, at, train, level + 1)
        while skips:
            guide = skips.pop()
            if vertical is not None:
                guide = jnp.concatenate([here(vertical.up[len(up)], at), guide], axis=-1)
            y = self._block(f"up{level}_{len(up)}")(y, guide, e, at, train)
            up.append(y)
        return y, Stage(down, inner, up)

    def _inner(
        self, x: Array, vertical: Stage | None, e: Any, at: At | None, train: bool, level: int
    ) -> tuple[Array, Stage | None]:
        """Half the size and back: by position, worked out where a half-size position begins."""
        shared: dict[str, Any] = {"weight_norm": True, "dtype": self.dtype}
        conv: Any = DownRightShiftedConv if self.horizontal else DownShiftedConv
        size = (2, 2) if self.horizontal else (2, 3)
        back: Any = DownRightShiftedConvTranspose if self.horizontal else DownShiftedConvTranspose
        x = conv(self.features, size, strides=2, name=f"halve{level}", **shared)(x, at)
        vertical = None if vertical is None else vertical.inner

        def work(stream: Any) -> Any:
            smaller = None if at is None else at.halved()
            return stream._level(x, vertical, e, smaller, train, level)

        y, inner = work(self) if at is None else self._held(work, at, level)
        return back(self.features, name=f"double{level}", **shared)(y, at), inner

    def _held(self, work: Callable[[Any], Any], at: At, level: int) -> Any:
        """`work` at even rows (and columns); elsewhere what it gave at the one before."""
        name, half = f"held{level}", at.halved()
        if self.is_mutable_collection("folded"):
            result = work(self)
            kept = self.variable("cache", name, lambda: _blank_row(result, half, self.horizontal))
            return result
        kept = self.variable("cache", name, lambda: None)
        if not self.horizontal:
            kept.value = nn.cond(at.row % 2 == 0, work, lambda stream: kept.value, self)
            return kept.value
        assert at.column is not None
        assert half.column is not None
        active = (at.row % 2 == 0) & (at.column % 2 == 0)
        old = here(kept.value, half)
        y = nn.cond(active, lambda stream: work(stream)[0], lambda stream: old, self)
        kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, y, half.column, axis=2)
        return y, None

    def _block(self, name: str) -> "_Block":
        return _Block(self.features, self.dropout, self.dtype, self.horizontal, name=name)


class _Block(nn.Module):
    """A gated residual block (Salimans et al. 2017, section 2.3; its authors' `gated_resnet`)."""

    features: int
    dropout: float
    dtype: DTypeLike
    horizontal: bool

    @nn.compact
    def __call__(
        self, x: Array, guide: Array | None, e: Vectors | None, at: At | None, train: bool
    ) -> Array:
        conv: Any = DownRightShiftedConv if self.horizontal else DownShiftedConv
        size = (2, 2) if self.horizontal else (2, 3)
        shared: dict[str, Any] = {"weight_norm": True, "dtype": self.dtype}
        h = conv(self.features, size, name="conv1", **shared)(_concat_elu(x), at)
        if guide is not None:
            h = h + conv(self.features, name="guide", **shared)(_concat_elu(guide), at)
        h = _concat_elu(h).astype(jnp.float32)  # dropout scales in float32
        h = nn.Dropout(self.dropout, deterministic=not train)(h).astype(self.dtype)
        # Near zero at first, so that a block begins as the identity.
        h = conv(2 * self.features, size, name="conv2", init_scale=0.1, **shared)(h, at)
        if e is not None:
            shift = nn.Dense(
                2 * self.features,
                use_bias=False,
                kernel_init=nn.initializers.normal(0.05),  # as the authors' of their labels
                dtype=self.dtype,
                name="told",
            )
            h = h + shift(e)[:, None, None]
        value, gate = jnp.split(h, 2, axis=-1)
        return x + value * nn.sigmoid(gate)


def _concat_elu(x: Array) -> Array:
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


def _with_ones(x: Array, one: Any) -> Array:
    ones = jnp.broadcast_to(jnp.asarray(one, x.dtype), (*x.shape[:-1], 1))
    return jnp.concatenate([x, ones], axis=-1)


def _blank_row(result: Any, half: At, horizontal: bool) -> Any:
    """An array for what is held: of a horizontal stream its results along a row."""
    if not horizontal:
        return result
    y = result[0]
    return jnp.zeros((y.shape[0], 1, half.width, y.shape[-1]), y.dtype)
