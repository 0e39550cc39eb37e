"""What a decoder can say of an image: likelihoods over pixels, chosen in one way.

A `Likelihood` is a NamedTuple of functions between a network's outputs `params[B, ..., P]`, P
numbers a pixel, and images `x[B, ..., C]` in model space, [-1, 1]:

    likelihood              P for C channels            x
    bernoulli               C                           -1 or 1, for 0 or 1
    gaussian                C, or 2C if learned         real numbers: a density, not a mass
    categorical             256 C                       8-bit data u as 2 u / 255 - 1
    discretized_logistic    2C                          the same
    mixture_of_logistics    3M for C = 1, 10M for 3     the same

Numbers of nats compare only within one kind of data: binary images, real numbers and 8-bit images
are three. A density of x in [-1, 1] is log(127.5) nats a dimension greater than that of the same
data on the scale 0..255, on which densities of dequantized data compare with 8-bit masses.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxgen.distributions import logistic
from jaxgen.distributions.elementwise import (
    bernoulli_log_prob,
    categorical_log_prob,
    categorical_sample,
    gaussian_log_prob,
    likeliest,
    standard_normal,
)

_Params = Float[Array, "batch *pixels num_params"]
_Image = Float[Array, "batch *pixels channels"]
# Below half a grey level a learned Gaussian gains density without end and learns nothing more.
_MIN_LOG_VARIANCE = 2 * math.log(1 / 255)


class Likelihood(NamedTuple):
    """A distribution of images given a decoder's outputs, pixels independent of one another.

    Attributes:
        num_params: `channels -> P`, the outputs per pixel that the decoder must have.
        log_prob: `(params[B, ..., P], x[B, ..., C]) -> f32[B]`, nats summed over an example's
            pixels and channels. A ValueError where the shapes do not match.
        sample: `(key, params) -> x`.
        mean: `params -> x`, the expected image; it may lie between the values of the data.
        mode: `params -> x`, the likeliest image.
        check: `data -> None`, a ValueError if the data are not in the support. For concrete arrays,
            outside of `jit`.
    """

    num_params: Callable[[int], int]
    log_prob: Callable[[Array, Array], Float[Array, " batch"]]
    sample: Callable[[Key[Array, ""], Array], Array]
    mean: Callable[[Array], Array]
    mode: Callable[[Array], Array]
    check: Callable[[Array | np.ndarray], None]


def bernoulli() -> Likelihood:
    """Binary images: `params` are the logits of `P((x + 1) / 2 = 1)`.

    Samples and modes are -1 or 1, means between. Grey values are accepted, since many train on
    them; what `log_prob` then gives is a negative cross entropy, not a likelihood.

        >>> likelihood = bernoulli()
        >>> logits = jnp.zeros((1, 2, 2, likelihood.num_params(1)))  # what a decoder says
        >>> likelihood.log_prob(logits, jnp.ones((1, 2, 2, 1)))  # 4 log(1/2)
        Array([-2.7725887], dtype=float32)

    Returns:
        The likelihood; its `check` refuses data outside [-1, 1].
    """

    def log_prob(params: _Params, x: _Image) -> Float[Array, " batch"]:
        params = _checked(params, num_params, x)
        return _sum(bernoulli_log_prob(0.5 * (_flat(x) + 1), _flat(params)))

    def sample(key: Key[Array, ""], params: _Params) -> _Image:
        probability = jax.nn.sigmoid(_checked(params, num_params))
        uniform = jax.random.uniform(key, (params.size,)).reshape(params.shape)
        return jnp.where(uniform < probability, 1.0, -1.0) + _nan_of(params)

    def mean(params: _Params) -> _Image:
        return jnp.tanh(0.5 * _checked(params, num_params))

    def mode(params: _Params) -> _Image:
        return jnp.where(_checked(params, num_params) > 0, 1.0, -1.0) + _nan_of(params)

    def check(data: Array | np.ndarray) -> None:
        _check_range(data, "bernoulli")

    num_params = _positive
    return Likelihood(num_params, log_prob, sample, mean, mode, check)


def gaussian(scale: float | None = 1.0) -> Likelihood:
    """Real images: `N(mean, scale^2)` of each channel, a density.

    With a fixed scale `params` are the means, and the log-density is the squared error over
    `-2 scale^2`, less a constant. With None they are C means, then C log-variances, each softly
    held above `2 log(1/255)` (`floor + softplus(v - floor)`, as Rybkin et al. 2021 do): without a
    floor, pixels that never vary drive the density to infinity. Samples, means and modes may leave
    [-1, 1].

    Args:
        scale: The standard deviation in model space, or None to learn it per pixel and channel.

    Returns:
        The likelihood; its `check` refuses what is not finite.

    Raises:
        ValueError: If `scale` is neither None nor positive and finite.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be None or positive and finite, got {scale}")

    def split(params):
        if scale is not None:
            return params, jnp.float32(2 * math.log(scale))
        means, raw = jnp.split(params, 2, axis=-1)
        return means, _MIN_LOG_VARIANCE + jax.nn.softplus(raw - _MIN_LOG_VARIANCE)

    def num_params(channels: int) -> int:
        return (2 if scale is None else 1) * _positive(channels)

    def log_prob(params: _Params, x: _Image) -> Float[Array, " batch"]:
        means, log_variance = split(_checked(params, num_params, x))
        if log_variance.ndim:
            log_variance = _flat(log_variance)
        return _sum(gaussian_log_prob(_flat(x), _flat(means), log_variance))

    def sample(key: Key[Array, ""], params: _Params) -> _Image:
        means, log_variance = split(_checked(params, num_params))
        return means + jnp.exp(0.5 * log_variance) * standard_normal(key, means.shape)

    def mean(params: _Params) -> _Image:
        return split(_checked(params, num_params))[0]

    def check(data: Array | np.ndarray) -> None:
        if not np.isfinite(np.asarray(data)).all():
            raise ValueError("gaussian: data must be finite, got NaN or infinity")

    return Likelihood(num_params, log_prob, sample, mean, mean, check)


