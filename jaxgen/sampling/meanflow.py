"""Samples by an average velocity: a jump from each time to the next, one for all by default."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.noise.parametrization import MeanVelocity


def jump(
    mean_velocity: MeanVelocity,
    times: Float[Array, " points"],
    x: Float[Array, "batch *dims"],
) -> Float[Array, "batch *dims"]:
    """Follows a path by its average velocity, `z <- z - (t - r) u(z, r, t)` (Geng et al. 2025).

    Each step is exact where u is, however long it is (algorithm 2; `[1, 0]` is one step from noise
    to data). One compiled loop, under `jit`.

    Args:
        mean_velocity: The network, `(z, r, t) -> u`.
        times: Times to visit, the start's first.
        x: Start, at the first time.

    Raises:
        ValueError: If there are fewer than two times.
    """
    if times.shape[0] < 2:
        raise ValueError(f"times must be two or more, got {times.shape[0]}")

    def body(i: Array, z: Array) -> Array:
        t, r = (jnp.full(z.shape[:1], times[j]) for j in (i, i + 1))
        return z - (times[i] - times[i + 1]) * mean_velocity(z, r, t)

    return jax.lax.fori_loop(0, times.shape[0] - 1, body, x)
