"""Samplers of Gaussian diffusion: ancestral, DDIM and its inversion, and classifier-free guidance.

Each is a pure function around a single `lax.fori_loop`; call it under `jit`. The number of steps,
the guidance scale and eta may be traced, so that their values can change without a new trace:

    @jax.jit
    def sample(params, key, num_steps, guidance_scale):
        denoise = lambda x_t, t, label: model.apply(params, x_t, t, label)
        return ddim(denoise, schedule, key, (16, 32, 32, 3), num_steps=num_steps,
                    condition=labels, null_condition=10, guidance_scale=guidance_scale)

Denoisers, and the names of predictions and variances, are those of `jaxgen.gaussian_diffusion`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxgen.gaussian_diffusion import (
    PREDICTIONS,
    VARIANCES,
    Denoise,
    p_mean_variance,
    to_eps,
    to_x0,
)
from jaxgen.primitives import check_choice, standard_normal
from jaxgen.schedules import DiscreteSchedule, respace, spaced_timesteps

Scale = float | int | Float[Array, ""] | Float[Array, " batch"]


def guided(denoise: Denoise, null_condition: Any, guidance_scale: Scale) -> Denoise:
    """Classifier-free guidance as a denoiser: `u + guidance_scale * (c - u)`.

    c and u are the outputs with the condition and without it, from one call on a doubled batch. A
    scale of 0 is unconditional, 1 conditional, above 1 guided (Ho & Salimans 2022, eq. 6, whose w
    is `guidance_scale - 1`). As "eps", "x0" and "v" are affine in each other it serves all three.
    Channels beyond those of x_t, a learned variance, are the conditional ones.

    Args:
        denoise: the conditional denoiser.
        null_condition: what stands for "no condition": of the condition's tree structure, its
            leaves broadcast to the condition's (a class index, an embedding).
        guidance_scale: a scalar, or one per example.

    Returns:
        A denoiser with the same signature.
    """

    def denoise_guided(x_t, t, condition):
        null = jax.tree.map(
            lambda n, c: jnp.broadcast_to(jnp.asarray(n, jnp.result_type(c)), jnp.shape(c)),
            null_condition,
            condition,
        )
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null)
        output = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(output.astype(jnp.float32), 2)
        scale = jnp.asarray(guidance_scale, jnp.float32)
        scale = scale.reshape(scale.shape + (1,) * (x_t.ndim - scale.ndim))
        channels = x_t.shape[-1]
        c, u = conditional[..., :channels], unconditional[..., :channels]
        return jnp.concatenate([u + scale * (c - u), conditional[..., channels:]], axis=-1)

    return denoise_guided


def ancestral(
    denoise: Denoise,
    schedule: DiscreteSchedule,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    num_steps: int | np.integer | Int[Array, ""] | None = None,
    spacing: str = "linspace",
    prediction: str = "eps",
    variance: str = "large",
    clip_x0: bool = True,
    condition: Any = None,
    null_condition: Any = None,
    guidance_scale: Scale | None = None,
) -> Float[Array, "..."]:
    """Samples the reverse chain, `x_{t-1} ~ N(mean, e^log_variance)` (Ho et al. 2020, alg. 2).

    Mean and log-variance are those of `p_mean_variance`; the last step returns the mean. Fewer
    steps than T run the respaced chain (Nichol & Dhariwal 2021, section 4).

    Args:
        denoise: see `jaxgen.gaussian_diffusion`.
        schedule: the chain of T steps.
        key: PRNG key.
        shape: [batch, ..., channels] of the samples.
        num_steps: from 1 to T; None for T. A traced value is not checked.
        spacing: which timesteps to keep, see `spaced_timesteps`.
        prediction: "eps", "x0" or "v".
        variance: "small", "large" or "learned_range".
        clip_x0: clip the predicted data to [-1, 1] at every step.
        condition: passed on to `denoise`; arrays of leading size batch.
        null_condition: stands for "no condition", see `guided`; only with a guidance scale.
        guidance_scale: None for a plain conditional call, else see `guided`.

    Returns:
        Samples, f32 of the given shape.

    Raises:
        ValueError: if an argument is out of range or guidance lacks a condition.
        TypeError: if `num_steps` is no integer.
    """
    check_choice("variance", variance, VARIANCES)
    denoise = _prepare(denoise, shape, prediction, condition, null_condition, guidance_scale)
    chain, timesteps, num_steps = _chain(schedule, num_steps, spacing)
    key_start, key_steps = jax.random.split(key)

    def step(i, x):
        index = num_steps - 1 - i
        output = denoise(x, jnp.full(shape[:1], timesteps[index]), condition)
        model = p_mean_variance(
            chain,
            output,
            x,
            jnp.full(shape[:1], index),
            prediction=prediction,
            variance=variance,
            clip_x0=clip_x0,
        )
        noise = standard_normal(jax.random.fold_in(key_steps, index), shape)
        return model.mean + jnp.where(index > 0, jnp.exp(0.5 * model.log_variance), 0.0) * noise

    return jax.lax.fori_loop(0, num_steps, step, standard_normal(key_start, shape))


def ddim(
    denoise: Denoise,
    schedule: DiscreteSchedule,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    num_steps: int | np.integer | Int[Array, ""] = 50,
    eta: float | int | Float[Array, ""] = 0.0,
    spacing: str = "leading",
    prediction: str = "eps",
    clip_x0: bool = True,
    condition: Any = None,
    null_condition: Any = None,
    guidance_scale: Scale | None = None,
    x_T: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Samples by DDIM in any number of steps (Song et al. 2021, DDIM, eq. 12 and 16).

    With a, b the `alphas_cumprod` of a kept timestep and of the one before (b = 1 at the last step)

        x <- sqrt(b) x0 + sqrt(1 - b - s^2) eps + s noise
        s^2 = eta^2 (1 - b) / (1 - a) (1 - a / b)

    where x0 is predicted from x, clipped if asked, and eps is what leads from that x0 to x. (So
    clipping changes eps too, as in OpenAI's code; diffusers calls it `use_clipped_model_output`,
    and has it off by default.) With eta = 1 and every step this is `ancestral` with the "small"
    variance. A learned variance is ignored.

    Args:
        denoise: see `jaxgen.gaussian_diffusion`.
        schedule: the chain of T steps.
        key: PRNG key; with eta = 0 it only draws the start.
        shape: [batch, ..., channels] of the samples.
        num_steps: from 1 to T. A traced value is not checked.
        eta: from 0, deterministic, to 1. A traced value is not checked.
        spacing: which timesteps to keep, see `spaced_timesteps`. With very few steps "trailing" is
            the better one: "leading" takes its start, pure noise, for a less noisy level.
        prediction: "eps", "x0" or "v".
        clip_x0: clip the predicted data to [-1, 1] at every step.
        condition: passed on to `denoise`; arrays of leading size batch.
        null_condition: stands for "no condition", see `guided`; only with a guidance scale.
        guidance_scale: None for a plain conditional call, else see `guided`.
        x_T: where to start, of the given shape (say, from `ddim_encode`); None draws it.

    Returns:
        Samples, f32 of the given shape.

    Raises:
        ValueError: if an argument is out of range or guidance lacks a condition.
        TypeError: if `num_steps` is no integer.
    """
    denoise = _prepare(denoise, shape, prediction, condition, null_condition, guidance_scale)
    if isinstance(eta, float | int) and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    if x_T is not None and x_T.shape != tuple(shape):
        raise ValueError(f"x_T must have shape {shape}, got {x_T.shape}")
    chain, timesteps, num_steps = _chain(schedule, num_steps, spacing)
    key_start, key_steps = jax.random.split(key)

    def step(i, x):
        index = num_steps - 1 - i
        level = jnp.full(shape[:1], index)
        output = denoise(x, jnp.full(shape[:1], timesteps[index]), condition)
        x0 = to_x0(chain, output[..., : shape[-1]], x, level, prediction)
        if clip_x0:
            x0 = jnp.clip(x0, -1.0, 1.0)
        eps = to_eps(chain, x0, x, level)
        signal, noise = _variances(chain, index - 1)
        if isinstance(eta, float | int) and eta == 0:  # spares the draw
            return jnp.sqrt(signal) * x0 + jnp.sqrt(noise) * eps
        share = jnp.square(eta) * chain.betas[index] / chain.one_minus_alphas_cumprod[index]
        fresh = standard_normal(jax.random.fold_in(key_steps, index), shape)
        kept = jnp.sqrt(noise * jnp.maximum(1 - share, 0.0)) * eps  # rounding may pass 1 by an ulp
        return jnp.sqrt(signal) * x0 + kept + jnp.sqrt(noise * share) * fresh

    start = standard_normal(key_start, shape) if x_T is None else x_T
    return jax.lax.fori_loop(0, num_steps, step, start)


