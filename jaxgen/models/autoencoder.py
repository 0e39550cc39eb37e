"""The convolutional autoencoder of VQGAN (Esser et al. 2021) and latent diffusion (Rombach et al.
2022): the U-Net of DDPM without its times and without what it keeps on the way down.

    sizes = KL_F4
    encoder, decoder = Encoder(sizes, moments=2), Decoder(sizes)     # 256x256x3 -> 64x64x(2 x 3)

The published sizes are values of `Sizes`. Of a KL autoencoder the encoder gives the mean and the
log-variance of its latents, side by side (`moments=2`), of one with codes the vectors before they
are quantized. The 1x1 convolutions around the latents, `quant_conv` and `post_quant_conv` in the
authors' code, are part of the networks.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.models.blocks.layers import Downsample, GroupNorm, SelfAttention, Upsample
from jaxgen.models.blocks.unet_layers import VQGAN, ResidualBlock, check_fields
from jaxgen.models.conv.layers import Conv


class Sizes(NamedTuple):
    """The sizes of an autoencoder, those of both of its networks.

    Attributes:
        multipliers: Channels of each level as multiples of `channels`. Each level but the last
            halves the image.
        latent_channels: Numbers at a position of the latent map.
        attention_factors: Factors by which the image is smaller where each block is followed by
            self-attention; the middle of both networks always has one.
        channels: Channels of the first level.
        num_res_blocks: Residual blocks a level of the encoder; the decoder has one more.
    """

    multipliers: tuple[int, ...] = (1, 2, 4)
    latent_channels: int = 3
    attention_factors: tuple[int, ...] = ()
    channels: int = 128
    num_res_blocks: int = 2

    @property
    def factor(self) -> int:
        """The factor by which the latent map is smaller than the image, each way."""
        return 2 ** (len(self.multipliers) - 1)


KL_F4 = Sizes()
"""64x64x3 latents of 256x256 pixels, 55,312,063 parameters with two moments."""

KL_F8 = Sizes((1, 2, 4, 4), 4)
"""32x32x4 latents of 256x256 pixels, 83,653,863 parameters with two moments."""

VQ_F4 = Sizes()
"""64x64 codes of 3 numbers, 55,298,206 parameters, 55,322,782 with the published 8,192 codes."""

VQ_F8 = Sizes((1, 2, 2, 4), 4, attention_factors=(8,))
"""32x32 codes of 4 numbers, 67,651,759 parameters, 67,717,295 with the published 16,384 codes."""

VQGAN_F16 = Sizes((1, 1, 2, 2, 4), 256, attention_factors=(16,))
"""16x16 codes of 256 numbers, 71,879,555 parameters, 72,141,699 with the published 1,024 codes."""


class Encoder(nn.Module):
    """From images to a map of latents, or of their moments.

    Attributes:
        sizes: Sizes of the network.
        moments: Values for each number of the latents: 2 for mean and log-variance, else 1.
        dtype: Type of the computation. Parameters, the first and the last convolutions and the
            result are float32.
        remat: Whether to compute each block again in the backward pass instead of keeping its
            activations: less memory for about a third more time.

    Examples:
        >>> encoder = Encoder(Sizes((1, 2), channels=8), moments=2)
        >>> x = jnp.zeros((2, 8, 8, 3))
        >>> encoder.init_with_output(jax.random.key(0), x)[0].shape
        (2, 4, 4, 6)
    """

    sizes: Sizes = KL_F4
    moments: int = 1
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        _check_sizes(self.sizes)
        if self.moments not in (1, 2):
            raise ValueError(f"moments must be 1 or 2, got {self.moments}")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns latent"]:
        """`[B, H / factor, W / factor, moments latent_channels]`.

        Raises:
            ValueError: If the height or width cannot be halved so often.
        """
        sizes = self.sizes
        check_image_size(x.shape[1:3], sizes)
        block, attention, conv = _parts(self.dtype, self.remat)
        h = conv(sizes.channels, name="conv_in")(x).astype(self.dtype)
        for level, multiplier in enumerate(sizes.multipliers):
            for i in range(sizes.num_res_blocks):
                h = block(multiplier * sizes.channels, name=f"down{level}_block{i}")(h, None)
                if 2**level in sizes.attention_factors:
                    h = attention(name=f"down{level}_attention{i}")(h)
            if level < len(sizes.multipliers) - 1:
                down = Downsample(self.dtype, VQGAN.kernel_init, name=f"down{level}_downsample")
                h = down(h)
        h = _middle(h, block, attention)
        h = nn.silu(GroupNorm(name="norm_out")(h))
        width = self.moments * sizes.latent_channels
        h = conv(width, name="conv_out")(h)
        return conv(width, kernel_size=(1, 1), name="quant_conv")(h)


class Decoder(nn.Module):
    """From a map of latents to images. Its last layer is the convolution `conv_out`.

    Attributes:
        sizes: Sizes of the network, the encoder's.
        image_channels: Channels of the images.
        dtype: Type of the computation. Parameters, the first and the last convolutions and the
            result are float32.
        remat: Whether to compute each block again in the backward pass.

    Examples:
        >>> decoder = Decoder(Sizes((1, 2), channels=8))
        >>> z = jnp.zeros((2, 4, 4, 3))
        >>> decoder.init_with_output(jax.random.key(0), z)[0].shape
        (2, 8, 8, 3)
    """

    sizes: Sizes = KL_F4
    image_channels: int = 3
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        _check_sizes(self.sizes)
        if self.image_channels < 1:
            raise ValueError(f"image_channels must be positive, got {self.image_channels}")

    def setup(self) -> None:
        """The two parts, apart for those who differentiate by the last layer alone."""
        self.trunk = _Trunk(self.sizes, self.dtype, self.remat)
        self.conv_out = Conv(self.image_channels, (3, 3), kernel_init=VQGAN.kernel_init)

    def __call__(
        self, z: Float[Array, "batch rows columns latent"]
    ) -> Float[Array, "batch height width channels"]:
        """`[B, rows factor, columns factor, image_channels]`, about [-1, 1] but not cut off there.

        Raises:
            ValueError: If the latents have another number of channels than the sizes say.
        """
        return self.pixels(self.features(z))

    def features(
        self, z: Float[Array, "batch rows columns latent"]
    ) -> Float[Array, "batch height width features"]:
        """What the last layer is given of latents."""
        return self.trunk(z)

    def pixels(
        self, features: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width channels"]:
        """What the last layer makes of `features`."""
        return self.conv_out(features)


class _Trunk(nn.Module):
    """The decoder but for its last layer."""

    sizes: Sizes
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, z: Array) -> Array:
        sizes = self.sizes
        if z.shape[-1] != sizes.latent_channels:
            raise ValueError(
                f"z must have {sizes.latent_channels} channels, latent_channels, got {z.shape[-1]}"
            )
        block, attention, conv = _parts(self.dtype, self.remat)
        h = conv(sizes.latent_channels, kernel_size=(1, 1), name="post_quant_conv")(z)
        h = conv(sizes.multipliers[-1] * sizes.channels, name="conv_in")(h).astype(self.dtype)
        h = _middle(h, block, attention)
        for level, multiplier in reversed(list(enumerate(sizes.multipliers))):
            for i in range(sizes.num_res_blocks + 1):
                h = block(multiplier * sizes.channels, name=f"up{level}_block{i}")(h, None)
                if 2**level in sizes.attention_factors:
                    h = attention(name=f"up{level}_attention{i}")(h)
            if level > 0:
                h = Upsample(self.dtype, VQGAN.kernel_init, name=f"up{level}_upsample")(h)
        return nn.silu(GroupNorm(name="norm_out")(h))


def check_image_size(image_size: tuple[int, ...], sizes: Sizes) -> None:
    """Raise ValueError unless images can be halved as often as the networks do.

    Args:
        image_size: Height and width of the images.
        sizes: Sizes of the networks.
    """
    if any(side % sizes.factor for side in image_size):
        raise ValueError(
            f"height and width must be multiples of {sizes.factor}, to be halved "
            f"{len(sizes.multipliers) - 1} times, got {'x'.join(map(str, image_size))}: resize the "
            "images"
        )


def _parts(dtype: DTypeLike, remat: bool) -> tuple[Any, Any, Any]:
    """The makers of residual blocks, of attention, and of float32 3x3 convolutions."""
    wrap: Any = nn.remat if remat else lambda module: module
    init = VQGAN.kernel_init
    block = partial(wrap(ResidualBlock), dropout=0.0, deterministic=True, dtype=dtype, style=VQGAN)
    attention = partial(
        wrap(SelfAttention), dtype=dtype, kernel_init=init, last_init=VQGAN.last_init
    )
    return block, attention, partial(Conv, kernel_size=(3, 3), kernel_init=init)


def _middle(h: Array, block: Any, attention: Any) -> Array:
    """The innermost part: a block, attention over all positions, a block."""
    h = block(h.shape[-1], name="mid_block0")(h, None)
    h = attention(name="mid_attention")(h)
    return block(h.shape[-1], name="mid_block1")(h, None)


def _check_sizes(sizes: Sizes) -> None:
    check_fields(sizes.channels, sizes.num_res_blocks, 0.0, sizes.multipliers)
    if sizes.latent_channels < 1:
        raise ValueError(f"latent_channels must be positive, got {sizes.latent_channels}")
    factors = [2**level for level in range(len(sizes.multipliers))]
    if not set(sizes.attention_factors) <= set(factors):
        raise ValueError(
            f"attention_factors must be among {factors}, those of the levels, got "
            f"{sizes.attention_factors}"
        )
