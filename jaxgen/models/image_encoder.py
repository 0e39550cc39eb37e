"""A small network that reads an image: one vector, for comparison with a caption's."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.models.blocks.layers import GroupNorm
from jaxgen.models.conv.layers import Conv


class ImageEncoder(nn.Module):
    """3x3 convolutions of stride 2 with group norms down to 4 pixels, their mean, a linear map.

    Attributes:
        width: Width of the vector.
        channels: Channels of the first convolution; each further one has twice as many, up to
            eight times.
        dtype: Type of the hidden layers' computation; the first and the last are float32.
    """

    width: int = 128
    channels: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch features"]:
        """The vector of each image in model space, [-1, 1]."""
        x, features = Conv(self.channels, (3, 3), name="conv_in")(image), self.channels
        x = nn.silu(x)
        for i in range(16):
            if max(x.shape[1:3]) <= 4:
                break
            features = min(2 * features, 8 * self.channels)
            conv = Conv(features, (3, 3), strides=(2, 2), dtype=self.dtype, name=f"conv_{i}")
            x = nn.silu(GroupNorm(dtype=self.dtype, name=f"norm_{i}")(conv(x)))
        pooled = x.astype(jnp.float32).reshape(len(x), -1)
        return nn.Dense(self.width, name="out")(pooled)