def ddim_encode(
    denoise: Denoise,
    schedule: DiscreteSchedule,
    x0: Float[Array, "*shape"],
    *,
    num_steps: int | np.integer | Int[Array, ""] = 50,
    spacing: str = "leading",
    prediction: str = "eps",
    condition: Any = None,
) -> Float[Array, "*shape"]:
    """Runs deterministic DDIM backwards, from data to x_T (Song et al. 2021, DDIM, section 4.3).

    Each step goes up to the next kept noise level along the eps predicted at the level it leaves
    (the first, from clean data, asks at the least of them). `ddim` with eta = 0, the same steps, no
    clipping and this x_T gives x0 back, up to the steps' discretization error.

    Args:
        denoise: see `jaxgen.gaussian_diffusion`; for guidance pass `guided(...)`.
        schedule: the chain of T steps.
        x0: data, [batch, ..., channels].
        num_steps: from 1 to T. A traced value is not checked.
        spacing: which timesteps to keep, see `spaced_timesteps`.
        prediction: "eps", "x0" or "v".
        condition: passed on to `denoise`; arrays of leading size batch.

    Returns:
        The latent x_T, f32 of the shape of x0.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `num_steps` is no integer.
    """
    denoise = _prepare(denoise, x0.shape, prediction, condition)
    chain, timesteps, num_steps = _chain(schedule, num_steps, spacing)
    batch, channels = x0.shape[:1], x0.shape[-1]

    def step(index, x):
        source = jnp.maximum(index - 1, 0)
        level = jnp.full(batch, source)
        output = denoise(x, jnp.full(batch, timesteps[source]), condition)
        predicted = to_x0(chain, output[..., :channels], x, level, prediction)
        eps = to_eps(chain, predicted, x, level)
        signal, noise = _variances(chain, index)
        return jnp.sqrt(signal) * jnp.where(index > 0, predicted, x) + jnp.sqrt(noise) * eps

    return jax.lax.fori_loop(0, num_steps, step, x0)


