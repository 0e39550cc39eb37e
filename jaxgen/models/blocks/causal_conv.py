"""Convolutions over time that see only the past, whole or a position at a time.

They do not use Winograd's form, whose rounding would let masked values leak: an output is the
same bit for bit whatever stands in its future.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxgen.models.conv.layers import conv_general_dilated

_Time = Int[Array, ""] | int


class CausalConv1D(nn.Module):
    r"""A dilated causal convolution over time (van den Oord et al. 2016, section 2.1).

    $$y_t = \sum_{i=0}^{k-1} x_{t - (k - 1 - i) d} W_i + b,$$

    with zeros before the first position. `step` gives one position of it from a ring buffer of the
    last `(k - 1) d + 1` inputs (Le Paine et al. 2016), with the same parameters and the same result
    up to rounding.

    Attributes:
        features: Features of the output.
        kernel_size: Number k of taps.
        dilation: Distance d of the taps, in positions.
        use_bias: Whether to add the bias b.
        kernel_init: Initializer of the kernel `[k, channels, features]`.
        dtype: Type of the computation; None for the input's.

    Examples:
        >>> layer = CausalConv1D(16, kernel_size=2, dilation=4)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 100, 8)))
        >>> layer.apply(variables, jnp.ones((3, 100, 8))).shape
        (3, 100, 16)
        >>> cache = layer.init_cache(3, 8)
        >>> y, cache = layer.apply(variables, cache, jnp.ones((3, 8)), 0, method="step")
        >>> y.shape
        (3, 16)
    """

    features: int
    kernel_size: int = 2
    dilation: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name in ("features", "kernel_size", "dilation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        super().__post_init__()

    @property
    def past(self) -> int:
        """The number of positions before the present one that an output sees."""
        return (self.kernel_size - 1) * self.dilation

    def __call__(self, x: Float[Array, "batch time channels"]) -> Float[Array, "batch time out"]:
        """Convolves whole sequences."""
        x, kernel, bias = self._weights(x)
        y = conv_general_dilated(
            x,
            kernel,
            (1,),
            [(self.past, 0)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NHC", "HIO", "NHC"),
            winograd=False,
        )
        return y if bias is None else y + bias[None, None]

    def init_cache(
        self, batch: int, channels: int, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "slots batch channels"]:
        """The ring buffer before the first position: zeros."""
        return jnp.zeros((self.past + 1, batch, channels), dtype)

    def step(
        self,
        cache: Float[Array, "slots batch channels"],
        x: Float[Array, "batch channels"],
        t: _Time,
    ) -> tuple[Float[Array, "batch out"], Float[Array, "slots batch channels"]]:
        """One position.

        Args:
            cache: Cache of `init_cache`, or from the step of position t - 1.
            x: Input at position t.
            t: Position, from 0.

        Returns:
            The output at position t, and the cache with its input taken in.

        Raises:
            ValueError: A cache of another length.
        """
        if cache.shape[0] != self.past + 1:
            raise ValueError(f"cache must hold {self.past + 1} positions, got {cache.shape[0]}")
        size = self.past + 1
        # The present goes in first, and all taps are read after it: so XLA knows that it may work
        # in place. A buffer that is read, then written, it copies whole at every step.
        cache = lax.dynamic_update_index_in_dim(cache, x.astype(cache.dtype), t % size, 0)
        ages = [(self.kernel_size - 1 - i) * self.dilation for i in range(self.kernel_size - 1)]
        slots = [(t + size - age) % size for age in ages]
        taps = [lax.dynamic_index_in_dim(cache, slot, keepdims=False) for slot in slots]
        taps = [*(tap.astype(x.dtype) for tap in taps), x]
        inputs, kernel, bias = self._weights(jnp.concatenate(taps, -1), self.kernel_size)
        y = inputs @ kernel.reshape(-1, self.features)
        return (y if bias is None else y + bias[None]), cache

    @nn.compact
    def _weights(self, x: Array, taps: int = 1) -> tuple[Array, Array, Array | None]:
        """The input, kernel and bias in the dtype of the computation."""
        shape = (self.kernel_size, x.shape[-1] // taps, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x, kernel, bias
