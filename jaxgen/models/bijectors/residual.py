"""The neural spline flow of vectors as in its authors' experiments (Durkan et al. 2019)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.bijectors.algebra import Bijector, LogDet, Repeat, chain, sum_event
from jaxgen.models.bijectors.coupling import Coupling, Transform
from jaxgen.models.bijectors.linear import InvertibleLinear
from jaxgen.models.bijectors.splines import Spline
from jaxgen.models.blocks.layers import Dropout

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(inputs)


def _tiny(key, shape, dtype=jnp.float32):
    """Within 1e-3: a block then begins as the identity, nearly."""
    return nn.initializers.uniform(2e-3)(key, shape, dtype) - 1e-3


class ResidualMLP(nn.Module):
    """Pre-activated residual blocks of two dense layers (Durkan et al. 2019, appendix B.1).

    `x + W2 drop(relu(W1 relu(x)))`. It drops where there is an rng "dropout", as the loss of
    `jaxgen.families.flow` has it, and nowhere else. A condition is added before each block. The
    first and the last layer compute in the input's type, and the last starts at 0.

    Attributes:
        features: Number of outputs.
        width: Number of hidden units.
        num_blocks: Number of residual blocks.
        dropout: Rate of the dropout within the blocks.
        dtype: Type of the blocks' computation; None for the input's.
    """

    features: int
    width: int = 256
    num_blocks: int = 2
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch inputs"], condition: Condition | None = None
    ) -> Float[Array, "batch features"]:
        """Maps vectors, and their conditions, to vectors."""
        e, given = vector_of(condition), x.dtype
        dense = partial(nn.Dense, self.width, kernel_init=_uniform, dtype=self.dtype or given)
        drop = Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        x = dense(dtype=given, name="in")(x).astype(self.dtype or given)
        for i in range(self.num_blocks):
            if e is not None:
                x = x + dense(use_bias=False, name=f"told_{i}")(e)
            h = nn.relu(dense(name=f"dense_{i}_0")(nn.relu(x)))
            x = x + dense(kernel_init=_tiny, name=f"dense_{i}_1")(drop(h))
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros, name="out")(
            x.astype(given)
        )


class FirstHalf(Bijector):
    """A learned transform of each variable of the first half, the same for all examples.

    Attributes:
        transform: Transform, with parameters of each variable's own that start at 0.
    """

    transform: Transform

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch width"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch width"], LogDet]:
        """Transforms the first half of the variables, or undoes it; the others stay."""
        half = x.shape[-1] // 2
        shape = (self.transform.num_params, half)
        raw = self.param("raw", nn.initializers.zeros, shape).astype(x.dtype)
        raw = jnp.broadcast_to(raw[None], (x.shape[0], *shape))
        y, log_slope = self.transform(x[:, :half], raw, reverse=reverse)
        return jnp.concatenate([y, x[:, half:]], axis=-1), sum_event(log_slope)


def residual_spline_flow(
    num_steps: int = 10,
    width: int = 256,
    num_blocks: int = 2,
    *,
    num_bins: int = 8,
    bound: float = 3.0,
    dropout: float = 0.0,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """RQ-NSF (C) with residual networks, of standardized vectors (Durkan et al. 2019, 5.1).

    A step is a linear map (LU), a spline coupling of one half given the other, and a spline of each
    variable of the half that passed; one more linear map comes last.

    Args:
        num_steps: Number of steps, 10 in the paper.
        width: Hidden units of each conditioner.
        num_blocks: Residual blocks of each conditioner.
        num_bins: Number of bins of each spline.
        bound: End of each spline's interval.
        dropout: Rate of the dropout in the conditioners.
        remat: Whether to recompute within steps for the gradient, to save memory.
        dtype: Type of the conditioners' layers but the first and the last; None for the data's.

    Returns:
        A bijector of f32[B, D], D at least 2.

    Raises:
        ValueError: An argument out of its range.
    """
    if width < 1 or num_blocks < 0:
        raise ValueError(
            f"width must be at least 1 and num_blocks at least 0, got {width} and {num_blocks}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    conditioner = partial(
        ResidualMLP, width=width, num_blocks=num_blocks, dropout=dropout, dtype=dtype
    )
    spline = Spline(num_bins, bound)
    step = chain(InvertibleLinear(), Coupling(conditioner, spline), FirstHalf(spline))
    return chain(Repeat(step, num_steps, remat), InvertibleLinear())
