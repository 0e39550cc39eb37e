"""The residual pair of WGAN-GP (Gulrajani et al. 2017) and SNGAN (Miyato et al. 2018).

One definition for 32, 64 and 128 pixels. On 32 pixels it is the CIFAR-10 network of both papers:
three blocks up from 4x4 with equal channels, four blocks down of which two halve the image. On 64
and 128 it is SNGAN's for larger images: 1024 channels at 4x4, half as many at each size from 16x16
up, and the mirror image of that in the discriminator.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.gan_layers import (
    ConditionalBatchNorm,
    NonLocalBlock,
    SpectralConv,
    Verdict,
    VerdictHead,
    minibatch_stddev,
)
from jaxgen.models.blocks.resample import downsample, upsample
from jaxgen.models.conv.layers import Conv
from jaxgen.models.conv.resampled import UpsampledConv

SIZES = (32, 64, 128)
_glorot = nn.initializers.glorot_uniform()
_he_like = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")  # glorot, sqrt(2) larger


def generator_channels(image_size: int, channels: int) -> tuple[int, ...]:
    """Channels at 4x4 and after each doubling.

    Args:
        image_size: Height and width of the images, in pixels.
        channels: Channels at full size.

    Raises:
        ValueError: `image_size` is none of 32, 64 and 128.
    """
    _check_size(image_size)
    if image_size == 32:
        return (channels,) * 4
    ends = {64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
    return tuple(channels * m for m in ends[image_size])


def discriminator_channels(image_size: int, channels: int) -> tuple[tuple[int, bool], ...]:
    """(channels, whether it halves the image) of each block.

    Args:
        image_size: Height and width of the images, in pixels.
        channels: Channels of the first block.

    Raises:
        ValueError: `image_size` is none of 32, 64 and 128.
    """
    _check_size(image_size)
    if image_size == 32:
        return tuple((channels, halves) for halves in (True, True, False, False))
    multiples = {64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}[image_size]
    last = len(multiples) - 1 if image_size == 128 else -1  # 64 pixels: all five halve
    return tuple((channels * m, index != last) for index, m in enumerate(multiples))


def _check_size(image_size: int) -> None:
    if image_size not in SIZES:
        raise ValueError(f"image_size must be one of {SIZES}, got {image_size}: resize the images")


class _UpBlock(nn.Module):
    """norm, ReLU, double, 3x3, norm, ReLU, 3x3, beside a doubled 1x1."""

    features: int
    momentum: float
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, e: Array | None, *, train: bool) -> Array:
        def norm_relu(x: Array, name: str) -> Array:
            norm = ConditionalBatchNorm(
                momentum=self.momentum, axis_name=self.axis_name, dtype=self.dtype, name=name
            )
            return nn.relu(norm(x, e, train=train))

        def conv(layer: type[Conv], size: int, name: str) -> Conv:
            init = _glorot if size == 1 else _he_like
            return layer(self.features, (size, size), kernel_init=init, dtype=self.dtype, name=name)

        y = conv(UpsampledConv, 3, "conv1")(norm_relu(x, "norm1"))
        y = conv(Conv, 3, "conv2")(norm_relu(y, "norm2"))
        # A 1x1 convolution of doubled pixels is the doubled 1x1 convolution, a quarter of the work.
        return y + upsample(conv(Conv, 1, "shortcut")(x))


class _DownBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, halved, beside a halved 1x1.

    The first block has no first ReLU, and float32 where it sees the image.
    """

    features: int
    halves: bool
    first: bool
    normalize: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        features = self.features

        def conv(x: Array, size: int, name: str, features: int = features, **options: Any) -> Array:
            layer = SpectralConv(
                features,
                size,
                normalize=self.normalize,
                kernel_init=_glorot if size == 1 else _he_like,
                dtype=jnp.float32 if self.first and name != "conv2" else self.dtype,
                name=name,
                **options,
            )
            return layer(x, train=train).astype(self.dtype)

        # As in the authors' code: but for the first block the width changes in the second layer.
        hidden = features if self.first else x.shape[-1]
        y = conv(x if self.first else nn.relu(x), 3, "conv1", hidden)
        y = conv(nn.relu(y), 3, "conv2", halves=self.halves)
        if not self.halves and x.shape[-1] == features:
            return y + x
        # Averaging and a 1x1 convolution commute: average first, on a quarter of the pixels.
        return y + conv(downsample(x) if self.halves else x, 1, "shortcut")


