"""What a network predicts, as a value, and the denoiser that a network then is.

    EPS, X0, V                 the noise, the data, v (of a variance-preserving process)
    SCORE, NEGATIVE_EPS        the score, and the score times sigma
    velocity(process)          the velocity of the path from data to noise (flow matching)
    edm(sigma_data)            EDM's, whose inputs and targets have unit variance at every level

A parametrization says how the data follow from a network F: `x0 = skip x + out F(scale_in x, time)`
(Karras et al. 2022, EDM, eq. 7), where all four are functions of the level. A denoiser is what
losses and solvers see of it:

    denoise(x: f32[B, ..., C], level: Level of [B], condition) -> Denoised(x0, extra)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxgen.checks import check_batch, check_same_shape
from jaxgen.noise.process import Level, Process, expand, log_snr_of, slope

Coefficient = Callable[[Level], Float[Array, " batch"]]


class Denoised(NamedTuple):
    """What a denoiser says of noisy data.

    Attributes:
        x0: The data that it expects, f32.
        extra: The network's further channels, for a learned variance, or None.
    """

    x0: Float[Array, "batch *dims"]
    extra: Float[Array, "batch *extra_dims"] | None = None


# (x_t, level, condition) -> Denoised
Denoise = Callable[[Array, Level, Any], Denoised]
# (x, time, condition) -> [B, ..., C], or [B, ..., 2C] where it learns the variance too
Network = Callable[[Array, Array, Any], Array]
# (z, r, t) -> the average velocity from time t back to r, at z on the path at t (MeanFlow)
MeanVelocity = Callable[[Array, Array, Array], Array]


class Parametrization(NamedTuple):
    """What a network predicts: `x0 = skip x + out F(scale_in x, time)`.

    Attributes:
        skip: The factor of the noisy example.
        out: The factor of the network's output.
        scale_in: The factor of the noisy example before the network sees it.
        time: What the network is given as the time.
        target: `(x0, eps, level) -> ` what a perfect network would say of `q_sample(x0, eps,
            level)`; losses are in its space.
    """

    skip: Coefficient
    out: Coefficient
    scale_in: Coefficient
    time: Callable[[Level], Num[Array, " batch"]]
    target: Callable[[Array, Array, Level], Float[Array, "batch *dims"]]


def _one(level: Level) -> Float[Array, " batch"]:
    return jnp.ones_like(level.alpha)


def _time(level: Level) -> Num[Array, " batch"]:
    return level.time


def _v_target(x0: Array, eps: Array, level: Level) -> Float[Array, "batch *dims"]:
    return expand(level.alpha, x0.ndim) * eps - expand(level.sigma, x0.ndim) * x0


EPS = Parametrization(
    skip=lambda level: 1 / level.alpha,
    out=lambda level: -level.sigma / level.alpha,
    scale_in=_one,
    time=_time,
    target=lambda x0, eps, level: eps,
)
"""The noise (Ho et al. 2020): `x0 = (x - sigma F) / alpha`."""

X0 = Parametrization(
    skip=lambda level: jnp.zeros_like(level.alpha),
    out=_one,
    scale_in=_one,
    time=_time,
    target=lambda x0, eps, level: x0,
)
"""The data: `x0 = F`."""

V = Parametrization(
    skip=lambda level: level.alpha,
    out=lambda level: -level.sigma,
    scale_in=_one,
    time=_time,
    target=_v_target,
)
"""`v = alpha eps - sigma x0` (Salimans & Ho 2022), of a variance-preserving process: `x0 = alpha x
- sigma F`."""

SCORE = Parametrization(
    skip=lambda level: 1 / level.alpha,
    out=lambda level: jnp.square(level.sigma) / level.alpha,
    scale_in=_one,
    time=_time,
    target=lambda x0, eps, level: -eps / expand(level.sigma, eps.ndim),
)
"""The score of the noisy data (Song & Ermon 2019): `x0 = (x + sigma^2 F) / alpha` (Tweedie)."""

NEGATIVE_EPS = Parametrization(
    skip=lambda level: 1 / level.alpha,
    out=lambda level: level.sigma / level.alpha,
    scale_in=_one,
    time=_time,
    target=lambda x0, eps, level: -eps,
)
"""`sigma` times the score, as the networks of Song et al. 2021 (SDE) say it: `x0 = (x + sigma F) /
alpha`."""


def velocity(process: Process) -> Parametrization:
    """The velocity of a path, `v = alpha' x0 + sigma' eps` (Lipman et al. 2023, flow matching).

    `x0 = (sigma' x - sigma v) / (sigma' alpha - sigma alpha')`; on straight lines it is `v = eps -
    x0` and `x0 = x - t v`. Time runs from data to noise here.

    Args:
        process: The process, whose time the level must know.
    """

    def divisor(level: Level) -> tuple[Array, Array, Array]:
        alpha_rate, sigma_rate = slope(process, level.time)
        return alpha_rate, sigma_rate, sigma_rate * level.alpha - level.sigma * alpha_rate

    def skip(level: Level) -> Array:
        _, sigma_rate, whole = divisor(level)
        return sigma_rate / whole

    def target(x0: Array, eps: Array, level: Level) -> Array:
        alpha_rate, sigma_rate = slope(process, level.time)
        return expand(alpha_rate, x0.ndim) * x0 + expand(sigma_rate, x0.ndim) * eps

    return Parametrization(
        skip=skip,
        out=lambda level: -level.sigma / divisor(level)[2],
        scale_in=_one,
        time=_time,
        target=target,
    )


def edm(sigma_data: float = 0.5) -> Parametrization:
    """EDM's preconditioning (Karras et al. 2022, table 1), here of any process.

    With the variance `w = sigma^2 + alpha^2 sigma_data^2` of a noisy example: `skip = alpha
    sigma_data^2 / w`, `out = sigma sigma_data / sqrt(w)`, `scale_in = 1 / sqrt(w)`, and the network
    is told `log(sigma / alpha) / 4`. A weight of 1 of the network's error, `losses.simple`, is the
    paper's weight of the data's.

    Args:
        sigma_data: The deviation of the data, positive.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")

    def variance(level: Level) -> Array:
        return jnp.square(level.sigma) + jnp.square(level.alpha * sigma_data)

    def skip(level: Level) -> Array:
        return level.alpha * sigma_data**2 / variance(level)

    def out(level: Level) -> Array:
        return level.sigma * sigma_data / jnp.sqrt(variance(level))

    def target(x0: Array, eps: Array, level: Level) -> Array:
        # (x0 - skip x) / out of x = alpha x0 + sigma eps, without what cancels or divides by 0
        root = sigma_data * jnp.sqrt(variance(level))
        noisy = expand(level.sigma / root, x0.ndim)
        return noisy * x0 - expand(level.alpha * sigma_data**2 / root, x0.ndim) * eps

    return Parametrization(
        skip=skip,
        out=out,
        scale_in=lambda level: 1 / jnp.sqrt(variance(level)),
        time=lambda level: -log_snr_of(level) / 8,
        target=target,
    )


