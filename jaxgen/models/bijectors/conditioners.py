"""Networks that choose a coupling's parameters: `network(x, condition) -> [..., features]`.

All of them start at 0, whatever their input: the coupling then starts as the identity. RealNVP's
network as in its authors' code, which does not, is `jaxgen.models.bijectors.skip_resnet`. Their
first and last layers compute in the input's type. Between them bfloat16 is for training: a
coupling's inverse calls its network again, on inputs that differ in their last bits, and of such a
difference bfloat16 makes errors of 1e-3 and more.
"""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.bijectors.algebra import ActNorm
from jaxgen.models.bijectors.edges import Edges, zero_conv
from jaxgen.models.blocks.layers import GroupNorm
from jaxgen.models.conv.layers import Conv

zeros = nn.initializers.zeros


class MLP(nn.Module):
    """Dense layers with SiLU between; the condition is added before each.

    Attributes:
        features: Number of outputs.
        hidden: Widths of the hidden layers.
        dtype: Type of the layers between the first and the last; None for the input's.
    """

    features: int
    hidden: tuple[int, ...] = (64, 64)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch width"], condition: Condition | None = None
    ) -> Float[Array, "batch features"]:
        """Maps vectors, and their conditions, to vectors."""
        e, given = vector_of(condition), x.dtype
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, dtype=self.dtype if i else None, name=f"dense_{i}")(x)
            x = x.astype(self.dtype or given)
            if e is not None:
                x = x + nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"told_{i}")(e)
            x = nn.silu(x)
        return nn.Dense(self.features, kernel_init=zeros, name="out")(x.astype(given))


class ConvNet(nn.Module):
    """Glow's network: convolutions 3x3, 1x1 and 3x3 (Kingma and Dhariwal 2018, section 3.3).

    The first two are normalized as by `ActNorm`, and rectified.

    Attributes:
        features: Number of output channels.
        width: Number of hidden channels.
        edges: Whether the 3x3 convolutions are told where the image ends, see `Edges`.
        log_scale_factor: Factor of the learned log-scales, of `ActNorm` and of a scale of the
            output; None for 1 and for no such scale.
        dtype: Type of the layers between the first and the last; None for the input's.
    """

    features: int
    width: int = 512
    edges: bool = False
    log_scale_factor: float | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], condition: Condition | None = None
    ) -> Float[Array, "batch height width features"]:
        """Maps images, and their conditions, to images."""
        e, given = vector_of(condition), x.dtype
        init, factor = nn.initializers.normal(0.05), self.log_scale_factor
        for i, size in enumerate((3, 1)):
            x = Conv(
                self.width,
                (size, size),
                use_bias=False,
                kernel_init=init,
                dtype=self.dtype if i else None,
                name=f"conv_{i}",
            )(x)
            if self.edges and size > 1:
                x = Edges(init, name=f"edges_{i}")(x)
            x = x.astype(self.dtype or given)
            x, _ = ActNorm(log_scale_factor=factor or 1.0, name=f"norm_{i}")(x)
            if e is not None:
                shift = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=f"told_{i}")
                x = x + shift(e)[:, None, None]
            x = nn.relu(x)
        x = x.astype(given)
        return zero_conv(x, self.features, edges=self.edges, log_scale_factor=factor)


class ResNet(nn.Module):
    """Residual blocks of two 3x3 convolutions, normalized before each.

    RealNVP's conditioner (Dinh et al. 2017, section 3.2), with normalization over groups of an
    example's channels in the place of batch normalization: an image's likelihood then does not
    depend on the batch that it came with.

    Attributes:
        features: Number of output channels.
        width: Number of hidden channels.
        num_blocks: Number of residual blocks.
        dtype: Type of the layers between the first and the last; None for the input's.
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
        given = x.dtype
        dtype = given if self.dtype is None else self.dtype

        def conv(name: str, x: Array, **options) -> Array:
            options = {"features": self.width, "dtype": dtype, **options}
            return Conv(kernel_size=(3, 3), name=name, **options)(x)

        x = conv("in", x, dtype=given).astype(dtype)
        for i in range(self.num_blocks):
            h = nn.silu(GroupNorm(dtype=dtype, name=f"norm_{i}_0")(x))
            h = conv(f"conv_{i}_0", h)
            if e is not None:
                shift = nn.Dense(self.width, use_bias=False, dtype=dtype, name=f"told_{i}")
                h = h + shift(e)[:, None, None]
            h = nn.silu(GroupNorm(dtype=dtype, name=f"norm_{i}_1")(h))
            x = x + conv(f"conv_{i}_1", h)
        x = nn.silu(GroupNorm(dtype=given, name="norm_out")(x))
        return conv("out", x, features=self.features, kernel_init=zeros, dtype=given)
