"""The pair that draws anime characters (Jin et al. 2017, arXiv 1708.05509).

The generator is SRResNet's (Ledig et al. 2017): a stack of residual blocks at 16x16 pixels, one
long skip around it, then convolutions whose channels are shuffled into pixels, each of which
doubles the image. The discriminator has residual blocks too, of which none is normalized by the
batch, as a penalty of its gradient needs. At 128 pixels and 34 attributes the two have 4.3 and 23.9
million parameters; every size `16 2^k` follows from the same definition.

Kernels start as Flax's layers do (LeCun's, of unit gain at any width), of which the paper says
nothing.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.gan_layers import ConditionalBatchNorm, Verdict, VerdictHead
from jaxgen.models.blocks.resample import pixel_shuffle
from jaxgen.models.conv.layers import Conv

BASE = 16  # pixels, where the generator's residual blocks are
_LAST = 2  # pixels, where the discriminator ends
_SLOPE = 0.2
_lecun = nn.initializers.lecun_normal()


def doublings(image_size: int) -> int:
    """k with `image_size = 16 2^k`, at least 0.

    Args:
        image_size: Height and width of the images, in pixels.

    Raises:
        ValueError: There is no such k.
    """
    k = max(image_size // BASE, 1).bit_length() - 1
    if image_size != BASE * 2**k:
        raise ValueError(
            f"image_size must be {BASE} times a power of two, got {image_size}: resize the images"
        )
    return k


class Generator(nn.Module):
    """From latents to images in [-1, 1]: residual blocks at 16x16, then shuffled pixels.

    Attributes:
        image_size: Height and width of the images, 16 times a power of two.
        out_channels: Channels of the images.
        channels: Channels of all hidden layers.
        latent_dim: Width of the latents.
        blocks: Number of residual blocks.
        kernel_size: Side of the last kernel, odd; on a CPU 9 is half of the work at 64 pixels.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first and the last layer are
            float32.

    Examples:
        >>> generator = Generator(image_size=32, channels=8, latent_dim=4, blocks=1)
        >>> z = jnp.zeros((2, 4))
        >>> variables = generator.init(jax.random.key(0), z, train=False)
        >>> generator.apply(variables, z, train=False).shape
        (2, 32, 32, 3)
    """

    image_size: int = 128
    out_channels: int = 3
    channels: int = 64
    latent_dim: int = 128
    blocks: int = 16
    kernel_size: int = 9
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
        """Makes an image of each latent; a condition's vector is appended to the latent.

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
        e, k = vector_of(condition), doublings(self.image_size)
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must be [B, {self.latent_dim}], got {list(z.shape)}")

        def norm(x: Array, name: str) -> Array:
            layer = ConditionalBatchNorm(
                momentum=self.momentum, axis_name=self.axis_name, dtype=self.dtype, name=name
            )
            return layer(x, None, train=train)

        def conv(x: Array, features: int, name: str, *, use_bias: bool = False) -> Array:
            layer = Conv(features, (3, 3), use_bias=use_bias, dtype=self.dtype, name=name)
            return layer(x)

        x = z if e is None else jnp.concatenate([z, e], axis=-1)
        features = BASE * BASE * self.channels
        x = nn.Dense(features, use_bias=False, dtype=jnp.float32, name="project")(x)
        x = nn.relu(norm(x.reshape(-1, BASE, BASE, self.channels), "norm0"))
        skipped = x
        for i in range(1, self.blocks + 1):
            y = nn.relu(norm(conv(x, self.channels, f"block{i}_conv1"), f"block{i}_norm1"))
            x = x + norm(conv(y, self.channels, f"block{i}_conv2"), f"block{i}_norm2")
        x = skipped + nn.relu(norm(x, "norm1"))
        for i in range(1, k + 1):
            x = pixel_shuffle(conv(x, 4 * self.channels, f"up{i}", use_bias=True))
            x = nn.relu(norm(x, f"up{i}_norm"))
        kernel = (self.kernel_size, self.kernel_size)
        return jnp.tanh(Conv(self.out_channels, kernel, dtype=jnp.float32, name="out")(x))


class Discriminator(nn.Module):
    """From images to verdicts: residual blocks, then a convolution that halves, until 2x2 pixels.

    Attributes:
        channels: Channels of the first layer; each one that halves after it has twice as many.
        blocks: Number of residual blocks at each size.
        num_classes: Number of classes, or attributes, of the auxiliary classifier, or None for no
            classifier.
        dtype: Type of the computation; parameters, the first layer and verdicts are float32.
    """

    channels: int = 32
    blocks: int = 2
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    mixes_examples = False
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
            train: Without effect: there are no statistics.

        Raises:
            ValueError: Images that are not square or of a size other than 16 times a power of two,
                or a condition with tokens.
        """
        e = vector_of(condition)
        _, height, width, _ = x.shape
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}")
        doublings(height)  # refuses other sizes

        def conv(x: Array, name: str) -> Array:
            return Conv(x.shape[-1], (3, 3), dtype=self.dtype, name=name)(x)

        def halve(x: Array, features: int, dtype: DTypeLike, name: str) -> Array:
            padding = ((1, 1), (1, 1))
            layer = Conv(features, (4, 4), (2, 2), padding, dtype=dtype, name=name)
            return nn.leaky_relu(layer(x), _SLOPE).astype(self.dtype)

        x = halve(x, self.channels, jnp.float32, "down0")
        stage = 0
        while x.shape[1] > _LAST:
            stage += 1
            for i in range(1, self.blocks + 1):
                y = nn.leaky_relu(conv(x, f"block{stage}_{i}_conv1"), _SLOPE)
                x = nn.leaky_relu(x + conv(y, f"block{stage}_{i}_conv2"), _SLOPE)
            x = halve(x, 2 * x.shape[-1], self.dtype, f"down{stage}")
        head = VerdictHead(self.num_classes, normalize=False, kernel_init=_lecun, name="head")
        return head(x.astype(jnp.float32).reshape(x.shape[0], -1), e, train=train)