def categorical(num_values: int = 256) -> Likelihood:
    """Images of `num_values` grey levels, each with a logit of its own.

    `params` are, for one channel after the other, the logits of the values from -1 to 1.

    Args:
        num_values: The number of levels V, at least 2.

    Returns:
        The likelihood; its `check` refuses data that are not `2 u / (V - 1) - 1`, u = 0..V-1.

    Raises:
        ValueError: If `num_values` is less than 2.
    """
    _check_num_values(num_values)
    values = np.linspace(-1, 1, num_values, dtype=np.float32)

    def num_params(channels: int) -> int:
        return num_values * _positive(channels)

    def logits_of(params, x=None):
        params = _checked(params, num_params, x)
        return params.reshape(*params.shape[:-1], -1, num_values)

    def log_prob(params: _Params, x: _Image) -> Float[Array, " batch"]:
        level = jnp.round(0.5 * (x + 1) * (num_values - 1)).astype(jnp.int32)
        return _sum(categorical_log_prob(level.clip(0, num_values - 1), logits_of(params, x)))

    def of_class(number: Array) -> _Image:
        return jnp.asarray(values).at[number].get(mode="fill", fill_value=jnp.nan)

    def sample(key: Key[Array, ""], params: _Params) -> _Image:
        return of_class(categorical_sample(key, logits_of(params)))

    def mean(params: _Params) -> _Image:
        probabilities = jax.nn.softmax(logits_of(params))
        return jnp.sum(probabilities * values.reshape((1,) * params.ndim + (-1,)), axis=-1)

    def mode(params: _Params) -> _Image:
        return of_class(likeliest(logits_of(params)))

    def check(data: Array | np.ndarray) -> None:
        _check_levels(data, num_values, "categorical")

    return Likelihood(num_params, log_prob, sample, mean, mode, check)


def discretized_logistic(num_values: int = 256) -> Likelihood:
    """8-bit images: a logistic of each channel, its mass taken over the value's bin.

    `params` are C means, then C log-scales, of which those below `least_log_scale` count as that;
    see `jaxgen.distributions.logistic`, also for how exact mean and mode are.

    Args:
        num_values: The number of bins, at least 2.

    Returns:
        The likelihood; its `check` refuses data that are not bin centres.

    Raises:
        ValueError: If `num_values` is less than 2.
    """
    _check_num_values(num_values)

    def num_params(channels: int) -> int:
        return 2 * _positive(channels)

    def split(params: Array, x: Array | None = None) -> tuple[Array, Array]:
        means, log_scales = jnp.split(_checked(params, num_params, x), 2, axis=-1)
        return means, jnp.maximum(log_scales, logistic.least_log_scale(num_values))

    def log_prob(params: _Params, x: _Image) -> Float[Array, " batch"]:
        mean, log_scale = split(params, x)
        log_mass = logistic.discretized_logistic_log_prob(
            _flat(x), _flat(mean), _flat(log_scale), num_values
        )
        return _sum(log_mass)

    def sample(key: Key[Array, ""], params: _Params) -> _Image:
        mean, log_scale = split(params)
        return logistic.discretized_logistic_sample(key, mean, log_scale, num_values)

    def mean(params: _Params) -> _Image:
        return logistic.discretized_logistic_mean(*split(params))

    def mode(params: _Params) -> _Image:
        mean, log_scale = split(params)
        return logistic.discretized_logistic_mode(mean, log_scale, num_values)

    def check(data: Array | np.ndarray) -> None:
        _check_levels(data, num_values, "discretized_logistic")

    return Likelihood(num_params, log_prob, sample, mean, mode, check)


