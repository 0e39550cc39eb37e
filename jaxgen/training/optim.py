"""Optimizers as the papers give them: optax chains of clipping, schedule and update."""

import math
from typing import Any

import jax
import optax

from jaxgen.training.packing import elementwise


def adam(
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    cosine: bool = False,
    decay_rate: float | None = None,
    decay_every: int = 1,
    clip_norm: float | None = None,
    infinity: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with linear warm-up from zero, a decay of the rate, and clipping by global norm.

    Args:
        learning_rate: Learning rate after the warm-up; positive.
        b1: Decay of the first moment, in [0, 1).
        b2: Decay of the second moment, in [0, 1).
        eps: Number added to the root of the second moment; positive.
        warmup_steps: Number of updates over which the rate rises linearly from 0; 0 for no warm-up.
        decay_steps: Number of updates after which the rate is 0, having fallen linearly since the
            end of the warm-up; None for no such decay.
        cosine: Whether it falls along half a cosine, not linearly (Loshchilov and Hutter 2017).
        decay_rate: Factor of the rate every `decay_every` updates after the warm-up, in (0, 1];
            None for no exponential decay.
        decay_every: Number of updates over which the rate is constant before its next decay.
        clip_norm: Greatest global norm of the gradient; None for no clipping.
        infinity: Whether it is Adamax (Kingma and Ba 2015, section 7.1): in the place of the root
            of the second moment a maximum, `max(b2 v, |g| + eps)`, which is not corrected.
        weight_decay: Share of a parameter that is taken away at each update, in units of the rate
            (Loshchilov and Hutter 2019, AdamW); not of parameters by the name of bias.

    Returns:
        An optax transformation, elementwise where there is no weight decay.

    Raises:
        ValueError: If an argument is out of range.
    """
    for name, value in (("learning_rate", learning_rate), ("eps", eps), ("clip_norm", clip_norm)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and at least 0, got {weight_decay}")
    if weight_decay and infinity:
        raise ValueError("weight_decay must be 0 with infinity")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise ValueError(
            f"decay_steps must be more than warmup_steps ({warmup_steps}), got {decay_steps}"
        )
    if decay_rate is not None and (decay_steps is not None or not 0 < decay_rate <= 1):
        raise ValueError(
            f"decay_rate must be in (0, 1] and without decay_steps, got {decay_rate} and "
            f"decay_steps {decay_steps}"
        )
    if decay_every < 1 or (decay_every > 1 and decay_rate is None):
        raise ValueError(
            f"decay_every must be at least 1, and 1 without decay_rate, got {decay_every}"
        )
    if cosine and decay_steps is None:
        raise ValueError("cosine needs decay_steps")
    rate: optax.ScalarOrSchedule = learning_rate
    if decay_steps is not None and cosine:
        rate = optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps)
    elif decay_steps is not None:
        rate = optax.linear_schedule(learning_rate, 0.0, decay_steps - warmup_steps)
    if decay_rate is not None:
        rate = optax.exponential_decay(learning_rate, decay_every, decay_rate, staircase=True)
    if warmup_steps:
        warm = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        after = rate if callable(rate) else optax.constant_schedule(learning_rate)
        rate = optax.join_schedules([warm, after], [warmup_steps])
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    if weight_decay:
        decayed = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=_decays)
        return optax.chain(clip, decayed)
    rule = optax.adamax if infinity else optax.adam
    return elementwise(optax.chain(clip, rule(rate, b1=b1, b2=b2, eps=eps)))


def _decays(params: Any) -> Any:
    """Which parameters a weight decay is for: all but biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) != "bias", params
    )
