"""A small transformer that reads captions, trained with the model that it tells what to make."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgen.models.blocks.transformer import EPSILON, TransformerBlock


class TextEncoder(nn.Module):
    """Embedded tokens and positions, transformer blocks that look both ways, a norm.

    Attributes:
        num_tokens: Number of different tokens.
        width: Width of the sequence.
        num_layers: Number of blocks.
        num_heads: Number of heads of their attention, which must divide the width.
        dtype: Type of the blocks' computation; embeddings and the last norm are float32.
    """

    num_tokens: int
    width: int = 128
    num_layers: int = 2
    num_heads: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """One vector a token.

        Args:
            ids: Tokens, from 0 to `num_tokens` - 1.
            mask: True where there is a token, False where it is padded; what stands there does not
                change the vectors of tokens.
        """
        scale = nn.initializers.normal(0.02)
        x = nn.Embed(self.num_tokens, self.width, embedding_init=scale, name="tokens")(ids)
        x = x + self.param("positions", scale, (ids.shape[1], self.width))[None]
        for i in range(self.num_layers):
            x = TransformerBlock(self.num_heads, dtype=self.dtype, name=f"block_{i}")(x, mask)
        return nn.LayerNorm(epsilon=EPSILON, name="norm")(x.astype(jnp.float32))
