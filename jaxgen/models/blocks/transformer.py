"""The layers of transformers: attention over a sequence, and blocks of it and an MLP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxgen.models.blocks.attention import dot_product_attention

EPSILON = 1e-5  # that layer normalization adds to the variance, as PyTorch's does


def check_sizes(network: Any) -> None:
    """Checks the fields that every transformer over tokens has.

    Args:
        network: Network with `num_tokens`, `length`, `width`, `num_layers`, `num_heads` and
            `dropout`.

    Raises:
        ValueError: If one is out of its range, or the heads do not divide the width.
    """
    least = {"num_tokens": 2, "length": 1, "width": 1, "num_layers": 1, "num_heads": 1}
    for name, at_least in least.items():
        if getattr(network, name) < at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {getattr(network, name)}")
    if network.width % network.num_heads:
        raise ValueError(f"num_heads must divide width {network.width}, got {network.num_heads}")
    if not 0 <= network.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {network.dropout}")


class Attention(nn.Module):
    r"""$$W_o\,\mathrm{softmax}(q k^\top / \sqrt{d})\,v$$ over a sequence, or from it to another.

    Vaswani et al. (2017), section 3.2.2: q is a linear map of the sequence, k and v are of the
    sequence that is attended to, d is the width of a head.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        dtype: Type of the computation; the softmax is float32.
        use_bias: Whether the maps to queries, keys and values have a bias.
        kernel_init: Initialization of the maps to queries, keys and values.
        last_init: Initialization of the last map.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    last_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        context: Float[Array, "batch context features"] | None = None,
        mask: Bool[Array, "batch context"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Lets every position attend to every other, or to those of another sequence.

        Args:
            x: Sequence.
            context: Sequence that is attended to; None for `x` itself.
            mask: True where the sequence that is attended to has a token; None where all are.

        Raises:
            ValueError: If the heads do not divide the width.
        """
        width, heads = x.shape[-1], self.num_heads
        if heads < 1 or width % heads:
            raise ValueError(f"num_heads must divide the width {width}, got {heads}")

        def project(name: str, of: Array) -> Array:
            dense = nn.Dense(
                width, self.use_bias, self.dtype, kernel_init=self.kernel_init, name=name
            )
            return dense(of).reshape(*of.shape[:2], heads, width // heads)

        other = x if context is None else context
        y = dot_product_attention(
            project("query", x), project("key", other), project("value", other), mask
        )
        out = nn.Dense(width, dtype=self.dtype, kernel_init=self.last_init, name="out")
        return out(y.reshape(x.shape))


class TransformerBlock(nn.Module):
    r"""$$h = x + \mathrm{Attention}(\mathrm{LN}(x)),\quad y = h + \mathrm{MLP}(\mathrm{LN}(h))$$

    The block with the norms before its parts (Xiong et al. 2020), GELU in the MLP.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        hidden: Width of the MLP's hidden layer in units of the width.
        dtype: Type of the computation; softmax and normalization are float32.
    """

    num_heads: int
    hidden: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The sequence after the block.

        Args:
            x: Sequence.
            mask: True where it has a token; None where all are.
        """

        def norm(name: str, of: Array) -> Array:
            return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name=name)(of)

        attention = Attention(self.num_heads, self.dtype, name="attention")
        x = x + attention(norm("norm_attention", x), mask=mask)
        width = x.shape[-1]
        h = nn.Dense(self.hidden * width, dtype=self.dtype, name="hidden")(norm("norm_mlp", x))
        return x + nn.Dense(width, dtype=self.dtype, name="out")(nn.gelu(h, approximate=False))


class PostNormBlock(nn.Module):
    r"""$$h = \mathrm{LN}(x + \mathrm{Attention}(x)),\quad y = \mathrm{LN}(h + \mathrm{MLP}(h))$$

    The block with the norms after its parts (Vaswani et al. 2017) as BERT has it (Devlin et al.
    2018), GELU in the MLP.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        hidden: Width of the MLP's hidden layer.
        dropout: Rate of dropout on what each part adds.
        dtype: Type of the computation; softmax, normalization and dropout's scale are float32.
    """

    num_heads: int
    hidden: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch length width"]:
        """The sequence after the block.

        Args:
            x: Sequence.
            mask: True where it has a token; None where all are.
            train: Whether to drop, by the random numbers `dropout`.

        Raises:
            ValueError: If the heads do not divide the width.
        """
        batch, length, width = x.shape
        if self.num_heads < 1 or width % self.num_heads:
            raise ValueError(f"num_heads must divide the width {width}, got {self.num_heads}")
        heads = (batch, length, self.num_heads, width // self.num_heads)

        def linear(name: str, features: int, of: Array) -> Array:
            scale = nn.initializers.truncated_normal(0.02)
            return nn.Dense(features, dtype=self.dtype, kernel_init=scale, name=name)(of)

        def added(norm: str, y: Array) -> Array:
            drop = nn.Dropout(self.dropout, deterministic=not train)
            y = x + drop(y.astype(jnp.float32)).astype(self.dtype)
            return bert_norm(norm, self.dtype)(y)

        parts = [linear(name, width, x) for name in ("query", "key", "value")]
        y = dot_product_attention(*(part.reshape(heads) for part in parts), mask).reshape(x.shape)
        x = added("norm_1", linear("project", width, y))
        y = nn.gelu(linear("expand", self.hidden, x), approximate=False)
        return added("norm_2", linear("contract", width, y))


def bert_norm(name: str, dtype: DTypeLike = jnp.float32) -> nn.LayerNorm:
    """BERT's layer normalization.

    Args:
        name: Name of the layer.
        dtype: Type of what it gives; its statistics are float32.
    """
    return nn.LayerNorm(epsilon=1e-12, dtype=dtype, use_fast_variance=False, name=name)
