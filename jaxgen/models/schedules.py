"""Noise schedules that are learned: the negative log signal-to-noise ratio as a network of time.

Kingma et al. (2021), "Variational Diffusion Models", section 3.1, appendix H. Such a schedule
gamma, under its parameters, is that of the process `vp(lambda t: -gamma(t))`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class ScalarSchedule(nn.Module):
    """A straight line whose ends are learned, `gamma(t) = b + |w| t`.

    Attributes:
        gamma_min: Negative log-SNR of data at the start, at t = 0.
        gamma_max: Negative log-SNR of noise at the start, at t = 1; greater.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        _check(self.gamma_min, self.gamma_max)

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """The negative log-SNR at times from 0, data, to 1, noise, in nats."""
        w = self.param("w", nn.initializers.constant(self.gamma_max - self.gamma_min), ())
        b = self.param("b", nn.initializers.constant(self.gamma_min), ())
        return b + jnp.abs(w) * t


class MonotoneSchedule(nn.Module):
    """A line and a monotone network, `b + |w| t + sum_i |c_i| tanh(u_i / 2) / features`.

    With `u_i = |a_i| (2 t - 1) + d_i`, as the authors' code has it. It rises whatever the
    parameters. At the start it is a line from `gamma_min` to `gamma_max` to within 1e-3.

    Attributes:
        gamma_min: Negative log-SNR of data at the start, at t = 0.
        gamma_max: Negative log-SNR of noise at the start, at t = 1; greater.
        features: Number of hidden units.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    features: int = 1024

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        _check(self.gamma_min, self.gamma_max)
        if self.features < 1:
            raise ValueError(f"features must be positive, got {self.features}")

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """The negative log-SNR at times from 0, data, to 1, noise, in nats."""
        line = ScalarSchedule(self.gamma_min, self.gamma_max, name="line")(t)
        init: Callable[..., Any] = nn.initializers.normal(0.01)
        rates = jnp.abs(self.param("rates", init, (self.features,)))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        weights = jnp.abs(self.param("weights", init, (self.features,)))
        times = (2 * t - 1).reshape(-1, 1)
        hidden = jnp.tanh(0.5 * (times * rates[None] + bias[None]))
        return line + (hidden @ weights).reshape(jnp.shape(t)) / self.features


def gamma_of(schedule: nn.Module, params: Any) -> Callable[[Array], Array]:
    """A schedule under its parameters, as a function of time.

    Args:
        schedule: The schedule.
        params: Its parameters.
    """

    def gamma(t: Array) -> Array:
        value: Any = schedule.apply({"params": params}, t)
        return value

    return gamma


def _check(gamma_min: float, gamma_max: float) -> None:
    if not -math.inf < gamma_min < gamma_max < math.inf:
        raise ValueError(
            f"gamma_min < gamma_max must hold and both be finite, got {gamma_min}, {gamma_max}"
        )
