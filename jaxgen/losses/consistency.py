"""Consistency models: what one says at two neighbouring levels of a path must agree.

Training (CT) takes both levels' examples from one noise, `x0 + sigma eps`; distillation (CD) takes
the cleaner one by a step of a teacher's ODE. Song et al. 2023; Song & Dhariwal 2023 (iCT).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.checks import check_batch, check_same_shape

# (predicted, target) -> one distance an example
Distance = Callable[[Array, Array], Float[Array, " batch"]]
# (cleaner level, noisier level) -> the weight of an example
PairWeighting = Callable[[Array, Array], Float[Array, " batch"]]


def pseudo_huber(
    predicted: Float[Array, "batch *dims"], target: Float[Array, "batch *dims"]
) -> Float[Array, " batch"]:
    """`sqrt(|a - b|^2 + c^2) - c` with `c = 0.00054 sqrt(D)` (Song & Dhariwal 2023, eq. 9).

    Args:
        predicted: What the model says, of D dimensions an example.
        target: What it should say.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(predicted=predicted, target=target)
    squared = jnp.square(predicted - target).reshape(len(target), -1)
    c = 0.00054 * squared.shape[1] ** 0.5
    return jnp.sqrt(squared.sum(axis=1) + c**2) - c


def mean_squared(
    predicted: Float[Array, "batch *dims"], target: Float[Array, "batch *dims"]
) -> Float[Array, " batch"]:
    """The mean square of the difference over an example's dimensions (Song et al. 2023, l2).

    Args:
        predicted: What the model says.
        target: What it should say.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(predicted=predicted, target=target)
    return jnp.square(predicted - target).reshape(len(target), -1).mean(axis=1)


def alike(low: Float[Array, " batch"], high: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Weight 1 of every interval (Song et al. 2023)."""
    return jnp.ones_like(high)


def inverse_width(
    low: Float[Array, " batch"], high: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """Weight `1 / (high - low)` of an interval (Song & Dhariwal 2023, section 3.1)."""
    return 1 / (high - low)


def consistency_loss(
    predicted: Float[Array, "batch *dims"],
    target: Float[Array, "batch *dims"],
    low: Float[Array, " batch"],
    high: Float[Array, " batch"],
    distance: Distance = pseudo_huber,
    weighting: PairWeighting = inverse_width,
) -> Float[Array, " batch"]:
    """`weight d(f(x_high, high), stop_gradient(f(x_low, low)))` (Song et al. 2023, eq. 7 and 10).

    Args:
        predicted: Data that the model expects of the noisier example.
        target: Data that it, or an average of it, expects of the cleaner one; without a gradient.
        low: Cleaner level of each example.
        high: Noisier level of each example.
        distance: Distance of the two.
        weighting: Weight of an interval of levels.

    Raises:
        ValueError: Shapes that differ, or other numbers of levels than examples.
    """
    check_same_shape(predicted=predicted, target=target)
    check_batch(len(predicted), low=low, high=high)
    return weighting(low, high) * distance(predicted, jax.lax.stop_gradient(target))
