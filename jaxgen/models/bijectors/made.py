"""Autoregressive flows: the masked network MADE, and the bijector built on it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.bijectors.algebra import Bijector, LogDet, sum_event
from jaxgen.models.bijectors.coupling import Affine, Transform


class MaskedDense(nn.Module):
    """A dense layer in which output j sees input i only where the mask says so.

    Attributes:
        mask: Bools `[inputs, features]`, True where the output sees the input.
        kernel_init: Initializer of the kernel.
        dtype: Type of the computation; None for the input's.
    """

    mask: np.ndarray
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        """Multiplies by the masked kernel and adds a bias.

        Raises:
            ValueError: A mask that does not fit the input.
        """
        if self.mask.ndim != 2 or self.mask.shape[0] != x.shape[-1]:
            raise ValueError(
                f"mask must be [{x.shape[-1]}, features] for x of shape {x.shape}, got "
                f"{list(self.mask.shape)}"
            )
        kernel = self.param("kernel", self.kernel_init, self.mask.shape)
        bias = self.param("bias", nn.initializers.zeros, self.mask.shape[1:])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ jnp.where(self.mask, kernel, 0) + bias[None]


class MADE(nn.Module):
    """A network whose i-th output depends on inputs 0..i-1 only (Germain et al. 2015, eqs. 13-14).

    Hidden units take the degrees 1..D-1 in turn (0..D-1 where there is a condition, so that it
    reaches the first output as well). A layer of fewer units takes degrees evenly spaced up to D-1:
    every input still conditions outputs after it, though not always the next one.

    Attributes:
        num_params: Number of parameters of each output.
        hidden: Widths of the hidden layers.
        dtype: Type of the layers between the first and the last; None for the input's. The first
            and the last compute in the input's type.
        activation: Function after each hidden layer.
    """

    num_params: int
    hidden: tuple[int, ...] = (64, 64)
    dtype: DTypeLike | None = None
    activation: Callable[[Array], Array] = nn.silu

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch width"], condition: Condition | None = None
    ) -> Float[Array, "batch params width"]:
        """The parameters of each variable, given the variables before it."""
        e = vector_of(condition)
        width, given, dtype = x.shape[-1], x.dtype, self.dtype or x.dtype
        lowest = 0 if e is not None else min(1, width - 1)
        degrees = np.arange(1, width + 1)
        for i, size in enumerate(self.hidden):
            above = _degrees(size, lowest, width)
            mask = above[None] >= degrees[:, None]
            x = MaskedDense(mask, dtype=dtype if i else given, name=f"dense_{i}")(x).astype(dtype)
            if e is not None:
                x = x + nn.Dense(size, use_bias=False, dtype=dtype, name=f"told_{i}")(e)
            x, degrees = self.activation(x), above
        mask = np.tile(np.arange(1, width + 1)[None] > degrees[:, None], (1, self.num_params))
        out = MaskedDense(mask, nn.initializers.zeros, given, name="out")(x)
        return out.reshape(-1, self.num_params, width)


def _degrees(size: int, lowest: int, width: int) -> np.ndarray:
    """Degrees from the lowest to D-1: in turn, or evenly spaced where units are fewer."""
    if size < width - lowest:
        return np.round(np.linspace(width - 1, lowest, size)).astype(int)[::-1]
    return lowest + np.arange(size) % max(width - lowest, 1)


class MaskedAutoregressive(Bijector):
    r"""Each variable moved by a transform that those before it choose (Papamakarios et al. 2017).

    $$y_i = T(x_i; \mathrm{MADE}_i(x_{<i}, \mathrm{condition}))$$

    Forward is one pass of the network. The inverse computes one variable after another, D passes in
    one compiled loop. `Invert` of it is the inverse autoregressive flow (Kingma et al. 2016), which
    is quick to sample and slow to give the density of data that it did not draw.

    Attributes:
        transform: Transform T of each variable.
        hidden: Widths of the network's hidden layers.
        dtype: Type of the network's layers but the first and the last; None for the input's.
        activation: Function after each hidden layer of the network.
    """

    transform: Transform = Affine()
    hidden: tuple[int, ...] = (64, 64)
    dtype: DTypeLike | None = None
    activation: Callable[[Array], Array] = nn.silu

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch width"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch width"], LogDet]:
        """Moves all variables at once, or computes them one by one."""
        num_params = self.transform.num_params
        network = MADE(num_params, self.hidden, self.dtype, self.activation, name="made")
        if not reverse:
            y, log_slope = self.transform(x, network(x, condition).astype(x.dtype))
            return y, sum_event(log_slope)
        y, width = x, x.shape[-1]
        # The first pass is outside of the loop, so that `init` makes the parameters there; inside,
        # the network is a pure function of them.
        raw = network(jnp.zeros_like(y), condition).astype(y.dtype)
        variables = network.variables
        pure: Any = network.clone(parent=None, name=None)
        # Variables yet to come stay 0: garbage there could overflow, and 0 * inf is not 0.
        first = jnp.where(_up_to(0, width), self.transform(y, raw, reverse=True)[0], 0)

        def body(i: Array, x: Array) -> Array:
            raw = pure.apply(variables, x, condition).astype(y.dtype)
            return jnp.where(_up_to(i, width), self.transform(y, raw, reverse=True)[0], 0)

        x = lax.fori_loop(1, width, body, first)
        _, log_slope = self.transform(x, network(x, condition).astype(y.dtype))
        return x, -sum_event(log_slope)


def _up_to(i: Array | int, width: int) -> Array:
    """bool[1, width]: the variables 0..i."""
    return (jnp.arange(width) <= i)[None]
