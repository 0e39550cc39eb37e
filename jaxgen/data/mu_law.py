"""Mu-law companding: audio in [-1, 1] to classes and back."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mu_law_encode(x: Float[Array, "*dims"], num_values: int = 256) -> Int[Array, "*dims"]:
    """Audio to classes: `round((f(x) + 1) / 2 mu)`, `f(x) = sign(x) log(1 + mu |x|) / log(1 + mu)`.

    The mu-law of ITU-T G.711 as WaveNet uses it (van den Oord et al. 2016, section 2.2), mu =
    `num_values - 1`: quiet samples get finer steps than loud ones.

    Args:
        x: Samples in [-1, 1]; those outside count as the interval's ends.
        num_values: Number of classes, at least 2.

    Returns:
        Classes 0..num_values-1, i32.

    Raises:
        ValueError: Fewer than 2 values.

    Examples:
        >>> mu_law_encode(jnp.array([-1.0, 0.0, 1.0]))
        Array([  0, 128, 255], dtype=int32)
    """
    mu = _mu(num_values)
    x = jnp.clip(x.astype(jnp.float32), -1.0, 1.0)
    companded = jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / math.log1p(mu)
    return jnp.floor((companded + 1.0) / 2.0 * mu + 0.5).astype(jnp.int32)


def mu_law_decode(classes: Int[Array, "*dims"], num_values: int = 256) -> Float[Array, "*dims"]:
    """Classes to audio: the inverse of `mu_law_encode`, at the middle of each step.

    Args:
        classes: Classes 0..num_values-1.
        num_values: Number of classes, at least 2.

    Returns:
        Samples in [-1, 1], f32.

    Raises:
        ValueError: Fewer than 2 values.
    """
    mu = _mu(num_values)
    y = 2.0 * classes.astype(jnp.float32) / mu - 1.0
    return jnp.sign(y) * jnp.expm1(jnp.abs(y) * math.log1p(mu)) / mu


def _mu(num_values: int) -> float:
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")
    return float(num_values - 1)
