"""Transforms of denoisers: classifier-free guidance, clipping.

Each takes a denoiser and gives another, so they compose, the innermost first:

    denoise = clip_x0(guided(denoiser(network, EPS), null, 3.0))
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.noise.parametrization import Denoise, Denoised
from jaxgen.noise.process import Level

Scale = float | int | Float[Array, ""] | Float[Array, " batch"]


def clip_x0(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clips the data that a denoiser expects to their range.

    Solvers take the noise to be what leads from the clipped data to x, so clipping changes that
    too, as in OpenAI's code; diffusers calls it `use_clipped_model_output`.

    Args:
        denoise: The denoiser.
        low: The least value of the data.
        high: The greatest value of the data.
    """

    def denoise_clipped(x: Array, level: Level, condition: Any = None) -> Denoised:
        denoised = denoise(x, level, condition)
        return denoised._replace(x0=jnp.clip(denoised.x0, low, high))

    return denoise_clipped


def guided(denoise: Denoise, null: Any, scale: Scale) -> Denoise:
    """Classifier-free guidance: `u + scale (c - u)` of the data with and without the condition.

    c and u come from one call on a doubled batch. A scale of 0 is unconditional, 1 conditional,
    above 1 guided (Ho & Salimans 2022, eq. 6, whose w is `scale - 1`). As eps, x0 and v are affine
    in each other it is the same for all. Further outputs, a learned variance, are those with the
    condition.

    Args:
        denoise: The conditional denoiser.
        null: What stands for no condition: of the condition's tree structure, its leaves broadcast
            to the condition's.
        scale: The guidance scale, a scalar or one number an example.

    Returns:
        A denoiser that needs a condition, and raises ValueError without one or where the scale has
        another shape.
    """

    def denoise_guided(x: Array, level: Level, condition: Any = None) -> Denoised:
        batch = x.shape[:1]
        if condition is None:
            raise ValueError("guidance needs a condition, got None")
        if jnp.ndim(scale) and jnp.shape(scale) != batch:
            raise ValueError(
                f"the guidance scale must be a scalar or have shape {batch}, got {jnp.shape(scale)}"
            )
        without = jax.tree.map(
            lambda n, c: jnp.broadcast_to(jnp.asarray(n, jnp.result_type(c)), jnp.shape(c)),
            null,
            condition,
        )

        def both(a: Any, b: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), a, b)

        denoised = denoise(both(x, x), both(level, level), both(condition, without))
        (c, u), extra = jnp.split(denoised.x0, 2), denoised.extra
        factor = jnp.asarray(scale, jnp.float32)
        factor = factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))
        return Denoised(u + factor * (c - u), None if extra is None else extra[: batch[0]])

    return denoise_guided
