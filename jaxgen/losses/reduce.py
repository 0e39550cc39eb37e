"""Reductions of per-example losses."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgen.checks import check_same_shape

_Weight = Float[Array, " batch"] | Int[Array, " batch"] | Bool[Array, " batch"] | None


def weighted_sum(
    values: Float[Array, " batch"], weight: _Weight = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`(sum(values * weight), sum(weight))`: pairs that add up over devices, micro-batches, steps.

    Where the weight is 0 a value may be NaN or infinite without harm to the sum or to its gradient
    with respect to `values`.

    Args:
        values: One number per example.
        weight: Weight of each example, usually 0 or 1; None for 1.

    Returns:
        The total and the weight, scalars.

    Raises:
        ValueError: Weights that are not one for each value.
    """
    if weight is None:
        return jnp.sum(values), jnp.asarray(values.shape[0], values.dtype)
    check_same_shape(values=values, weight=weight)
    weight = weight.astype(values.dtype)
    return jnp.sum(jnp.where(weight != 0, values, 0) * weight), jnp.sum(weight)


def weighted_mean(values: Float[Array, " batch"], weight: _Weight = None) -> Float[Array, ""]:
    """`sum(values * weight) / max(sum(weight), 1)`: the weighted mean, 0 where all weights are 0.

    Args:
        values: One number per example; see `weighted_sum`.
        weight: Weight of each example, usually 0 or 1; None for 1.

    Returns:
        The mean, a scalar.

    Raises:
        ValueError: Weights that are not one for each value.

    Examples:
        >>> weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0]))
        Array(2., dtype=float32)
    """
    total, sum_of_weights = weighted_sum(values, weight)
    return total / jnp.maximum(sum_of_weights, 1)


def bits_per_dim(nats: Float[Array, "*dims"] | float, num_dims: int) -> Float[Array, "*dims"]:
    """`nats / (num_dims log 2)`, the usual unit of image likelihoods.

    Args:
        nats: Negative log-likelihoods (or their bounds) of whole examples, in nats.
        num_dims: The numbers in an example, H * W * C of an image.

    Returns:
        Bits per dimension, of the shape of `nats`.

    Raises:
        ValueError: if `num_dims` is less than 1.

    Examples:
        >>> nats = 64 * math.log(256)  # of 64 bytes, each value as probable
        >>> round(float(bits_per_dim(nats, 64)), 4)
        8.0
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}")
    return jnp.asarray(nats) / (num_dims * math.log(2))