def ask(
    network: Network,
    parametrization: Parametrization,
    x: Float[Array, "batch *dims"],
    level: Level,
    condition: Any = None,
) -> Float[Array, "batch *output_dims"]:
    """A network's output for noisy data, `F(scale_in x, time)`, of any float type.

    Args:
        network: The network.
        parametrization: What it predicts.
        x: Noisy data.
        level: The level of each example.
        condition: What the network is told.

    Raises:
        ValueError: Another number of levels than examples.
    """
    check_batch(len(x), alpha=level.alpha, sigma=level.sigma, time=level.time)
    return network(
        expand(parametrization.scale_in(level), x.ndim) * x, parametrization.time(level), condition
    )


def interpret(
    parametrization: Parametrization,
    output: Float[Array, "batch *output_dims"],
    x: Float[Array, "batch *dims"],
    level: Level,
) -> Denoised:
    """The data that a network's output implies, `skip x + out F`, and its further channels.

    Args:
        parametrization: What the network predicts.
        output: The network's output, [B, ..., C] or with further channels, of any float type.
        x: The noisy data of which it is, [B, ..., C].
        level: The level of each example.

    Raises:
        ValueError: if the output has not the shape of x but for further channels, or there are
            other numbers of levels than examples.
    """
    check_batch(len(x), alpha=level.alpha, sigma=level.sigma)
    channels = x.shape[-1]
    if output.shape[:-1] != x.shape[:-1] or output.shape[-1] < channels:
        raise ValueError(
            f"the network's output for x_t of shape {x.shape} must have that shape, or further "
            f"channels besides, got {output.shape}"
        )
    skip, out = (
        expand(parametrization.skip(level), x.ndim),
        expand(parametrization.out(level), x.ndim),
    )
    x0 = skip * x + out * output[..., :channels].astype(jnp.float32)
    return Denoised(x0, output[..., channels:] if output.shape[-1] > channels else None)


def denoiser(network: Network, parametrization: Parametrization) -> Denoise:
    """The denoiser that a network is under a parametrization.

    Args:
        network: `(x, time, condition) -> output`, usually a closure over parameters.
        parametrization: What the network predicts.

    Examples:
        >>> from jaxgen.noise.process import rectified
        >>> network = lambda x, time, condition: jnp.zeros_like(x)
        >>> denoise = denoiser(network, V)
        >>> denoise(jnp.ones((1, 4, 4, 1)), rectified().at(jnp.array([0.25])), None).x0[0, 0, 0]
        Array([0.75], dtype=float32)
    """

    def denoise(x: Float[Array, "batch *dims"], level: Level, condition: Any = None) -> Denoised:
        output = ask(network, parametrization, x, level, condition)
        return interpret(parametrization, output, x, level)

    return denoise


def to_eps(
    x0: Float[Array, "batch *dims"], x_t: Float[Array, "batch *dims"], level: Level
) -> Float[Array, "batch *dims"]:
    """The noise that leads from x0 to x_t: `eps = (x_t - alpha x0) / sigma`.

    Args:
        x0: Data, true or predicted.
        x_t: Noisy data.
        level: The level of each example.

    Raises:
        ValueError: Data of different shapes, or another number of levels than examples.
    """
    check_same_shape(x0=x0, x_t=x_t)
    check_batch(len(x_t), alpha=level.alpha, sigma=level.sigma)
    return (x_t - expand(level.alpha, x_t.ndim) * x0) / expand(level.sigma, x_t.ndim)
