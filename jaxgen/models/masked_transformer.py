"""The bidirectional transformer of masked image generation (MaskGIT)."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import truncated_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgen.conditioning.base import Condition, check_values
from jaxgen.models.blocks.transformer import PostNormBlock, bert_norm, check_sizes

Tokens = Int[Array, "batch positions"]
Masked = Bool[Array, "batch positions"]
Logits = Float[Array, "batch positions tokens"]


class MaskedTransformer(nn.Module):
    r"""Logits of all tokens of a sequence, by those that are not masked.

    The network of MaskGIT (Chang et al. 2022), which is BERT (Devlin et al. 2018): embedded tokens,
    one learned embedding for all that are masked, plus learned positions, normalized; blocks that
    look both ways; a layer and the embeddings' transpose give the logits. The default is the
    paper's size: for 256 tokens of 1,024 codes and 1,000 classes 172.5M parameters.

    A condition stands before the tokens: its vector, mapped to the width, as one token, and after
    it its tokens, where it has some.

    Attributes:
        num_tokens: Number of different tokens.
        length: Number of tokens of a sequence.
        width: Width of the sequence.
        num_layers: Number of blocks.
        num_heads: Number of heads of their attention, which must divide the width.
        dropout: Rate of dropout on the embedded sequence and on what each part of a block adds; the
            authors drop weights of the attention too.
        dtype: Type of the blocks' computation; embeddings and what follows the blocks are float32.

    Examples:
        >>> network = MaskedTransformer(16, 64, 32, 2, 4)
        >>> tokens, masked = jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool)
        >>> variables = network.init(jax.random.key(0), tokens, masked)
        >>> network.apply(variables, tokens, masked).shape
        (1, 64, 16)
    """

    num_tokens: int
    length: int
    width: int = 768
    num_layers: int = 24
    num_heads: int = 16
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        masked: Masked,
        condition: Condition | None = None,
        *,
        train: bool = False,
    ) -> Logits:
        """Logits of every token at every position, by the tokens that are not masked alone.

        Args:
            tokens: Tokens, 0 to `num_tokens` - 1; others give NaN where they are not known yet.
                Those that are masked do not matter.
            masked: True where a token is masked.
            condition: Condition, or None; always or never, as in the first call.
            train: Whether to drop, by the random numbers `dropout`.

        Raises:
            ValueError: Another number of tokens than `length`, or tokens out of range.
        """
        if tokens.shape[1] != self.length:
            raise ValueError(f"length is {self.length}, got {tokens.shape[1]} tokens")
        shown = jnp.where(masked, 0, tokens)
        check_values("tokens", shown, 0, self.num_tokens - 1)
        is_token = (shown >= 0) & (shown < self.num_tokens)
        beyond = self.num_tokens + 1  # the end of the table, where its values are NaN
        ids = jnp.where(masked, self.num_tokens, jnp.where(is_token, tokens, beyond))
        scale = truncated_normal(0.02)
        embed = nn.Embed(self.num_tokens + 1, self.width, embedding_init=scale, name="tokens")
        h, seen = self._after_condition(embed(ids), condition)
        h = h + self.param("positions", scale, h.shape[1:])[None]
        h = nn.Dropout(self.dropout, deterministic=not train)(bert_norm("norm")(h))
        h = h.astype(self.dtype)
        for i in range(self.num_layers):
            block = PostNormBlock(
                self.num_heads, 4 * self.width, self.dropout, self.dtype, name=f"block_{i}"
            )
            h = block(h, seen, train=train)
        h = h[:, -self.length :].astype(jnp.float32)
        h = nn.gelu(nn.Dense(self.width, kernel_init=scale, name="last")(h), approximate=False)
        logits = embed.attend(bert_norm("last_norm")(h))[..., : self.num_tokens]
        return logits + self.param("bias", zeros, (self.num_tokens,))[None, None]

    def _after_condition(
        self, h: Float[Array, "batch positions width"], condition: Condition | None
    ) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch length"] | None]:
        """The sequence after what is told, and where there is something to see."""
        if condition is None:
            return h, None

        def mapped(name: str, x: Array) -> Array:
            scale = truncated_normal(0.02)
            return nn.Dense(self.width, use_bias=False, kernel_init=scale, name=name)(x)

        parts = [h]
        if condition.tokens is not None:
            parts.insert(0, mapped("condition_tokens", condition.tokens))
        if condition.vector is not None:
            parts.insert(0, mapped("condition", condition.vector)[:, None])
        h = jnp.concatenate(parts, axis=1)
        if condition.mask is None:
            return h, None
        before = h.shape[1] - self.length - condition.mask.shape[1]
        seen = jnp.pad(condition.mask, ((0, 0), (before, self.length)), constant_values=True)
        return h, seen
