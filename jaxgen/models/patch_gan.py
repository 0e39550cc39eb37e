"""PatchGAN: the discriminator that judges overlapping patches (Isola et al. 2017, pix2pix).

The discriminator of VQGAN and latent diffusion too: with three layers a verdict sees 70x70 pixels,
and there are 30x30 of them in a 256x256 image.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.models.blocks.gan_layers import ConditionalBatchNorm
from jaxgen.models.conv.layers import Conv
from jaxgen.models.dcgan import around_one

_MOST_DOUBLINGS = 3
_normal = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
    """From images to a map of logits: 4x4 convolutions, leaky ReLU of slope 0.2.

    `num_layers` convolutions of stride 2, then two of stride 1. All but the first and the last are
    normalized over the batch. With the defaults 2,765,633 parameters for images of 3 channels.

    Attributes:
        channels: Channels of the first layer; each one after it has twice as many, up to eight
            times.
        num_layers: Number of convolutions of stride 2.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first layer and logits are
            float32.

    Examples:
        >>> discriminator = PatchDiscriminator(channels=8)
        >>> x = jnp.zeros((2, 32, 32, 3))
        >>> variables = discriminator.init(jax.random.key(0), x, train=False)
        >>> discriminator.apply(variables, x, train=False).shape
        (2, 2, 2)
    """

    channels: int = 64
    num_layers: int = 3
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        for name in ("channels", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch rows columns"]:
        """Judges the patches of images.

        Args:
            x: Images in [-1, 1].
            train: Normalize by the batch's statistics and update the running ones.

        Returns:
            f32[B, H / 2^num_layers - 2, W / 2^num_layers - 2], sides rounded down: logits.

        Raises:
            ValueError: If the images are too small for one verdict.
        """
        check_image_size(x.shape[1:3], self.num_layers)
        for layer in range(self.num_layers + 1):
            first, stride = layer == 0, 2 if layer < self.num_layers else 1
            x = Conv(
                self.channels * 2 ** min(layer, _MOST_DOUBLINGS),
                (4, 4),
                strides=(stride, stride),
                padding=((1, 1), (1, 1)),
                use_bias=first,
                kernel_init=_normal,
                dtype=jnp.float32 if first else self.dtype,
                name=f"conv{layer}",
            )(x).astype(self.dtype)
            if not first:
                norm = ConditionalBatchNorm(
                    momentum=self.momentum,
                    scale_init=around_one,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"norm{layer}",
                )
                x = norm(x, None, train=train)
            x = nn.leaky_relu(x, 0.2)
        last = Conv(1, (4, 4), padding=((1, 1), (1, 1)), kernel_init=_normal, name="conv_out")
        return last(x.astype(jnp.float32))[..., 0]


def check_image_size(image_size: tuple[int, ...], num_layers: int) -> None:
    """Raise ValueError unless images are large enough for one verdict.

    Args:
        image_size: Height and width of the images.
        num_layers: Number of convolutions of stride 2.
    """
    least = 3 * 2**num_layers
    if min(image_size) < least:
        raise ValueError(
            f"num_layers: {num_layers} layers judge images of {least} pixels and more each way, "
            f"got {'x'.join(map(str, image_size))}"
        )
