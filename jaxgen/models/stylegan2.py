"""StyleGAN2's generator (Karras et al. 2020): latents z become styles w, and these an image.

A mapping network makes of a latent one vector, the style, which lies in a space less entangled than
the latents' Gaussian. The synthesis begins with a learned 4x4 image; each convolution scales its
input's channels by what it reads from a style (modulation), and its output's back to unit size
(demodulation). Every size adds its colours to the image so far. The discriminator is in
`stylegan2_discriminator`.

Beside its parameters a generator has two collections: `AVERAGE`, the mean style, towards which
truncation leads; and `NOISE`, a constant image of noise for every layer, which stands where no
stream of random numbers by that name is given.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.models.blocks.equalized import NHWC, EqualizedDense, biased, clipped, leaky
from jaxgen.models.blocks.gan_layers import NOISE
from jaxgen.models.blocks.resample import BINOMIAL, smooth, upsample
from jaxgen.models.conv.layers import conv_general_dilated

AVERAGE = "average"
_RATE = 0.01  # of the mapping network's learning rate


def sizes(image_size: int) -> tuple[int, ...]:
    """The sizes of the images inside both networks, from 4 pixels on.

    Args:
        image_size: Height and width of the images, in pixels.

    Raises:
        ValueError: `image_size` is no power of two of at least 8.
    """
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(
            f"image_size must be a power of two of at least 8, got {image_size}: resize the images"
        )
    return tuple(2**k for k in range(2, image_size.bit_length()))


def channels_at(size: int, channel_base: int, channel_max: int) -> int:
    """Channels of the images of a size, `min(channel_base / size, channel_max)`.

    Args:
        size: Height and width, in pixels.
        channel_base: Channels times size, where there are fewer than `channel_max`.
        channel_max: Most channels.

    Raises:
        ValueError: There would be none.
    """
    if channel_max < 1 or channel_base < size:
        raise ValueError(
            f"channel_base must be at least the image's size, {size}, and channel_max at least 1, "
            f"got {channel_base} and {channel_max}"
        )
    return min(channel_base // size, channel_max)


def modulated_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side channels features"],
    style: Float[Array, "batch channels"],
    *,
    demodulate: bool = True,
    doubles: bool = False,
) -> Float[Array, "batch height2 width2 features"]:
    r"""A convolution by a kernel of each example's own (Karras et al. 2020, eq. 1 and 3).

    $$w'_{kio} = s_i\, w_{kio}, \qquad
    w''_{kio} = w'_{kio} \Big/ \sqrt{\textstyle\sum_{k,i} w'^2_{kio} + 10^{-8}}$$
    with i an input channel, o an output channel and k a tap. It is computed by one kernel for all
    examples: the input's channels are scaled by s, the output's by the root.

    Args:
        x: Images.
        kernel: Kernel w, of an odd side.
        style: Scales s of the input's channels.
        demodulate: Whether the output is scaled back, w'' in the place of w'.
        doubles: Whether height and width are doubled: zeros between pixels, the convolution, then
            the filter `BINOMIAL`.

    Returns:
        Images of the same or twice the size, of the type of `x`.
    """
    side = kernel.shape[0]
    y = x * style[:, None, None].astype(x.dtype)
    pad, spacing = (side - 1, 2) if doubles else (side // 2, 1)
    y = conv_general_dilated(
        y,
        kernel.astype(x.dtype),
        (1, 1),
        ((pad, pad), (pad, pad)),
        (spacing, spacing),
        dimension_numbers=NHWC,
    )
    if doubles:
        y = 4 * smooth(y, BINOMIAL, side // 2)  # a quarter of what was filtered is not zero
    if demodulate:
        squares = jnp.sum(jnp.square(kernel), axis=(0, 1))
        scale = lax.rsqrt(jnp.square(style) @ squares + 1e-8)
        y = y * scale[:, None, None].astype(x.dtype)
    return y


class Mapping(nn.Module):
    """From latents, and a condition, to styles; float32.

    Both are scaled to a mean square of 1; of a condition first an embedding.

    Attributes:
        width: Width of the styles and of all layers.
        num_layers: Number of layers.
        average_decay: Weight of the old mean style at each update, or None to keep none.
    """

    width: int
    num_layers: int = 8
    average_decay: float | None = None

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"] | None,
        e: Float[Array, "batch condition_width"] | None = None,
        *,
        train: bool = False,
        truncation: float = 1.0,
    ) -> Float[Array, "batch width"]:
        """Maps.

        Args:
            z: Latents, or None for a map of the condition alone.
            e: Vectors of the condition, or None.
            train: Whether the mean style is updated, where its collection is mutable.
            truncation: Share of the way from the mean style to each one; 1 for all of it.
        """
        parts = [] if z is None else [_normalized(z)]
        if e is not None:
            parts.append(_normalized(EqualizedDense(self.width, name="embed")(e)))
        h = jnp.concatenate(parts, axis=-1)
        for index in range(self.num_layers):
            h = EqualizedDense(self.width, _RATE, active=True, name=f"layer{index}")(h)
        if self.average_decay is None:
            return h
        mean = self.variable(AVERAGE, "w", lambda: jnp.zeros(self.width))
        if train and self.is_mutable_collection(AVERAGE) and not self.is_initializing():
            new = lax.stop_gradient(h).mean(axis=0)
            mean.value = self.average_decay * mean.value + (1 - self.average_decay) * new
        if truncation == 1:
            return h
        return mean.value[None] + truncation * (h - mean.value[None])


def _normalized(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


class _StyledConv(nn.Module):
    """A modulated convolution, noise of a learned strength, bias and `leaky`."""

    features: int
    doubles: bool
    clamp: float | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        channels = x.shape[-1]
        style = EqualizedDense(channels, bias_init=1.0, name="style")(w)
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        y = modulated_conv(x.astype(self.dtype), kernel, style, doubles=self.doubles)
        batch, height, width, _ = y.shape
        constant = self.variable(
            NOISE, "constant", lambda: standard_normal(self.make_rng("params"), (height, width))
        )
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        noise = constant.value[None, :, :, None]
        if self.has_rng(NOISE):
            noise = standard_normal(self.make_rng(NOISE), (batch, height, width, 1))
        y = y + (strength * noise).astype(y.dtype)
        y = biased(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return leaky(y, clamp=self.clamp)


class _ToImage(nn.Module):
    """A modulated 1x1 convolution to colours, not demodulated; float32."""

    features: int
    clamp: float | None

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        channels = x.shape[-1]
        style = EqualizedDense(channels, bias_init=1.0, name="style")(w) / math.sqrt(channels)
        shape = (1, 1, channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        y = modulated_conv(x.astype(jnp.float32), kernel, style, demodulate=False)
        y = biased(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return clipped(y, 1.0, self.clamp)


class _Block(nn.Module):
    """Doubles the size (but for the first block), and adds its colours to the doubled image."""

    features: int
    out_channels: int
    clamp: float | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, image: Array | None, styles: Array) -> tuple[Array, Array]:
        def conv(name: str, doubles: bool) -> _StyledConv:
            return _StyledConv(self.features, doubles, self.clamp, self.dtype, name=name)

        if image is not None:
            x = conv("up", True)(x, styles[:, 0])
            styles = styles[:, 1:]
        x = conv("conv", False)(x, styles[:, 0])
        colours = _ToImage(self.out_channels, self.clamp, name="to_image")(x, styles[:, 1])
        return x, colours if image is None else upsample(image, BINOMIAL) + colours


class _Synthesis(nn.Module):
    """From the styles of all layers to an image."""

    image_size: int
    out_channels: int
    channel_base: int
    channel_max: int
    clamp: float | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, styles: Array) -> Array:
        image: Array | None = None
        layer = 0
        for size in sizes(self.image_size):
            features = channels_at(size, self.channel_base, self.channel_max)
            if size == 4:
                x = self.param("constant", nn.initializers.normal(1.0), (4, 4, features))
                x = jnp.broadcast_to(x[None], (len(styles), 4, 4, features)).astype(self.dtype)
            block = _Block(features, self.out_channels, self.clamp, self.dtype, name=f"block{size}")
            x, image = block(x, image, styles[:, layer : layer + 3])
            layer += 1 if size == 4 else 2  # a block's colours have the style of what comes next
        assert image is not None
        return image


class Generator(nn.Module):
    """From latents to images about [-1, 1], by styles.

    A stream of random numbers by the name `NOISE` draws the noise of every layer, and in training
    *mixes styles*: with a probability the layers of an example after a random one take the style
    of another latent, so that neighbouring layers do not rely on each other. Without it the noise
    is constant, and nothing is mixed.

    Attributes:
        image_size: Height and width of the images, a power of two of at least 8 pixels.
        out_channels: Channels of the images.
        channel_base: Channels times size, where there are fewer than `channel_max`.
        channel_max: Most channels of a layer.
        latent_dim: Width of the latents.
        style_dim: Width of the styles and of the mapping network.
        mapping_layers: Number of layers of the mapping network.
        mixing: Probability that the styles of an example are mixed in training.
        average_decay: Weight of the old mean style at each update.
        clamp: Greatest size of an activation, so that small float types do not overflow, or None.
        dtype: Type of the computation; parameters, the mapping network, styles and colours are
            float32.

    Examples:
        >>> generator = Generator(8, channel_max=8, latent_dim=4, style_dim=4, mapping_layers=2)
        >>> z = jnp.zeros((2, 4))
        >>> variables = generator.init(jax.random.key(0), z, train=False)
        >>> generator.apply(variables, z, train=False).shape
        (2, 8, 8, 3)
    """

    image_size: int = 32
    out_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    latent_dim: int = 512
    style_dim: int = 512
    mapping_layers: int = 8
    mixing: float = 0.9
    average_decay: float = 0.995
    clamp: float | None = 256.0
    dtype: DTypeLike = jnp.float32

    @property
    def num_styles(self) -> int:
        """The number of layers that a style is given to."""
        return 2 * len(sizes(self.image_size))

    def setup(self) -> None:
        """The two networks."""
        self.mapping = Mapping(self.style_dim, self.mapping_layers, self.average_decay)
        self.synthesis = _Synthesis(
            self.image_size,
            self.out_channels,
            self.channel_base,
            self.channel_max,
            self.clamp,
            self.dtype,
        )

    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """Makes an image of each latent.

        Args:
            z: Latents.
            condition: One vector an example, or None for an unconditional network.
            train: Mix styles, and update the mean style.

        Returns:
            Images, float32; values may leave [-1, 1].

        Raises:
            ValueError: An image size that the network cannot make, a probability, a clamp or a
                number of layers out of range, latents of another width, or a condition with tokens.
        """
        return self.synthesize(self.styles(z, condition, train=train))

    def styles(
        self,
        z: Float[Array, "batch latent"],
        condition: Condition | None = None,
        *,
        train: bool = False,
        truncation: float = 1.0,
    ) -> Float[Array, "batch layers features"]:
        """The style of each layer.

        Args:
            z: Latents.
            condition: One vector an example, or None for an unconditional network.
            train: Mix styles, and update the mean style where its collection is mutable.
            truncation: Share of the way from the mean style to each one, psi; 1 for all of it.
        """
        e = vector_of(condition)
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must be [B, {self.latent_dim}], got {list(z.shape)}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing must be in [0, 1], got {self.mixing}")
        if self.mapping_layers < 1:
            raise ValueError(f"mapping_layers must be at least 1, got {self.mapping_layers}")
        w = self.mapping(z, e, train=train, truncation=truncation)
        styles = jnp.repeat(w[:, None], self.num_styles, axis=1)
        if not train or self.mixing == 0 or not self.has_rng(NOISE):
            return styles
        other = self.mapping(standard_normal(self.make_rng(NOISE), z.shape), e)
        mixed = jax.random.bernoulli(self.make_rng(NOISE), self.mixing, (len(z),))
        last = jax.random.randint(self.make_rng(NOISE), (len(z),), 1, self.num_styles)
        last = jnp.where(mixed, last, self.num_styles)
        own = jnp.arange(self.num_styles)[None] < last[:, None]
        return jnp.where(own[:, :, None], styles, other[:, None])

    def synthesize(
        self, styles: Float[Array, "batch layers features"]
    ) -> Float[Array, "batch height width channels"]:
        """Makes an image of the styles of all layers.

        Args:
            styles: A style for each layer, [batch, num_styles, style_dim].

        Raises:
            ValueError: Styles of another shape.
        """
        expected = [self.num_styles, self.style_dim]
        if list(styles.shape[1:]) != expected:
            shape = ", ".join(map(str, expected))
            raise ValueError(f"styles must be [B, {shape}], got {list(styles.shape)}")
        return self.synthesis(styles)
