"""A causal transformer over tokens, as ImageGPT is one, and its cache of keys and values."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, zeros
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxgen.conditioning.base import Condition, check_values
from jaxgen.models.blocks.causal_transformer import EPSILON, CausalBlock
from jaxgen.models.blocks.transformer import check_sizes

Tokens = Int[Array, "batch positions"]
Logits = Float[Array, "batch positions tokens"]
Position = Int[Array, ""] | int


class Size(NamedTuple):
    """Width and depth of a transformer.

    Attributes:
        width: Width of the sequence.
        num_layers: Number of blocks.
        num_heads: Number of heads of their attention.
    """

    width: int
    num_layers: int
    num_heads: int


# ImageGPT's (Chen et al. 2020; the depths, widths and heads of their code). On 32x32 pixels of 512
# colours: 76.6M, 455M and 1.36B parameters.
S, M, L = Size(512, 24, 8), Size(1024, 36, 8), Size(1536, 48, 16)


class Transformer(nn.Module):
    r"""$$p(x) = \prod_t p(x_t \mid x_1, \ldots, x_{t-1})$$, each factor a softmax over tokens.

    The network of ImageGPT (Chen et al. 2020): embedded tokens, moved by one position so that a
    learned start stands at the first, plus learned positions; blocks of causal attention and an
    MLP; a norm, and a map to logits that is no embedding's transpose and begins at zero.

    A condition's vector is mapped to the width and added at every position; to its tokens, where it
    has some, every block attends.

    `step` does the work of one position, with the keys and values of those before it in the
    collection `cache`; `prime` begins it. It gives what the whole network gives, up to rounding.

    Attributes:
        num_tokens: Number of different tokens.
        length: Greatest number of positions.
        width: Width of the sequence.
        num_layers: Number of blocks.
        num_heads: Number of heads of their attention, which must divide the width.
        dropout: Rate of dropout on the embedded sequence and on what each part of a block adds; the
            paper has none.
        dtype: Type of the blocks' computation; embeddings, the last norm and the logits are
            float32.

    Examples:
        >>> network = Transformer(16, 64, *Size(32, 2, 4))
        >>> tokens = jnp.zeros((1, 64), jnp.int32)
        >>> variables = network.init(jax.random.key(0), tokens)
        >>> network.apply(variables, tokens).shape
        (1, 64, 16)
    """

    num_tokens: int
    length: int
    width: int = S.width
    num_layers: int = S.num_layers
    num_heads: int = S.num_heads
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_sizes(self)
        super().__post_init__()

    def __call__(
        self, tokens: Tokens, condition: Condition | None = None, *, train: bool = False
    ) -> Logits:
        """Logits of every token at every position, those of t by `tokens[:, :t]` alone.

        Args:
            tokens: Tokens, 0 to `num_tokens` - 1; others give NaN where they are not known yet.
            condition: Condition, or None; always or never, as in the first call.
            train: Whether to drop, by the random numbers `dropout`.

        Raises:
            ValueError: More positions than `length`, or tokens out of range.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(f"length is {self.length}, got {tokens.shape[1]} tokens")
        check_values("tokens", tokens, 0, self.num_tokens - 1)
        return self._body(tokens, condition, None, train)

    def step(
        self, previous: Int[Array, " batch"], t: Position, condition: Condition | None = None
    ) -> Float[Array, "batch tokens"]:
        """Logits of position t alone: a turn of `jaxgen.sampling.autoregressive`.

        Args:
            previous: Tokens at t - 1; at t = 0 anything.
            t: Position, from 0.
            condition: Condition, or None, the same at all positions.
        """
        return self._body(previous[:, None], condition, t, False)[:, 0]

    @nn.compact
    def _body(
        self, tokens: Tokens, condition: Condition | None, t: Position | None, train: bool
    ) -> Logits:
        start = self.param("start", normal(0.02), (self.width,))
        positions = self.param("positions", normal(0.01), (self.length, self.width))
        h = nn.Embed(self.num_tokens, self.width, embedding_init=normal(0.02), name="tokens")(
            tokens
        )
        first = jnp.broadcast_to(start, (len(tokens), 1, self.width))
        if t is None:
            h = jnp.concatenate([first, h[:, :-1]], axis=1) + positions[None, : tokens.shape[1]]
        else:
            h = jnp.where(t > 0, h, first) + lax.dynamic_slice_in_dim(positions, t, 1)[None]
        vector, context, mask = (None, None, None) if condition is None else condition
        if vector is not None:
            h = h + nn.Dense(self.width, use_bias=False, name="condition")(vector)[:, None]
        h = nn.Dropout(self.dropout, deterministic=not train)(h).astype(self.dtype)
        for i in range(self.num_layers):
            block = CausalBlock(
                self.num_heads,
                self.length,
                self.num_layers,
                self.dropout,
                self.dtype,
                name=f"block_{i}",
            )
            h = block(h, context, mask, t, train=train)
        h = nn.RMSNorm(epsilon=EPSILON, name="norm")(h.astype(jnp.float32))
        return nn.Dense(self.num_tokens, use_bias=False, kernel_init=zeros, name="logits")(h)


def prime(
    network: Transformer, params: Any, batch: int, condition: Condition | None
) -> tuple[Any, Any]:
    """What sampling by position begins with: `(folded, cache)`.

    Args:
        network: Transformer whose `step` is to be called.
        params: Parameters of the network.
        batch: Number of sequences at a time.
        condition: Condition of the sequences, or None.

    Returns:
        The collections `folded`, what the positions need of the condition's tokens, and `cache`,
        zeros.
    """
    _, new = network.apply(
        {"params": params},
        jnp.zeros(batch, jnp.int32),
        0,
        condition,
        method="step",
        mutable=["cache", "folded"],
    )
    return new.get("folded", {}), jax.tree.map(jnp.zeros_like, new["cache"])
