"""Networks that choose a coupling's parameters: `network(x, condition) -> [..., features]`.

All of them start at 0, whatever their input: the coupling then starts as the identity.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.bijectors.algebra import ActNorm
from jaxgen.models.blocks.layers import GroupNorm
from jaxgen.models.conv.layers import Conv

zeros = nn.initializers.zeros


class MLP(nn.Module):
    """Dense layers with SiLU between; the condition is added before each.

    Attributes:
        features: Number of outputs.
        hidden: Widths of the hidden layers.
        dtype: Type of the computation; None for the input's.
    """

    features: int
    hidden: tuple[int, ...] = (64, 64)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch width"], condition: Condition | None = None
    ) -> Float[Array, "batch features"]:
        """Maps vectors, and their conditions, to vectors."""
        e = vector_of(condition)
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x)
            if e is not None:
                x = x + nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"told_{i}")(e)
            x = nn.silu(x)
        return nn.Dense(self.features, kernel_init=zeros, dtype=self.dtype, name="out")(x)


class ConvNet(nn.Module):
    """Glow's network: convolutions 3x3, 1x1 and 3x3 (Kingma and Dhariwal 2018, section 3.3).

    The first two are normalized as by `ActNorm`, and rectified.

    Attributes:
        features: Number of output channels.
        width: Number of hidden channels.
        dtype: Type of the convolutions; None for the input's.
    """

    features: int
    width: int = 512
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], condition: Condition | None = None
    ) -> Float[Array, "batch height width features"]:
        """Maps images, and their conditions, to images."""
        e = vector_of(condition)
        init = nn.initializers.normal(0.05)
        for i, size in enumerate((3, 1)):
            x = Conv(
                self.width,
                (size, size),
                use_bias=False,
                kernel_init=init,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x, _ = ActNorm(name=f"norm_{i}")(x)
            if e is not None:
                shift = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=f"told_{i}")
                x = x + shift(e)[:, None, None]
            x = nn.relu(x)
        return Conv(self.features, (3, 3), kernel_init=zeros, dtype=self.dtype, name="out")(x)


class ResNet(nn.Module):
    """Residual blocks of two 3x3 convolutions, normalized before each.

    RealNVP's conditioner (Dinh et al. 2017, section 3.2), with normalization over groups of an
    example's channels in the place of batch normalization: an image's likelihood then does not
    depend on the batch that it came with.

    Attributes:
        features: Number of output channels.
        width: Number of hidden channels.
        num_blocks: Number of residual blocks.
        dtype: Type of the computation; None for the input's.
    """

    features: int
    width: int = 64
    num_blocks: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], condition: Condition | None = None
    ) -> Float[Array, "batch height width features"]:
        """Maps images, and their conditions, to images."""
        e = vector_of(condition)
        dtype = jnp.result_type(x) if self.dtype is None else self.dtype

        def conv(name: str, x: Array, **options) -> Array:
            features = options.pop("features", self.width)
            return Conv(features, (3, 3), dtype=dtype, name=name, **options)(x)

        x = conv("in", x)
        for i in range(self.num_blocks):
            h = nn.silu(GroupNorm(dtype=dtype, name=f"norm_{i}_0")(x))
            h = conv(f"conv_{i}_0", h)
            if e is not None:
                shift = nn.Dense(self.width, use_bias=False, dtype=dtype, name=f"told_{i}")
                h = h + shift(e)[:, None, None]
            h = nn.silu(GroupNorm(dtype=dtype, name=f"norm_{i}_1")(h))
            x = x + conv(f"conv_{i}_1", h)
        x = nn.silu(GroupNorm(dtype=dtype, name="norm_out")(x))
        return conv("out", x, features=self.features, kernel_init=zeros)