def _chain(schedule: DiscreteSchedule, num_steps, spacing: str):
    """The chain of the kept steps, their timesteps, and how many there are."""
    (length,) = schedule.betas.shape
    num_steps = length if num_steps is None else num_steps
    timesteps = spaced_timesteps(length, num_steps, spacing)
    if not isinstance(num_steps, jax.Array):
        num_steps = int(num_steps)
    return respace(schedule, timesteps), timesteps, num_steps


def _variances(chain: DiscreteSchedule, index):
    """Variance of the signal and of the noise at a level of the chain; -1 is clean data."""
    at = jnp.maximum(index, 0)
    signal = jnp.where(index < 0, 1.0, chain.alphas_cumprod[at])
    return signal, jnp.where(index < 0, 0.0, chain.one_minus_alphas_cumprod[at])


def _prepare(
    denoise, shape, prediction, condition, null_condition=None, guidance_scale=None
) -> Denoise:
    """Checks what every sampler is given, and adds guidance if there is any."""
    check_choice("prediction", prediction, PREDICTIONS)
    if len(shape) < 2 or any(size < 1 for size in shape):
        raise ValueError(f"shape must be [batch, ..., channels] of positive sizes, got {shape}")
    batch = tuple(shape[:1])
    for leaf in jax.tree.leaves(condition):
        if jnp.shape(leaf)[:1] != batch:
            raise ValueError(
                f"condition must have the batch's {shape[0]} examples on its first axis, got an "
                f"array of shape {jnp.shape(leaf)}"
            )
    if guidance_scale is None:
        return denoise
    if condition is None or null_condition is None:
        raise ValueError("guidance_scale needs both condition and null_condition, or leave it None")
    if jnp.ndim(guidance_scale) and jnp.shape(guidance_scale) != batch:
        raise ValueError(
            f"guidance_scale must be a scalar or have shape {batch}, got "
            f"{jnp.shape(guidance_scale)}"
        )
    return guided(denoise, null_condition, guidance_scale)
