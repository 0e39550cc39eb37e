"""Likelihoods of autoregressive networks.

Losses are in nats per example: *summed* over all of its pixels, channels or samples, each of which
the network predicts from those before it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxgen.distributions.elementwise import categorical_log_prob
from jaxgen.distributions.logistic import mixture_of_logistics_log_prob


def categorical_nll(
    logits: Float[Array, "batch *dims values"], targets: Integer[Array, "batch *dims"]
) -> Float[Array, " batch"]:
    """`-sum_i log softmax(logits_i)[x_i]`, summed over an example (van den Oord et al. 2016).

    Args:
        logits: Unnormalized log-masses of the V values, on the last axis; computed in float32.
        targets: Values that the data has, 0..V-1. One outside gives NaN, for a compiled function
            cannot raise an error.

    Returns:
        f32[B], nats per example.

    Raises:
        ValueError: Shapes that do not fit together.

    Examples:
        >>> categorical_nll(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))  # 3 log 4
        Array([4.158883], dtype=float32)
    """
    targets = targets.astype(jnp.int32)  # compared as bytes, 256 values would be none
    if logits.shape[:-1] != targets.shape or targets.ndim < 1:
        raise ValueError(
            f"logits must have the targets' shape {targets.shape} and an axis of values, "
            f"got {logits.shape}"
        )
    num_values = logits.shape[-1]
    known = (targets >= 0) & (targets < num_values)
    safe = jnp.where(known, targets, 0)
    log_prob = categorical_log_prob(safe, logits.astype(jnp.float32))
    log_prob = jnp.where(known, log_prob, jnp.nan)
    return -jnp.sum(log_prob.reshape(targets.shape[0], -1), axis=1)


def mixture_of_logistics_nll(
    params: Float[Array, "batch *dims rows mixtures"],
    x: Float[Array, "batch *dims channels"],
    num_bins: int = 256,
) -> Float[Array, " batch"]:
    """Minus the log-mass of an example's pixels under PixelCNN++'s mixtures (Salimans et al. 2017).

    Args:
        params: Parameters of a mixture for each pixel, as
            `jaxgen.distributions.logistic.mixture_of_logistics_log_prob` takes them.
        x: Pixels in [-1, 1], each channel the centre of a bin.
        num_bins: Number of values that a channel can take.

    Returns:
        f32[B], nats per example, summed over its pixels and channels.

    Raises:
        ValueError: Shapes that do not fit together, or `num_bins` below 2.
    """
    if params.shape[:-2] != x.shape[:-1] or x.ndim < 2:
        raise ValueError(
            f"params must have the pixels' shape {x.shape[:-1]}, rows and mixtures, "
            f"got {params.shape}"
        )
    log_prob = mixture_of_logistics_log_prob(
        params.astype(jnp.float32), x.astype(jnp.float32), num_bins
    )
    return -jnp.sum(log_prob.reshape(x.shape[0], -1), axis=1)
