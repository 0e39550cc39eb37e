"""Transformer blocks over the positions of an image, which read a sequence: latent diffusion's."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxgen.models.blocks.layers import GroupNorm
from jaxgen.models.blocks.transformer import EPSILON, Attention


class SpatialTransformer(nn.Module):
    """Lets the positions of an image read each other and a context, beside a shortcut.

    Rombach et al. (2022), "High-Resolution Image Synthesis with Latent Diffusion Models", section
    3.3 and appendix E.2.1: a linear map of the normalized image, blocks over its positions, and a
    linear map back.

    Attributes:
        num_heads: Number of heads of the attentions, which must divide the channels.
        depth: Number of blocks.
        dtype: Type of the computation; softmax and normalization are float32.
        kernel_init: Initialization of the kernels.
        last_init: Initialization of the last kernel.
    """

    num_heads: int
    depth: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    last_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        context: Float[Array, "batch context features"],
        mask: Bool[Array, "batch context"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """The image after the blocks.

        Args:
            x: Image.
            context: Sequence that every position reads.
            mask: True where the sequence has a token; None where all are.

        Raises:
            ValueError: If the heads do not divide the channels.
        """
        batch, height, width, channels = x.shape

        def dense(name: str, init: nn.initializers.Initializer) -> nn.Dense:
            return nn.Dense(channels, dtype=self.dtype, kernel_init=init, name=name)

        h = GroupNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        h = dense("first", self.kernel_init)(h.reshape(batch, height * width, channels))
        for i in range(self.depth):
            block = ReadingBlock(self.num_heads, self.dtype, self.kernel_init, name=f"block{i}")
            h = block(h, context, mask)
        return x + dense("last", self.last_init)(h).reshape(x.shape)


class ReadingBlock(nn.Module):
    r"""Self-attention, attention to a context, and a gated MLP, each normalized and residual.

    $$\mathrm{MLP}(h) = W_2\,(a \cdot \mathrm{GELU}(b)), \quad (a, b) = W_1 h$$ with 4 times the
    width inside (Shazeer 2020, GEGLU). Maps to queries, keys and values have no bias.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        dtype: Type of the computation; softmax and normalization are float32.
        kernel_init: Initialization of the kernels.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        context: Float[Array, "batch context features"],
        mask: Bool[Array, "batch context"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The sequence after the block.

        Args:
            x: Sequence.
            context: Sequence that is read.
            mask: True where the sequence that is read has a token; None where all are.
        """
        width, init = x.shape[-1], self.kernel_init

        def norm(name: str) -> Array:
            layer = nn.LayerNorm(EPSILON, self.dtype, use_fast_variance=False, name=name)
            return layer(x)

        def attention(name: str) -> Attention:
            return Attention(self.num_heads, self.dtype, False, init, init, name=name)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        x = x + attention("attention")(norm("norm_attention"))
        x = x + attention("reading")(norm("norm_reading"), context, mask)
        value, gate = jnp.split(dense(8 * width, "hidden")(norm("norm_mlp")), 2, axis=-1)
        return x + dense(width, "out")(value * nn.gelu(gate, approximate=False))
