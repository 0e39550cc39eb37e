"""Reductions of per-example losses."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_Mask = Float[Array, " batch"] | Int[Array, " batch"] | Bool[Array, " batch"] | None


def masked_sum(
    values: Float[Array, " batch"], mask: _Mask = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`(sum(values * mask), sum(mask))`: pairs that add up over devices, micro-batches and steps.

    Where the mask is 0 a value may be NaN or infinite without harm to the sum or to its gradient
    with respect to `values`.

    Args:
        values: one number per example.
        mask: weight of each example, usually 0 or 1; None keeps all.

    Returns:
        The total and the weight, scalars.
    """
    if mask is None:
        return jnp.sum(values), jnp.asarray(values.shape[0], values.dtype)
    mask = mask.astype(values.dtype)
    return jnp.sum(jnp.where(mask != 0, values, 0) * mask), jnp.sum(mask)


def masked_mean(values: Float[Array, " batch"], mask: _Mask = None) -> Float[Array, ""]:
    """`sum(values * mask) / max(sum(mask), 1)`: the mean of what the mask keeps, 0 if nothing.

    Args:
        values: one number per example; see `masked_sum`.
        mask: weight of each example, usually 0 or 1; None keeps all.

    Returns:
        The mean, a scalar.
    """
    total, weight = masked_sum(values, mask)
    return total / jnp.maximum(weight, 1)


def bits_per_dim(nats: Float[Array, "*dims"] | float, num_dims: int) -> Float[Array, "*dims"]:
    """`nats / (num_dims log 2)`, the usual unit of image likelihoods.

    Args:
        nats: negative log-likelihoods (or their bounds) of whole examples, in nats.
        num_dims: numbers per example, H * W * C of an image.

    Returns:
        Bits per dimension, of the shape of `nats`.

    Raises:
        ValueError: if `num_dims` is less than 1.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}")
    return jnp.asarray(nats) / (num_dims * math.log(2))
