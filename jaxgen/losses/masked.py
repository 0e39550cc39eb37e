"""The loss of masked models: codes that are hidden, predicted from those that are not.

Losses are in nats per example, the *mean* over its masked codes, as in BERT and MaskGIT; there is
no likelihood in them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxgen.checks import check_same_shape


def masked_cross_entropy(
    logits: Float[Array, "batch positions values"],
    targets: Integer[Array, "batch positions"],
    masked: Bool[Array, "batch positions"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    r"""Cross entropy of the codes at the masked positions (Chang et al. 2022, equation 1).

    $$-\frac{1}{|M|} \sum_{i \in M} \sum_v q_i(v) \log p_i(v),
      \quad q_i(v) = (1 - s)\,[v = x_i] + s / V$$

    Args:
        logits: Unnormalized log-masses of the V values; computed in float32.
        targets: Codes that the data has, 0..V-1. A masked one outside gives NaN, for a compiled
            function cannot raise an error.
        masked: True where a position is masked; an example without such positions costs 0.
        label_smoothing: Share s of the target that all values have alike, in [0, 1).

    Returns:
        f32[B], nats, mean over an example's masked positions.

    Raises:
        ValueError: Shapes that do not fit together, or a share out of its range.

    Examples:
        >>> targets, masked = jnp.array([[0, 3]]), jnp.array([[True, False]])
        >>> masked_cross_entropy(jnp.zeros((1, 2, 4)), targets, masked, 0.1)  # log 4
        Array([1.3862944], dtype=float32)
    """
    check_same_shape(targets=targets, masked=masked)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits must have the targets' shape {targets.shape} and an axis of values, "
            f"got {logits.shape}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    log_p, targets = jax.nn.log_softmax(logits.astype(jnp.float32)), targets.astype(jnp.int32)
    known = (targets >= 0) & (targets < logits.shape[-1])
    safe = jnp.where(known, targets, 0)
    log_p_target = jnp.take_along_axis(log_p, safe[..., None], axis=-1)[..., 0]
    log_p_target = jnp.where(known, log_p_target, jnp.nan)
    nats = -(1 - label_smoothing) * log_p_target - label_smoothing * log_p.mean(axis=-1)
    return mean_over(nats, masked)


def masked_accuracy(
    logits: Float[Array, "batch positions values"],
    targets: Integer[Array, "batch positions"],
    masked: Bool[Array, "batch positions"],
) -> Float[Array, " batch"]:
    """Share of the masked codes that the likeliest value names.

    Args:
        logits: Unnormalized log-masses of the values.
        targets: Codes that the data has.
        masked: True where a position is masked.

    Returns:
        f32[B], mean over an example's masked positions.
    """
    check_same_shape(targets=targets, masked=masked)
    return mean_over((jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32), masked)


def mean_over(
    values: Float[Array, "batch positions"], chosen: Bool[Array, "batch positions"]
) -> Float[Array, " batch"]:
    """Mean over an example's chosen positions, 0 where there are none.

    Args:
        values: Values, which do not matter where they are not chosen.
        chosen: True where a position is chosen.
    """
    total = jnp.sum(jnp.where(chosen, values, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(chosen, axis=1), 1)
