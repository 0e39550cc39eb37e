"""DCGAN (Radford et al. 2016): transposed convolutions up, strided convolutions down.

The published network makes 64x64 pixels from 100 numbers through 1024, 512, 256 and 128 channels
(`channels=128`). Every size `b 2^k` with b in 4..7 follows from the same definition: 28, 32, 64,
128... pixels, and smaller images with another `min_size`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.gan_layers import (
    ConditionalBatchNorm,
    Verdict,
    VerdictHead,
    minibatch_stddev,
)
from jaxgen.models.conv.layers import Conv, ConvTranspose

_normal = nn.initializers.normal(0.02)


def around_one(key, shape, dtype=jnp.float32):
    """Initializer of the gains of norms: N(1, 0.02^2)."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def levels(image_size: int, min_size: int = 4) -> tuple[int, int]:
    """`(b, k)` with `image_size = b 2^k`, `min_size <= b < 2 min_size`, and k at least 1.

    Args:
        image_size: Height and width of the images, in pixels.
        min_size: Least side b of the innermost image.

    Raises:
        ValueError: There is no such pair, or `min_size` is below 1.
    """
    if min_size < 1:
        raise ValueError(f"min_size must be at least 1, got {min_size}")
    size, doublings = image_size, 0
    while size % 2 == 0 and size >= 2 * min_size:
        size, doublings = size // 2, doublings + 1
    if not min_size <= size < 2 * min_size or doublings < 1:
        bases = ", ".join(str(b) for b in range(min_size, 2 * min_size))
        raise ValueError(
            f"image_size must be one of {bases} times a power of two, got {image_size}: "
            "resize the images"
        )
    return size, doublings


class Generator(nn.Module):
    """From latents to images in [-1, 1]; transposed 4x4 convolutions of stride 2.

    Attributes:
        image_size: Height and width of the images, in pixels.
        out_channels: Channels of the images.
        channels: Channels of the last hidden layer; each one before it has twice as many.
        latent_dim: Width of the latents.
        min_size: Least side of the first image, see `levels`.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first and the last layer are
            float32.

    Examples:
        >>> generator = Generator(image_size=8, out_channels=1, channels=8)
        >>> z = jnp.zeros((2, generator.latent_dim))
        >>> variables = generator.init(jax.random.key(0), z, train=False)
        >>> generator.apply(variables, z, train=False).shape
        (2, 8, 8, 1)
    """

    image_size: int = 64
    out_channels: int = 3
    channels: int = 128
    latent_dim: int = 100
    min_size: int = 4
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
        e = vector_of(condition)
        base, doublings = levels(self.image_size, self.min_size)
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must be [B, {self.latent_dim}], got {list(z.shape)}")

        def norm_relu(x: Array, name: str) -> Array:
            norm = ConditionalBatchNorm(
                momentum=self.momentum,
                scale_init=around_one,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=name,
            )
            return nn.relu(norm(x, None, train=train))

        features = self.channels * 2 ** (doublings - 1)
        x = z if e is None else jnp.concatenate([z, e], axis=-1)
        x = nn.Dense(
            base * base * features,
            use_bias=False,
            kernel_init=_normal,
            dtype=jnp.float32,
            name="project",
        )(x)
        x = norm_relu(x.reshape(-1, base, base, features), "norm0")
        for level in range(1, doublings + 1):
            last = level == doublings
            x = ConvTranspose(
                self.out_channels if last else features // 2**level,
                (4, 4),
                strides=(2, 2),
                use_bias=last,
                kernel_init=_normal,
                dtype=jnp.float32 if last else self.dtype,
                name=f"up{level}",
            )(x)
            if not last:
                x = norm_relu(x, f"norm{level}")
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """From images to verdicts; 4x4 convolutions of stride 2, leaky ReLU of slope 0.2.

    Attributes:
        channels: Channels of the first layer; each one after it has twice as many.
        stddev_group: Size of a group of `minibatch_stddev` before the last layer; 0 for none.
        num_classes: Number of classes, or attributes, of the auxiliary classifier, or None for no
            classifier.
        min_size: Least side of the last image, see `levels`.
        batch_norm: Normalize by the batch's statistics, as the paper does; without it, as a penalty
            of the gradient needs, the convolutions have biases.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first layer and verdicts are
            float32.
    """

    channels: int = 128
    stddev_group: int = 0
    num_classes: int | None = None
    min_size: int = 4
    batch_norm: bool = True
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def mixes_examples(self) -> bool:
        """Whether the verdict on one image depends on the others."""
        return self.batch_norm or self.stddev_group > 0

    @property
    def batch_statistics(self) -> bool:
        """Whether it normalizes by batch statistics."""
        return self.batch_norm

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
            train: Normalize by the batch's statistics and update the running ones.

        Raises:
            ValueError: Images that are not square or of a size that the network cannot halve, a
                batch that `stddev_group` does not divide, or a condition with tokens.
        """
        e = vector_of(condition)
        _, height, width, _ = x.shape
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}")
        _, doublings = levels(height, self.min_size)
        for level in range(doublings):
            x = Conv(
                self.channels * 2**level,
                (4, 4),
                strides=(2, 2),
                padding=((1, 1), (1, 1)),
                use_bias=level == 0 or not self.batch_norm,
                kernel_init=_normal,
                dtype=self.dtype if level else jnp.float32,
                name=f"down{level + 1}",
            )(x).astype(self.dtype)
            if level and self.batch_norm:
                x = ConditionalBatchNorm(
                    momentum=self.momentum,
                    scale_init=around_one,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"norm{level + 1}",
                )(x, None, train=train)
            x = nn.leaky_relu(x, 0.2)
        if self.stddev_group:
            x = minibatch_stddev(x, self.stddev_group)
        head = VerdictHead(self.num_classes, normalize=False, kernel_init=_normal, name="head")
        return head(x.reshape(x.shape[0], -1), e, train=train)
