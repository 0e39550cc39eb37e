"""Transforms of denoisers: guidance with and without a classifier, clipping, thresholding.

Each takes a denoiser and gives another, so they compose, the innermost first:

    denoise = clip_x0(guided(denoiser(network, EPS), null, 3.0))

`guided_logits` is the same guidance of models of codes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.noise.parametrization import Denoise, Denoised
from jaxgen.noise.process import Level, expand

Scale = float | int | Float[Array, ""] | Float[Array, " batch"]


def clip_x0(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clips the data that a denoiser expects to their range.

    Solvers take the noise to be what leads from the clipped data to x, so clipping changes that
    too, as in OpenAI's code; diffusers calls it `use_clipped_model_output`.

    Args:
        denoise: The denoiser.
        low: The least value of the data.
        high: The greatest value of the data.

    Examples:
        >>> from jaxgen.noise.parametrization import X0, denoiser
        >>> from jaxgen.noise.process import rectified
        >>> denoise = clip_x0(denoiser(lambda x, time, condition: 3.0 * x, X0))
        >>> denoise(jnp.ones((1, 1)), rectified().at(jnp.array([0.5])), None).x0
        Array([[1.]], dtype=float32)
    """

    def denoise_clipped(x: Array, level: Level, condition: Any = None) -> Denoised:
        denoised = denoise(x, level, condition)
        return denoised._replace(x0=jnp.clip(denoised.x0, low, high))

    return denoise_clipped