def mixture_of_logistics(num_mixtures: int = 10, num_values: int = 256) -> Likelihood:
    """8-bit images: PixelCNN++'s mixture, whose channels are coupled (Salimans et al. 2017).

    `params` are `[..., rows * M]`, the rows of
    `jaxgen.distributions.logistic.mixture_of_logistics_log_prob` one after the other: 3M numbers
    for grey images and 10M for RGB.

        >>> likelihood = mixture_of_logistics(10)
        >>> likelihood.num_params(3)
        100

    Args:
        num_mixtures: The number of components M, at least 1.
        num_values: The number of bins, at least 2.

    Returns:
        The likelihood; its `check` refuses data that are not bin centres.

    Raises:
        ValueError: If `num_mixtures` is less than 1 or `num_values` less than 2.
    """
    if num_mixtures < 1:
        raise ValueError(f"num_mixtures must be at least 1, got {num_mixtures}")
    _check_num_values(num_values)

    def num_params(channels: int) -> int:
        return num_mixtures * logistic.mixture_of_logistics_rows(channels)

    def rows(params, x=None):
        params = _checked(params, num_params, x)
        return params.reshape(*params.shape[:-1], -1, num_mixtures)

    def log_prob(params: _Params, x: _Image) -> Float[Array, " batch"]:
        return _sum(logistic.mixture_of_logistics_log_prob(rows(params, x), x, num_values))

    def sample(key: Key[Array, ""], params: _Params) -> _Image:
        return logistic.mixture_of_logistics_sample(key, rows(params), num_values)

    def mean(params: _Params) -> _Image:
        return logistic.mixture_of_logistics_mean(rows(params), num_values)

    def mode(params: _Params) -> _Image:
        return logistic.mixture_of_logistics_mode(rows(params), num_values)

    def check(data: Array | np.ndarray) -> None:
        _check_levels(data, num_values, "mixture_of_logistics")

    return Likelihood(num_params, log_prob, sample, mean, mode, check)


def _nan_of(params: Array) -> Array:
    """0, or NaN where a comparison with NaN would make a value like any other."""
    return jnp.where(jnp.isnan(params), jnp.nan, 0.0)


def _sum(values: Array) -> Float[Array, " batch"]:
    return _flat(values).sum(axis=1)


def _flat(values: Array) -> Array:
    """One row an example: XLA's CPU backend vectorizes the last axis, and one channel is none."""
    return values.reshape(values.shape[0], -1)


def _positive(channels: int) -> int:
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    return channels


def _checked(params: Array, num_params: Callable[[int], int], x: Array | None = None) -> Array:
    """`params` in float32, if their width fits some number of channels, that of x where given."""
    width = params.shape[-1]
    if x is not None:
        expected = (*x.shape[:-1], num_params(x.shape[-1]))
        if params.shape != expected:
            raise ValueError(
                f"params for an image of shape {x.shape} must have shape {expected}, "
                f"got {params.shape}"
            )
    elif all(num_params(channels) != width for channels in range(1, width + 1)):
        raise ValueError(
            f"the last axis of params must be {num_params(1)} for 1 channel, {num_params(3)} for "
            f"3, and so on, got {width}"
        )
    return params.astype(jnp.float32)


def _check_num_values(num_values: int) -> None:
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")


def _check_range(data, name: str) -> np.ndarray:
    data = np.asarray(data, np.float32)
    limit = 1 + 1e-5  # a rounding beyond 1 is none of the caller's doing
    if data.size and not (data.min() >= -limit and data.max() <= limit):  # NaN is neither
        raise ValueError(
            f"{name}: data must lie in [-1, 1], got values from {data.min()} to {data.max()}"
        )
    return data


def _check_levels(data, num_values: int, name: str) -> None:
    level = 0.5 * (_check_range(data, name) + 1) * (num_values - 1)
    off = np.abs(level - np.round(level))
    if off.size and off.max() > 1e-2:
        raise ValueError(
            f"{name}: data must be one of the {num_values} values 2 u / {num_values - 1} - 1, "
            f"got {np.ravel(data)[off.argmax()]}"
        )
