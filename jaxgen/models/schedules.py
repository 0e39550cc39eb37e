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

INNER = "inner"
"""Name of the parameters of what is between a schedule's ends, where it has any."""


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
    """Any rising curve between ends that are learned, `gamma(t) = b + |w| (m(t) - m(0)) / M`.

    `m(t) = |a| t + sum_i |c_i| tanh(u_i / 2) / features` with `u_i = |r_i| (2 t - 1) + d_i` rises
    whatever the parameters, and `M = m(1) - m(0)`. At the start it is the line from `gamma_min` to
    `gamma_max` to within 1e-2. What is between the ends has parameters of its own, `inner`.

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
        w = self.param("w", nn.initializers.constant(self.gamma_max - self.gamma_min), ())
        b = self.param("b", nn.initializers.constant(self.gamma_min), ())
        rise = _Rise(self.features, name=INNER)
        values = rise(jnp.concatenate([jnp.array([0.0, 1.0]), jnp.ravel(t)]))
        first, last = values[0], values[1]
        return b + jnp.abs(w) * ((values[2:] - first) / (last - first)).reshape(jnp.shape(t))


class _Rise(nn.Module):
    """A rising function of time, f32[times] -> f32[times]."""

    features: int

    @nn.compact
    def __call__(self, t: Float[Array, " times"]) -> Float[Array, " times"]:
        init: Callable[..., Any] = nn.initializers.normal(0.01)
        slope = jnp.abs(self.param("slope", nn.initializers.ones, ()))
        rates = jnp.abs(self.param("rates", init, (self.features,)))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        weights = jnp.abs(self.param("weights", init, (self.features,)))
        hidden = jnp.tanh(0.5 * ((2 * t - 1)[:, None] * rates[None] + bias[None]))
        return slope * t + hidden @ weights / self.features


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