def threshold_x0(denoise: Denoise, quantile: float = 0.995, greatest: float = 1.0) -> Denoise:
    """Dynamic thresholding of the data that a denoiser expects (Saharia et al. 2022, Imagen).

    Per example `x0 <- greatest clip(x0, -s, s) / s`, where s is the quantile of its |x0|, at least
    `greatest`: strong guidance then does not saturate the pixels.

    Args:
        denoise: The denoiser.
        quantile: The share of an example's values that stay inside, in (0, 1].
        greatest: The greatest size of the data.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
    if not greatest > 0:
        raise ValueError(f"greatest must be positive, got {greatest}")

    def denoise_thresholded(x: Array, level: Level, condition: Any = None) -> Denoised:
        denoised = denoise(x, level, condition)
        sizes = jnp.abs(denoised.x0).reshape(len(x), -1)
        limit = jnp.maximum(jnp.quantile(sizes, quantile, axis=1), greatest)
        limit = expand(limit, x.ndim)
        x0 = jnp.clip(denoised.x0, -limit, limit) * (greatest / limit)
        return denoised._replace(x0=x0)

    return denoise_thresholded


def guided(
    denoise: Denoise,
    null: Any,
    scale: Scale,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoise:
    """Classifier-free guidance: `g = u + scale (c - u)` of the data with and without the condition.

    c and u come from one call on a doubled batch. A scale of 0 is unconditional, 1 conditional,
    above 1 guided (Ho & Salimans 2022, eq. 6, whose w is `scale - 1`). As eps, x0 and v are affine
    in each other it is the same for all. Further outputs, a learned variance, are those with the
    condition.

    Args:
        denoise: The conditional denoiser.
        null: What stands for no condition: of the condition's tree structure, its leaves broadcast
            to the condition's.
            Another condition, of the batch's shape, guides away from that one.
        scale: The guidance scale, a scalar or one number an example.
        interval: The least and the greatest ratio `sigma / alpha` at which there is guidance
            (Kynkaanniemi et al. 2024); None for all levels.
        rescale: The share r of `g std(c) / std(g)` in the result, from 0 to 1, where deviations
            are an example's: less contrast (Lin et al. 2024, equations 15 and 16).

    Returns:
        A denoiser that needs a condition, and raises ValueError without one or where the scale has
        another shape.

    Raises:
        ValueError: if the interval is empty or the share out of range.

    Examples:
        >>> from jaxgen.noise.parametrization import X0, denoiser
        >>> from jaxgen.noise.process import rectified
        >>> denoise = denoiser(lambda x, time, condition: x + condition, X0)
        >>> x, level = jnp.zeros((1, 1)), rectified().at(jnp.array([0.5]))
        >>> guided(denoise, 0.0, 3.0)(x, level, jnp.ones((1, 1))).x0
        Array([[3.]], dtype=float32)
    """
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"interval must be two rising ratios, got {interval}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1], got {rescale}")

    def denoise_guided(x: Array, level: Level, condition: Any = None) -> Denoised:
        batch = x.shape[:1]
        if condition is None:
            raise ValueError("guidance needs a condition, got None")
        if jnp.ndim(scale) and jnp.shape(scale) != batch:
            raise ValueError(
                f"the guidance scale must be a scalar or have shape {batch}, got {jnp.shape(scale)}"
            )
        denoised = denoise(_both(x, x), _both(level, level), _with_and_without(condition, null))
        (c, u), extra = jnp.split(denoised.x0, 2), denoised.extra
        factor = jnp.asarray(scale, jnp.float32)
        factor = factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))
        result = u + factor * (c - u)
        if rescale:
            ratio = _std(c) / jnp.maximum(_std(result), 1e-12)
            result = result * (1 + rescale * (expand(ratio, x.ndim) - 1))
        if interval is not None:
            ratio = level.sigma / level.alpha
            inside = (interval[0] <= ratio) & (ratio <= interval[1])
            result = jnp.where(expand(inside, x.ndim), result, c)
        return Denoised(result, None if extra is None else extra[: batch[0]])

    return denoise_guided


def guided_logits(
    predict: Callable[[Any, Any], Float[Array, "..."]], null: Any, scale: float
) -> Callable[[Any, Any], Float[Array, "..."]]:
    """Classifier-free guidance of logits: `u + scale (c - u)`, with and without the condition.

    c and u come from one call on a doubled batch; the scale is that of `guided`.

    Args:
        predict: The model: `(inputs, condition) -> logits` [B, ...] of inputs, a pytree.
        null: What stands for no condition, as of `guided`.
        scale: The guidance scale.

    Returns:
        The guided model.

    Examples:
        >>> predict = lambda x, condition: x + condition
        >>> guided_logits(predict, 0.0, 3.0)(jnp.ones(1), jnp.ones(1))
        Array([4.], dtype=float32)
    """

    def predict_guided(inputs: Any, condition: Any) -> Float[Array, "..."]:
        outputs = predict(_both(inputs, inputs), _with_and_without(condition, null))
        c, u = jnp.split(outputs, 2)
        return u + scale * (c - u)

    return predict_guided


def _with_and_without(condition: Any, null: Any) -> Any:
    """The conditions of a doubled batch."""
    without = jax.tree.map(
        lambda n, c: jnp.broadcast_to(jnp.asarray(n, jnp.result_type(c)), jnp.shape(c)),
        null,
        condition,
    )
    return _both(condition, without)


def _both(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), a, b)


def classifier_guided(
    denoise: Denoise,
    log_prob: Callable[[Array, Level, Any], Float[Array, " batch"]],
    scale: Scale = 1.0,
) -> Denoise:
    """Guidance by a classifier of noisy data (Dhariwal & Nichol 2021, algorithm 2).

    `eps <- eps - scale sigma grad log p(y | x)`, which is `x0 <- x0 + scale (sigma^2 / alpha) grad
    log p(y | x)` of the data.

    Args:
        denoise: The denoiser.
        log_prob: `(x, level, condition) -> log p(condition | x)`, f32[B], of a classifier that was
            trained on noisy data.
        scale: The guidance scale, a scalar or one number an example; 0 is none.

    Returns:
        A denoiser that needs a condition.
    """

    def denoise_guided(x: Array, level: Level, condition: Any = None) -> Denoised:
        if condition is None:
            raise ValueError("guidance by a classifier needs a condition, got None")
        gradient = jax.grad(lambda x: log_prob(x, level, condition).sum())(x)
        denoised = denoise(x, level, condition)
        factor = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), x.shape[:1])
        step = factor * jnp.square(level.sigma) / level.alpha
        return denoised._replace(x0=denoised.x0 + expand(step, x.ndim) * gradient)

    return denoise_guided


def _std(x: Array) -> Float[Array, " batch"]:
    return x.reshape(len(x), -1).std(axis=1)
