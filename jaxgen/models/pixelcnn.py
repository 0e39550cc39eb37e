"""PixelCNN and gated PixelCNN, and how a network of pixels is sampled position by position.

Every network of this kind (`jaxgen.models.pixelcnnpp` too) has three methods:

- `__call__(x, condition, *, train)`: images in [-1, 1] to the parameters of each pixel's
  distribution;
- `row(above, condition, at)`: the work of a row, from the row above it, zeros for the first:
  whatever the row's pixels need of it, or None;
- `pixel(left, current, features, condition, at)`: the parameters of one pixel, `[B, 1, 1, ...]`,
  from the pixel left of it, zeros for the first, what is known of its own channels, and `row`'s
  features.

The last two keep what they know of former positions in the collection `cache`, see
`jaxgen.models.blocks.masked_conv`; `prime` begins it. `condition` is a
`jaxgen.conditioning.base.Condition` of one vector an example, or None.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.masked_conv import (
    At,
    DownShiftedConv,
    Images,
    Maps,
    MaskedConv,
    shift_down,
)

Vectors = Float[Array, "batch width"]
Logits = Float[Array, "batch rows columns channels values"]


def prime(
    network: Any,
    params: Any,
    batch: int,
    image_shape: tuple[int, ...],
    condition: Condition | None,
) -> tuple[Any, Any]:
    """What sampling by position begins with: `(folded, cache)`.

    Args:
        network: Network of this module's kind.
        params: Parameters of the network.
        batch: Number of images at a time.
        image_shape: Shape (height, width, channels) of an image.
        condition: Condition of the images, or None.

    Returns:
        The collections `folded`, what the positions need of the parameters, and `cache`, zeros.
    """
    _, width, channels = image_shape
    at = At(0, 0, width)
    variables = {"params": params}
    row, pixel = (jnp.zeros((batch, 1, n, channels)) for n in (width, 1))
    collections = ["cache", "folded"]
    features, new = network.apply(variables, row, condition, at, method="row", mutable=collections)
    _, new = network.apply(
        {**variables, **new},
        pixel,
        pixel,
        features,
        condition,
        at,
        method="pixel",
        mutable=collections,
    )
    return new.get("folded", {}), jax.tree.map(jnp.zeros_like, new.get("cache", {}))


class PixelCNN(nn.Module):
    """PixelCNN (van den Oord et al. 2016a, "Pixel Recurrent Neural Networks", section 3.5).

    A masked 7x7 convolution, residual blocks (1x1 to half the features, 3x3, 1x1 back), and two
    1x1 layers of ReLUs before the softmax over each channel's values. Its pixels do not see all
    that is above and left: the paper's blind spot, which `GatedPixelCNN` mends. It takes no
    condition.

    Attributes:
        channels: Channels of the images.
        num_values: Number of values of a channel, evenly spaced from -1 to 1.
        features: Features of the residual blocks.
        num_layers: Number of residual blocks.
        head_features: Features of the last two layers.
        dtype: Type of the computation; the first layers and the logits are float32.
    """

    channels: int
    num_values: int = 256
    features: int = 128
    num_layers: int = 15
    head_features: int = 1024
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, x: Images, condition: Condition | None = None, *, train: bool = False
    ) -> Logits:
        """Logits of every value of every channel, `[B, H, W, C, V]`.

        Args:
            x: Pixels in [-1, 1].
            condition: None; the network takes none.
            train: Whether it is a training step, which changes nothing here.

        Raises:
            ValueError: Sizes that do not fit, or a condition.
        """
        _check_images(x, self.channels)
        return self._body(x, condition, None)

    def row(self, above: Images, condition: Condition | None, at: At) -> None:
        """Nothing, but that the first layer takes in the whole row above."""
        self._body(above, condition, at._replace(column=None))

    def pixel(
        self, left: Images, current: Images, features: None, condition: Condition | None, at: At
    ) -> Logits:
        """Logits of one pixel."""
        return self._body(jnp.concatenate([left, current], axis=2), condition, at)

    @nn.compact
    def _body(self, x: Images, condition: Condition | None, at: At | None) -> Any:
        if condition is not None:
            raise ValueError("PixelCNN takes no condition: use GatedPixelCNN")
        shared: dict[str, Any] = {"num_groups": self.channels, "dtype": self.dtype}
        half = self.features // 2
        exact = {**shared, "dtype": jnp.float32}
        h = MaskedConv(self.features, (7, 7), kind="A", name="first", **exact)(x, at)
        if at is not None and at.column is None:
            return None
        h = h.astype(self.dtype)
        for i in range(self.num_layers):
            y = MaskedConv(half, name=f"in{i}", **shared)(nn.relu(h), at)
            y = MaskedConv(half, (3, 3), name=f"mid{i}", **shared)(nn.relu(y), at)
            h = h + MaskedConv(self.features, name=f"out{i}", **shared)(nn.relu(y), at)
        for i in range(2):
            h = MaskedConv(self.head_features, name=f"head{i}", **shared)(nn.relu(h), at)
        return _logits(nn.relu(h), at, self.channels, self.num_values, exact)


class GatedPixelCNN(nn.Module):
    r"""Gated PixelCNN (van den Oord et al. 2016b, section 2), with or without a condition.

    A vertical stack sees all rows above a pixel, a horizontal one what is left of it and, layer by
    layer, the vertical one; each layer is gated (eq. 2, 4), with e the condition's vector:

    $$y = \tanh(W_f * x + V_f e) \odot \sigma(W_g * x + V_g e)$$

    and the horizontal stack residual.

    Attributes:
        channels: Channels of the images.
        num_values: Number of values of a channel, evenly spaced from -1 to 1.
        features: Features of each stack.
        num_layers: Number of gated layers, the first included.
        kernel_size: Kernel size of the layers but the first, odd; the first has 7.
        head_features: Features of the last hidden layer.
        dropout: Rate of dropout after the horizontal stack's gates; the paper has none.
        dtype: Type of the computation; the first layers and the logits are float32.
    """

    channels: int
    num_values: int = 256
    features: int = 128
    num_layers: int = 15
    kernel_size: int = 5
    head_features: int = 1024
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, x: Images, condition: Condition | None = None, *, train: bool = False
    ) -> Logits:
        """Logits of every value of every channel, `[B, H, W, C, V]`.

        Args:
            x: Pixels in [-1, 1].
            condition: Condition of one vector an example, or None.
            train: Whether to drop, by the random numbers `dropout`.

        Raises:
            ValueError: Sizes that do not fit, or a condition with tokens.
        """
        e = vector_of(condition)
        _check_images(x, self.channels)
        return self._across(x, self._down(shift_down(x), e, None), e, None, train)

    def row(self, above: Images, condition: Condition | None, at: At) -> list[Array]:
        """What the vertical stack gives each layer of the horizontal one, of a row."""
        return self._down(above, vector_of(condition), at._replace(column=None))

    def pixel(
        self,
        left: Images,
        current: Images,
        features: list[Array],
        condition: Condition | None,
        at: At,
    ) -> Logits:
        """Logits of one pixel."""
        pair, e = jnp.concatenate([left, current], axis=2), vector_of(condition)
        return self._across(pair, features, e, at, False)

    def setup(self) -> None:
        if self.kernel_size % 2 == 0 or self.kernel_size < 1:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        sizes = [7] + [self.kernel_size] * (self.num_layers - 1)
        common: dict[str, Any] = {"dtype": self.dtype}
        exact: dict[str, Any] = {"dtype": jnp.float32}
        self.shared = {"num_groups": self.channels, **common}
        double = 2 * self.features
        # The first vertical layer's input is shifted, so that its last row is the one above.
        self.vertical = [
            DownShiftedConv(double, (n // 2 + (i > 0), n), **(common if i else exact))
            for i, n in enumerate(sizes)
        ]
        self.across = [nn.Dense(double, **common) for _ in sizes]
        self.horizontal = [
            MaskedConv(
                double,
                (1, n),
                kind="B" if i else "A",
                parts=2,
                **{**self.shared, **(common if i else exact)},
            )
            for i, n in enumerate(sizes)
        ]
        self.conditions_down = [
            nn.Dense(double, use_bias=False, name=f"told_down_{i}", **common)
            for i in range(len(sizes))
        ]
        self.conditions_across = [
            nn.Dense(double, use_bias=False, name=f"told_across_{i}", **common)
            for i in range(len(sizes))
        ]
        self.residual = [MaskedConv(self.features, **self.shared) for _ in sizes]
        self.drop = nn.Dropout(self.dropout)
        self.head = MaskedConv(self.head_features, **self.shared)
        self.logits = MaskedConv(self.channels * self.num_values, **{**self.shared, **exact})

    def _down(self, x: Array, e: Vectors | None, at: At | None) -> list[Array]:
        features = []
        for layer, across, condition in zip(
            self.vertical, self.across, self.conditions_down, strict=True
        ):
            y = layer(x, at).astype(self.dtype)
            features.append(across(y))
            x = _gated(y, condition, e)
        return features

    def _across(
        self, x: Array, features: list[Array], e: Vectors | None, at: At | None, train: bool
    ) -> Logits:
        h: Any = None
        for i, (layer, residual, condition) in enumerate(
            zip(self.horizontal, self.residual, self.conditions_across, strict=True)
        ):
            y = layer(x if i == 0 else h, at).astype(self.dtype) + here(features[i], at)
            y = _gated(y, condition, e).astype(jnp.float32)  # dropout scales in float32
            out = residual(self.drop(y, deterministic=not train), at)
            h = out if i == 0 else h + out
        h = nn.relu(self.head(nn.relu(h), at))
        return _split(self.logits(h, at), self.channels)


def here(x: Images, at: At | None) -> Maps:
    """The pixel of a row's features `[B, 1, W, C]`; of a whole image, all of it."""
    if at is None:
        return x
    assert at.column is not None
    return jax.lax.dynamic_slice_in_dim(x, at.column, 1, axis=2)


def _gated(x: Array, condition: nn.Module, e: Array | None) -> Array:
    if e is not None:
        x = x + condition(e)[:, None, None]
    filtered, gate = jnp.split(x, 2, axis=-1)
    return jnp.tanh(filtered) * nn.sigmoid(gate)


def _logits(h: Array, at: At | None, channels: int, num_values: int, shared: Any) -> Logits:
    return _split(MaskedConv(channels * num_values, name="logits", **shared)(h, at), channels)


def _split(y: Array, channels: int) -> Logits:
    # Feature i is of channel i mod channels, as the masks have it.
    y = y.reshape(*y.shape[:-1], -1, channels)
    return jnp.swapaxes(y, -1, -2)


def _check_images(x: Array, channels: int) -> None:
    if x.shape[-1] != channels:
        raise ValueError(f"images must have {channels} channels, got {x.shape[-1]}")
