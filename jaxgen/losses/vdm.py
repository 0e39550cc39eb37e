r"""The bound of variational diffusion models, in nats (Kingma et al. 2021).

A schedule gives the negative log-SNR `gamma(t)`, t from 0 (data) to 1 (noise), with
`z_t = alpha x + sigma eps`, `alpha^2 = sigmoid(-gamma)` and `sigma^2 = sigmoid(gamma)`. The bound
of 8-bit data u is

    -log p(u) <= prior_nll(z_1) + diffusion + decoder_nll(u | z_0)

whose middle term is an integral over times, or a sum over the T steps of a chain. Bytes are the
points `x = 2 (u + 1/2) / 256 - 1`. Only the ends of the schedule matter to the value of the
integral; what lies between them matters to its variance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_batch, check_same_shape
from jaxgen.distributions.elementwise import gaussian_kl, standard_normal
from jaxgen.losses.flow import BYTE, quantize, to_levels, to_unit
from jaxgen.noise.parametrization import Denoise, to_eps
from jaxgen.noise.process import expand, q_sample, vp
from jaxgen.noise.times import uniform

# times -> the negative log-SNR, of their shape
Gamma = Callable[[Array], Array]


def to_points(image: Float[Array, "batch *dims"]) -> Float[Array, "batch *dims"]:
    """Model space `2 u / 255 - 1` to the points of bytes, `2 (u + 1/2) / 256 - 1`."""
    return 2 * to_unit(image) - 1


def from_points(x: Float[Array, "batch *dims"]) -> Float[Array, "batch *dims"]:
    """The model space of the byte whose point is nearest to x."""
    return quantize(0.5 * (x + 1))


def prior_kl(x: Float[Array, "batch *dims"], gamma_1: Float[Array, ""]) -> Float[Array, " batch"]:
    """`KL(q(z_1 | x) || N(0, I))`, the bound's prior loss.

    Args:
        x: Data.
        gamma_1: The schedule at t = 1.

    Returns:
        Nats summed over an example's dimensions.
    """
    mean = jnp.sqrt(jax.nn.sigmoid(-gamma_1)) * x
    return _sum(gaussian_kl(mean, jax.nn.log_sigmoid(gamma_1), 0.0, 0.0))


def decoder_nll(
    image: Float[Array, "batch *dims"],
    z_0: Float[Array, "batch *dims"],
    gamma_0: Float[Array, ""],
) -> Float[Array, " batch"]:
    """`-log p(u | z_0)`: a softmax over bytes of `-(z_0 / alpha_0 - x_k)^2 e^-gamma_0 / 2`.

    That is proportional to `q(z_0 | x_k)`: the posterior if all bytes are equally likely.

    Args:
        image: 8-bit data u as `2 u / 255 - 1`.
        z_0: Noisy points of the data, at t = 0.
        gamma_0: The schedule at t = 0.

    Returns:
        Nats summed over an example's dimensions.

    Raises:
        ValueError: Data and noisy data of different shapes.
    """
    check_same_shape(image=image, z_0=z_0)
    precision = jnp.exp(-0.5 * gamma_0)
    noise = (z_0 / jnp.sqrt(jax.nn.sigmoid(-gamma_0)) - to_points(image)) * precision
    # Distances to all bytes, from that to the byte itself: nothing cancels where noise is little.
    levels = to_levels(image)[..., None]
    steps = expand(jnp.arange(BYTE), levels.ndim).swapaxes(0, -1) - levels
    others = noise[..., None] - (2 / BYTE) * precision * steps
    log_mass = -0.5 * jnp.square(noise) - jax.nn.logsumexp(-0.5 * jnp.square(others), axis=-1)
    return -_sum(log_mass)


def schedule_at(
    gamma: Gamma, t: Float[Array, " batch"], num_timesteps: int | None = None
) -> Float[Array, "2 batch"]:
    """What the diffusion loss needs of a schedule: gamma(t), and gamma'(t) or gamma(t - 1/T).

    Args:
        gamma: The schedule.
        t: Times.
        num_timesteps: The number of steps T; None for continuous time.
    """
    if num_timesteps is None:
        return jnp.stack(jax.jvp(gamma, (t,), (jnp.ones_like(t),)))
    return jnp.stack([gamma(t), gamma(t - 1 / num_timesteps)])


def diffusion_weight(
    at: Float[Array, "2 batch"], num_timesteps: int | None = None
) -> Float[Array, " batch"]:
    """The weight of `||eps - eps_hat||^2` in the bound, at times t drawn uniformly.

    `gamma'(t) / 2` in continuous time (section 4.3), `T expm1(gamma(t) - gamma(t - 1/T)) / 2` of a
    chain of T steps, where t is i / T (section 4.1).

    Args:
        at: The schedule at the times, as `schedule_at` gives it.
        num_timesteps: The number of steps T; None for continuous time.
    """
    if num_timesteps is None:
        return 0.5 * at[1]
    return 0.5 * num_timesteps * jnp.expm1(at[0] - at[1])


def diffusion_loss(
    denoise: Denoise,
    gamma: Gamma,
    x: Float[Array, "batch *dims"],
    eps: Float[Array, "batch *dims"],
    t: Float[Array, " batch"],
    *,
    num_timesteps: int | None = None,
    inner: Gamma | None = None,
    condition: Any = None,
) -> Float[Array, " batch"]:
    """`weight(t) ||eps - eps_hat||^2`, whose mean over times is the bound's middle term.

    `eps_hat` is what leads from the data that the denoiser expects to the noisy data.

    Args:
        denoise: The denoiser.
        gamma: The schedule.
        x: Data.
        eps: The noise.
        t: Time of each example, uniform in (0, 1], or of 1/T, 2/T, ..., 1.
        num_timesteps: The number of steps T; None for continuous time.
        inner: The schedule too, as a function of those of its parameters whose gradient is to be
            that of the loss's square; None for none. See `variational_bound`.
        condition: What the denoiser is told.

    Returns:
        Nats, summed over an example's dimensions.

    Raises:
        ValueError: Data and noise of different shapes, or another number of times than examples.
    """
    check_same_shape(x=x, eps=eps)
    check_batch(len(x), t=t)

    def loss(at: Float[Array, "2 batch"]) -> Float[Array, " batch"]:
        level = vp(lambda _: -at[0]).at(t)
        z = q_sample(x, eps, level)
        error = eps - to_eps(denoise(z, level, condition).x0, z, level)
        return diffusion_weight(at, num_timesteps) * _sum(jnp.square(error))

    at = schedule_at(gamma, t, num_timesteps)
    if inner is None:
        return loss(at)
    same = schedule_at(inner, t, num_timesteps)
    moved = same - jax.lax.stop_gradient(same)
    return with_gradient_of_square(lambda moved: loss(at + moved), moved)


def with_gradient_of_square(
    loss: Callable[[Array], Float[Array, " batch"]], argument: Float[Array, "*parts batch"]
) -> Float[Array, " batch"]:
    """`loss(argument)`, whose gradient by the argument is that of its square, by one evaluation.

    By all else that the loss depends on, the gradient is its own.

    Args:
        loss: The losses of examples, of which each depends on its own part of the argument alone.
        argument: The argument, whose last axis is the batch.
    """
    pure, others = jax.closure_convert(loss, argument)

    @jax.custom_vjp
    def call(argument: Array, *others: Array) -> Array:
        value: Array = pure(argument, *others)
        return value

    def forward(argument: Array, *others: Array) -> Any:
        value, back = jax.vjp(pure, argument, *others)
        return value, (value, back)

    def backward(kept: Any, cotangent: Array) -> Any:
        value, back = kept
        slope, *rest = back(cotangent)
        return 2 * value.reshape((1,) * (slope.ndim - 1) + (-1,)) * slope, *rest

    call.defvjp(forward, backward)
    return call(argument, *others)


def variational_bound(
    denoise: Denoise,
    gamma: Gamma,
    image: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    *,
    num_timesteps: int | None = None,
    inner: Gamma | None = None,
    condition: Any = None,
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    """An unbiased estimate of the bound on `-log p(u)`, by one time and two draws of noise.

    In continuous time, or of a chain of T steps (sections 4.1 and 4.3). The batch shares one draw
    of times, `(u + i / B) mod 1` (appendix I.1).

    In continuous time the bound depends on the ends of the schedule alone, and what is between them
    can be trained for the least variance: its parameters get the gradient of the square of the
    diffusion's term, whose mean is the variance but for a constant (section 5.3, appendix I.2).

    Args:
        denoise: The denoiser, of the points of bytes.
        gamma: The schedule.
        image: 8-bit data u as `2 u / 255 - 1`.
        key: The PRNG key.
        num_timesteps: The number of steps T; None for continuous time.
        inner: The schedule too, as a function of the parameters between its ends, for the least
            variance; None to train all of it by the bound. `gamma` then has no gradient by these.
        condition: What the denoiser is told.

    Returns:
        The bound, in nats summed over an example's dimensions, and its parts: "prior_kl",
        "diffusion_kl" and "decoder_nll".

    Raises:
        ValueError: if `num_timesteps` is less than 1.
    """
    if num_timesteps is not None and num_timesteps < 1:
        raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}")
    key_t, key_eps, key_0 = jax.random.split(key, 3)
    t = uniform(antithetic=True)(key_t, len(image))
    if num_timesteps is not None:
        t = jnp.minimum(jnp.floor(t * num_timesteps) + 1, num_timesteps) / num_timesteps
    x, eps_0 = to_points(image), standard_normal(key_0, image.shape)
    ends = jnp.array([0.0, 1.0])
    gamma_0, gamma_1 = gamma(ends)
    first = jax.tree.map(lambda v: jnp.full(len(x), v[0]), vp(lambda t: -gamma(t)).at(ends))
    diffusion = diffusion_loss(
        denoise,
        gamma,
        x,
        standard_normal(key_eps, x.shape),
        t,
        num_timesteps=num_timesteps,
        inner=inner,
        condition=condition,
    )
    terms = {
        "prior_kl": prior_kl(x, gamma_1),
        "diffusion_kl": diffusion,
        "decoder_nll": decoder_nll(image, q_sample(x, eps_0, first), gamma_0),
    }
    return sum(terms.values(), start=jnp.zeros(len(x))), terms


def _sum(values: Array) -> Float[Array, " batch"]:
    return values.reshape(len(values), -1).sum(axis=1)
