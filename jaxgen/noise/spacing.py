"""Which K of a chain's T timesteps a few-step sampler visits.

A spacing is a function `(T, K) -> i32[T]`: the timesteps in increasing order, padded to the length
T with T - 1. The length does not depend on K, so K may be traced. With K = T every spacing visits
all timesteps, and with K = 1 only the noisiest, T - 1: from a start of pure noise any other would
be asked for a level that the start is not of.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

NumSteps = int | np.integer | Int[Array, ""]
Spacing = Callable[[int, NumSteps], Int[Array, " num_timesteps"]]


def linspace(num_timesteps: int, num_steps: NumSteps) -> Int[Array, " num_timesteps"]:
    """`round(i (T - 1) / (K - 1))`, i in 0..K-1: both ends included (Nichol & Dhariwal 2021).

    Args:
        num_timesteps: The chain's length T, at most 2^15 (the arithmetic is in int32).
        num_steps: The number of steps K, from 1 to T; a scalar array may be traced, and then is not
            checked.

    Returns:
        The timesteps, of which the first K are strictly increasing; a half is rounded to the even
        number, as the authors' code and diffusers do.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `num_steps` is no integer.
    """
    i = _indices(num_timesteps, num_steps)
    gaps = jnp.maximum(num_steps - 1, 1)
    return _padded(_rounded(i * (num_timesteps - 1), gaps), num_timesteps, num_steps)


def leading(num_timesteps: int, num_steps: NumSteps) -> Int[Array, " num_timesteps"]:
    """`floor(i T / K)`, i in 0..K-1 (Song et al. 2021, DDIM): 0 included, the noisiest left out.

    Args:
        num_timesteps: The chain's length T, at most 2^15.
        num_steps: The number of steps K, from 1 to T; it may be traced.

    Returns:
        The timesteps, of which the first K are strictly increasing.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `num_steps` is no integer.
    """
    i = _indices(num_timesteps, num_steps)
    return _padded(i * num_timesteps // num_steps, num_timesteps, num_steps)


def trailing(num_timesteps: int, num_steps: NumSteps) -> Int[Array, " num_timesteps"]:
    """`round((i + 1) T / K) - 1`, i in 0..K-1 (Lin et al. 2024): T - 1 included, 0 left out.

    Args:
        num_timesteps: The chain's length T, at most 2^15.
        num_steps: The number of steps K, from 1 to T; it may be traced.

    Returns:
        The timesteps, of which the first K are strictly increasing; a half is rounded to the even
        number, as the authors' code and diffusers do.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `num_steps` is no integer.

    Examples:
        >>> trailing(1000, 6)[:6]
        Array([166, 332, 499, 666, 832, 999], dtype=int32)
    """
    i = _indices(num_timesteps, num_steps)
    rounded = _rounded((i + 1) * num_timesteps, jnp.asarray(num_steps))
    return _padded(rounded - 1, num_timesteps, num_steps)


def quadratic(num_timesteps: int, num_steps: NumSteps) -> Int[Array, " num_timesteps"]:
    """`floor(0.8 T (i / (K - 1))^2)`, i in 0..K-1, dense near the data (Song et al. 2021, DDIM).

    It is that paper's for CIFAR-10 (appendix D.2 and the authors' code). Where that names a
    timestep again, this goes on to the next: it is never below i. It starts at 0.8 T, so it is for
    chains that are all but noise there, as the linear one is; the cosine one is not.

    Args:
        num_timesteps: The chain's length T, at most 2^14.
        num_steps: The number of steps K, from 1 to T; it may be traced.

    Returns:
        The timesteps, of which the first K are strictly increasing.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `num_steps` is no integer.

    Examples:
        >>> quadratic(1000, 10)[:10]
        Array([  0,   9,  39,  88, 158, 246, 355, 483, 632, 800], dtype=int32)
    """
    i = _indices(num_timesteps, num_steps, largest=2**14)
    gaps = jnp.asarray(jnp.maximum(num_steps - 1, 1), jnp.int32)
    i = jnp.minimum(i, gaps)  # the rest is padding
    guess = jnp.floor(0.8 * num_timesteps * jnp.square(i / gaps)).astype(jnp.int32)
    # The float is right to less than one. The products wrap around in int32, but what is left over
    # of `4 T i^2 / (5 gaps^2)` after so near a guess is in range, and so exact.
    divisor = 5 * gaps * gaps
    left = 4 * num_timesteps * i * i - guess * divisor
    exact = guess + (left >= divisor) - (left < 0)
    return _padded(jnp.maximum(exact, i), num_timesteps, num_steps)


def _indices(num_timesteps: int, num_steps: NumSteps, largest: int = 2**15) -> Int[Array, " n"]:
    """0..T-1, after the arguments are checked."""
    if isinstance(num_steps, int | np.integer):
        if not 1 <= num_steps <= num_timesteps:
            raise ValueError(f"num_steps must be from 1 to T = {num_timesteps}, got {num_steps}")
    elif not isinstance(num_steps, jax.Array):
        raise TypeError(f"num_steps must be an integer, got {num_steps!r}")
    if num_timesteps > largest:
        raise ValueError(f"num_timesteps must be at most {largest}, got {num_timesteps}")
    return jnp.arange(num_timesteps)


def _rounded(numerator: Int[Array, " n"], divisor: Int[Array, ""]) -> Int[Array, " n"]:
    """The quotient to the nearest integer, a half to the even one."""
    quotient, left = jnp.divmod(numerator, divisor)
    up = (2 * left > divisor) | ((2 * left == divisor) & (quotient % 2 == 1))
    return quotient + up


def _padded(
    timesteps: Int[Array, " n"], num_timesteps: int, num_steps: NumSteps
) -> Int[Array, " n"]:
    """The first K, the noisiest where K is 1, and T - 1 in the place of all others."""
    last = num_timesteps - 1
    i = jnp.arange(num_timesteps)
    return jnp.where((i < num_steps) & (num_steps > 1), timesteps, last).astype(jnp.int32)