class Generator(nn.Module):
    """From latents to images in [-1, 1], through residual blocks that double the size.

    Attributes:
        image_size: Height and width of the images, 32, 64 or 128 pixels.
        out_channels: Channels of the images.
        channels: Channels of all hidden layers on 32 pixels, of the last one on 64 and 128 (64 in
            SNGAN).
        latent_dim: Width of the latents.
        attention_size: Image size at which a `NonLocalBlock` stands (SAGAN), or None for none.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first and the last layer are
            float32.

    Examples:
        >>> generator = Generator(channels=8, latent_dim=4)
        >>> z = jnp.zeros((2, 4))
        >>> variables = generator.init(jax.random.key(0), z, train=False)
        >>> generator.apply(variables, z, train=False).shape
        (2, 32, 32, 3)
    """

    image_size: int = 32
    out_channels: int = 3
    channels: int = 256
    latent_dim: int = 128
    attention_size: int | None = None
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """Makes an image of each latent; a condition's vector sets the norms' gains and biases.

        Args:
            z: Latents.
            condition: One vector an example, or None for an unconditional network.
            train: Normalize by the batch's statistics and update the running ones.

        Returns:
            Images in [-1, 1], float32.

        Raises:
            ValueError: An image size that the network cannot make, latents of another width, or a
                condition with tokens.
        """
        e = vector_of(condition)
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must be [B, {self.latent_dim}], got {list(z.shape)}")
        first, *channels = generator_channels(self.image_size, self.channels)
        project = nn.Dense(16 * first, kernel_init=_glorot, dtype=jnp.float32, name="project")
        x = project(z).astype(self.dtype).reshape(-1, 4, 4, first)
        for index, features in enumerate(channels):
            block = _UpBlock(
                features, self.momentum, self.axis_name, self.dtype, name=f"block{index + 1}"
            )
            x = block(x, e, train=train)
            if x.shape[1] == self.attention_size:
                attention = NonLocalBlock(normalize=False, dtype=self.dtype, name="attention")
                x = attention(x, train=train)
        norm = ConditionalBatchNorm(momentum=self.momentum, axis_name=self.axis_name, name="norm")
        x = nn.relu(norm(x, None, train=train))
        out = Conv(self.out_channels, (3, 3), kernel_init=_glorot, dtype=jnp.float32, name="out")
        return jnp.tanh(out(x))


class Discriminator(nn.Module):
    """From images to verdicts, through residual blocks that halve the size.

    Attributes:
        channels: Channels of all hidden layers on 32 pixels, of the first one on 64 and 128.
        normalize: Spectral normalization of every layer (SNGAN); without it, WGAN-GP's critic.
        pool: Pooling over the last positions, "sum" (SNGAN) or "mean" (WGAN-GP).
        attention_size: Image size at which a `NonLocalBlock` stands (SAGAN), or None for none.
        stddev_group: Size of a group of `minibatch_stddev` before the last ReLU; 0 for none.
        num_classes: Number of classes, or attributes, of the auxiliary classifier, or None for no
            classifier.
        dtype: Type of the computation; parameters, the layers that see the image, and verdicts are
            float32.
    """

    channels: int = 128
    normalize: bool = True
    pool: str = "sum"
    attention_size: int | None = None
    stddev_group: int = 0
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def mixes_examples(self) -> bool:
        """Whether the verdict on one image depends on the others."""
        return self.stddev_group > 0

    batch_statistics = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Verdict:
        """Judges images, given what they should show.

        Args:
            x: Images in [-1, 1].
            condition: One vector an example, or None for an unconditional network.
            train: Advance the power iteration of spectral normalization by one step.

        Raises:
            ValueError: Images that are not square or of another size than 32, 64 and 128, a `pool`
                that is unknown, a batch that `stddev_group` does not divide, or a condition with
                tokens.
        """
        e = vector_of(condition)
        _, height, width, _ = x.shape
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}")
        if self.pool not in ("sum", "mean"):
            raise ValueError(f"pool must be 'sum' or 'mean', got {self.pool!r}")
        for index, (features, halves) in enumerate(discriminator_channels(height, self.channels)):
            block = _DownBlock(
                features, halves, index == 0, self.normalize, self.dtype, name=f"block{index + 1}"
            )
            x = block(x, train=train)
            if x.shape[1] == self.attention_size:
                attention = NonLocalBlock(self.normalize, self.dtype, name="attention")
                x = attention(x, train=train)
        if self.stddev_group:
            x = minibatch_stddev(x, self.stddev_group)
        h = nn.relu(x).astype(jnp.float32)
        h = h.sum(axis=(1, 2)) if self.pool == "sum" else h.mean(axis=(1, 2))
        head = VerdictHead(self.num_classes, self.normalize, name="head")
        return head(h, e, train=train)
