"""Masks over sequences of codes: the noise of models that fill in what is hidden.

A schedule says what share of the codes is masked when a share r of the way from nothing known to
all known is done: `r -> share`, falling from 1 at 0 to 0 at 1 (Chang et al. 2022, MaskGIT,
section 3.3). Training draws r uniformly, a sampler goes from 0 to 1.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Share = Float[Array, "*dims"] | float
Schedule = Callable[[Share], Float[Array, "..."]]


def cosine(r: Share) -> Float[Array, "..."]:
    r"""$$\cos(\pi r / 2)$$, MaskGIT's: few codes are revealed at first, many at last.

    Args:
        r: Shares of the way, from 0 to 1.

    Examples:
        >>> cosine(0.5)
        Array(0.70710677, dtype=float32, weak_type=True)
    """
    return jnp.cos(0.5 * math.pi * jnp.asarray(r))


def power(exponent: float) -> Schedule:
    r"""The schedule $$1 - r^p$$: linear for 1, square for 2, cubic for 3, square root for 0.5.

    Exponents above 1 reveal few codes at first, those below 1 many.

    Args:
        exponent: Exponent p, positive.

    Raises:
        ValueError: An exponent that is not positive and finite.

    Examples:
        >>> power(2.0)(0.5)
        Array(0.75, dtype=float32, weak_type=True)
    """
    if not 0 < exponent < math.inf:
        raise ValueError(f"exponent must be positive and finite, got {exponent}")
    return lambda r: 1 - jnp.asarray(r) ** exponent


def draw_masks(
    key: Key[Array, ""], num: int, length: int, schedule: Schedule = cosine
) -> Bool[Array, "num length"]:
    """Masks of training examples: `ceil(schedule(r) length)` places each, r uniform in [0, 1).

    Which places, is drawn uniformly; at least one is masked.

    Args:
        key: PRNG key.
        num: Number of masks.
        length: Number of places.
        schedule: Schedule of the masked share.

    Returns:
        True where a place is masked.
    """
    key_share, key_places = jax.random.split(key)
    share = schedule(jax.random.uniform(key_share, (num,)))
    count = jnp.clip(jnp.ceil(share * length), 1, length).astype(jnp.int32)
    values = jax.random.uniform(key_places, (num * length,)).reshape(num, length)
    return lowest(values, count)


def lowest(
    values: Float[Array, "batch length"], count: Int[Array, " batch"]
) -> Bool[Array, "batch length"]:
    """Where each row's `count` lowest values are: exactly so many, of equal ones the first.

    Args:
        values: Values; NaN is higher than any number.
        count: Number of places in each row.
    """
    rank = jnp.argsort(jnp.argsort(values, axis=1), axis=1)
    return rank < count[:, None]


def num_masked(
    schedule: Schedule,
    step: Int[Array, ""] | int,
    num_steps: int,
    unknown: Int[Array, " batch"],
    masked: Int[Array, " batch"],
) -> Int[Array, " batch"]:
    """How many codes stay masked after a step of a sampler.

    `floor(schedule(step / num_steps) unknown)`, but so that each step reveals at least one code
    and leaves at least one for each step after it, as far as there are so many; after the last step
    none is masked.

    Args:
        schedule: Schedule of the masked share.
        step: Number of the step, from 1.
        num_steps: Number of steps.
        unknown: Numbers of codes that were masked before the first step.
        masked: Numbers of codes that are masked before this one.

    Examples:
        >>> unknown = jnp.array([16])
        >>> num_masked(cosine, 4, 8, unknown, masked=jnp.array([13]))
        Array([11], dtype=int32)
    """
    share = jnp.where(step < num_steps, schedule(step / num_steps), 0.0)
    # Rounding must not take a whole number for the one below it.
    count = jnp.floor(unknown * share + 1e-3).astype(jnp.int32)
    return jnp.clip(jnp.minimum(jnp.maximum(count, num_steps - step), masked - 1), 0)
