"""The block of a causal transformer as ImageGPT has it: whole, or a position at a time.

Called with `t=None` a layer works on whole sequences. Called with a position t it does the work of
that position alone, `[B, 1, width]`: attention keeps the keys and values of former positions in the
collection `cache`, and what it needs of a condition's tokens, computed once, in `folded` (see
`jaxgen.models.transformer.prime`).

There are no biases, and the norm divides by the root mean square without taking a mean away, as in
the authors' code (Chen et al. 2020, "Generative Pretraining from Pixels").
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import normal
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgen.models.blocks.attention import dot_product_attention

EPSILON = 1e-5  # that the norms add to the mean square
Sequence = Float[Array, "batch positions width"]
Context = Float[Array, "batch tokens features"]
Mask = Bool[Array, "batch tokens"]
Position = Int[Array, ""] | int


class CausalAttention(nn.Module):
    r"""$$W_o\,\mathrm{softmax}(q k^\top / \sqrt{d})\,v$$ over a position and those before it.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        length: Number of positions that the cache has room for.
        out_scale: Standard deviation of the last map's initial weights.
        dtype: Type of the computation; the softmax is float32.
    """

    num_heads: int
    length: int
    out_scale: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Sequence, t: Position | None = None) -> Sequence:
        """Lets every position attend to itself and to those before it.

        Args:
            x: Sequence, or position t of it.
            t: Position, or None for the whole sequence.
        """
        width = x.shape[-1]
        qkv = _linear(3 * width, width**-0.5, self.dtype, "qkv")(x)
        q, k, v = (_heads(part, self.num_heads) for part in jnp.split(qkv, 3, axis=-1))
        if t is None:
            y = dot_product_attention(q, k, v, causal=True)
        else:
            k, v = self._remember("keys", k, t), self._remember("values", v, t)
            seen = jnp.broadcast_to(jnp.arange(self.length) <= t, (len(x), self.length))
            y = dot_product_attention(q, k, v, seen)
        return _linear(width, self.out_scale, self.dtype, "out")(y.reshape(x.shape))

    def _remember(self, name: str, x: Array, t: Position) -> Array:
        """All positions' keys or values, as far as they are known: written, then read."""
        x = x.swapaxes(1, 2)  # by heads, as the product takes them
        batch, heads, _, width = x.shape
        shape = (batch, heads, self.length, width)
        cache = self.variable("cache", name, jnp.zeros, shape, x.dtype)
        cache.value = lax.dynamic_update_slice_in_dim(cache.value, x, t, axis=2)
        return cache.value.swapaxes(1, 2)


class ContextAttention(nn.Module):
    """Attention to a condition's tokens.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        out_scale: Standard deviation of the last map's initial weights.
        dtype: Type of the computation; the softmax is float32.
    """

    num_heads: int
    out_scale: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Sequence, context: Context, mask: Mask | None, t: Position | None = None
    ) -> Sequence:
        """Lets every position attend to every token.

        Args:
            x: Sequence, or position t of it.
            context: Tokens of the condition.
            mask: True where there is a token; None where all are.
            t: Position, or None for the whole sequence.
        """
        width = x.shape[-1]

        def project() -> tuple[Array, Array]:
            kv = _linear(2 * width, context.shape[-1] ** -0.5, self.dtype, "project")(context)
            k, v = (_heads(part, self.num_heads) for part in jnp.split(kv, 2, axis=-1))
            return k, v

        k, v = project() if t is None else self.variable("folded", "context", project).value
        q = _heads(_linear(width, width**-0.5, self.dtype, "query")(x), self.num_heads)
        y = dot_product_attention(q, k, v, mask)
        return _linear(width, self.out_scale, self.dtype, "out")(y.reshape(x.shape))


class CausalBlock(nn.Module):
    r"""$$h = x + A(N(x)),\quad y = h + W_2\,g(W_1 N(h)),\quad g(u) = u\,\sigma(1.702\,u)$$

    A is causal attention, N the norm, and between both parts stands attention to the condition's
    tokens, in the same way, where there are any. The hidden layer is four times as wide.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        length: Number of positions that the cache has room for.
        num_layers: Number of blocks of the network, by which the attention's initial part falls.
        dropout: Rate of dropout on what each part adds.
        dtype: Type of the computation; softmax, norms and dropout's scale are float32.
    """

    num_heads: int
    length: int
    num_layers: int = 1
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Sequence,
        context: Context | None = None,
        mask: Mask | None = None,
        t: Position | None = None,
        *,
        train: bool = False,
    ) -> Sequence:
        """The sequence, or its position t, after the block.

        Args:
            x: Sequence, or position t of it.
            context: Tokens of the condition, or None.
            mask: True where there is a token; None where all are.
            t: Position, or None for the whole sequence.
            train: Whether to drop, by the random numbers `dropout`.
        """
        width, heads = x.shape[-1], self.num_heads
        scale = (width * self.num_layers) ** -0.5

        def normed(name: str) -> Array:
            return nn.RMSNorm(epsilon=EPSILON, dtype=self.dtype, name=name)(x)

        def dropped(y: Array) -> Array:
            drop = nn.Dropout(self.dropout, deterministic=not train)
            return drop(y.astype(jnp.float32)).astype(self.dtype)

        attention = CausalAttention(heads, self.length, scale, self.dtype, name="attention")
        x = x + dropped(attention(normed("norm_attention"), t))
        if context is not None:
            reader = ContextAttention(heads, scale, self.dtype, name="context")
            x = x + dropped(reader(normed("norm_context"), context, mask, t))
        h = _linear(4 * width, 0.02, self.dtype, "hidden")(normed("norm_mlp"))
        h = _linear(width, 0.02, self.dtype, "out")(h * nn.sigmoid(1.702 * h))
        return x + dropped(h)


def _linear(features: int, scale: float, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=normal(scale), name=name)


def _heads(x: Array, num_heads: int) -> Array:
    width = x.shape[-1]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
    return x.reshape(*x.shape[:2], num_heads, width // num_heads)
