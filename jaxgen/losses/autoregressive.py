"""Likelihoods of autoregressive networks, and the companding that makes audio a class.

Losses are in nats per example: *summed* over all of its pixels, channels or samples. A network has
seen only what comes before each of them.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.discretized import mixture_of_logistics_log_prob
from jaxgen.distributions import categorical_log_prob


def categorical_nll(
    logits: Float[Array, "batch *dims values"], targets: Int[Array, "batch *dims"]
) -> Float[Array, " batch"]:
    """`-sum_i log softmax(logits_i)[x_i]`, summed over an example (van den Oord et al. 2016).

    Args:
        logits: unnormalized log-masses of the V values, on the last axis; computed in float32.
        targets: the values, 0..V-1. A value outside gives NaN, for it can raise nothing under jit.

    Returns:
        f32[B], nats per example.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> categorical_nll(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))  # 3 log 4
        Array([4.158883], dtype=float32)
    """
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
        params: of a mixture for each pixel, see `jaxgen.discretized.mixture_of_logistics_log_prob`.
        x: pixels in [-1, 1], each channel the centre of a bin.
        num_bins: values a channel can take.

    Returns:
        f32[B], nats per example, summed over its pixels and channels.

    Raises:
        ValueError: shapes that do not fit together, or `num_bins` below 2.
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


def mu_law_encode(x: Float[Array, "*dims"], num_values: int = 256) -> Int[Array, "*dims"]:
    """Audio to classes: `round((f(x) + 1) / 2 mu)`, `f(x) = sign(x) log(1 + mu |x|) / log(1 + mu)`.

    The mu-law of ITU-T G.711 as WaveNet uses it (van den Oord et al. 2016, section 2.2), mu =
    `num_values - 1`: quiet samples get finer steps than loud ones.

    Args:
        x: samples; those outside [-1, 1] count as its ends.
        num_values: classes, at least 2.

    Returns:
        Classes 0..num_values-1, i32.

    Raises:
        ValueError: fewer than 2 values.

    Example:
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
        classes: 0..num_values-1.
        num_values: classes, at least 2.

    Returns:
        Samples in [-1, 1], f32.

    Raises:
        ValueError: fewer than 2 values.
    """
    mu = _mu(num_values)
    y = 2.0 * classes.astype(jnp.float32) / mu - 1.0
    return jnp.sign(y) * jnp.expm1(jnp.abs(y) * math.log1p(mu)) / mu


def _mu(num_values: int) -> float:
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")
    return float(num_values - 1)
