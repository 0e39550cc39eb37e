"""The discretized logistic distribution and PixelCNN++'s mixture of them, in nats.

A logistic distribution whose mass is taken over `num_bins` bins: [-1, 1] holds their centres, and
the outermost bins take the tails. 8-bit data u are `2 u / 255 - 1`. The functions of one logistic
are elementwise; those of the mixture take a pixel's channels together.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_broadcast, check_same_shape
from jaxgen.distributions.elementwise import categorical_sample, likeliest, log_sigmoid

_Values = Float[Array, "*#dims"] | float  # broadcast against each other
_Rows = Float[Array, "*dims rows num_mixtures"]
_Pixels = Float[Array, "*dims channels"]


def least_log_scale(num_bins: int) -> float:
    """`-7 - log((num_bins - 1) / 255)`: the least log-scale that decoders may say.

    That of PixelCNN++'s authors for 256 bins, the same part of a bin for any number of them. A
    logistic at a bin's middle then has 97 % of its mass in the bin.

    Args:
        num_bins: The number of bins, at least 2.

    Raises:
        ValueError: If `num_bins` is less than 2.
    """
    _check_num_bins(num_bins)
    return -7.0 - math.log((num_bins - 1) / 255)


def discretized_logistic_log_prob(
    x: _Values, mean: _Values, log_scale: _Values, num_bins: int = 256
) -> Float[Array, "..."]:
    """Log of the mass that a logistic distribution puts in x's bin (Salimans et al. 2017, eq. 2).

    [-1, 1] holds the centres of `num_bins` bins, whose lower and upper edges are a and b; the first
    bin's a and the last one's b are infinite:

        log P(x) = log(sigmoid((b - mean) / scale) - sigmoid((a - mean) / scale))

    Written as a product, `sigmoid(b') sigmoid(-a') (1 - e^(a' - b'))`, nothing cancels: value and
    gradient stay accurate however far out the bin and however small or large the scale (beyond
    e^-30 and e^30 it is taken to be there).

    Args:
        x: Bin centres. Any number counts as the nearest bin's centre, so that there is no gradient
            by x.
        mean: The distribution's mean, on the same scale.
        log_scale: The log of its scale (the standard deviation is `pi / sqrt(3)` times the scale).
        num_bins: The number of bins, at least 2.

    Returns:
        The log-mass in nats, of the broadcast shape. Over all bins the masses add up to one.

    Raises:
        ValueError: If `num_bins` is less than 2, or shapes do not fit.
    """
    _check_num_bins(num_bins)
    check_broadcast(x=x, mean=mean, log_scale=log_scale)
    last = num_bins - 1
    # From the bin's number, so that neighbours share their edge to the last bit.
    bin_ = jnp.clip(jnp.round(0.5 * (x + 1.0) * last), 0, last)
    precision = jnp.exp(-jnp.clip(log_scale, -30.0, 30.0))
    low = ((2 * bin_ - num_bins) / last - mean) * precision
    high = ((2 * bin_ + 2 - num_bins) / last - mean) * precision
    below_high = jnp.where(bin_ == last, 0.0, log_sigmoid(high))
    above_low = jnp.where(bin_ == 0, 0.0, log_sigmoid(-low))
    is_inner = (bin_ > 0) & (bin_ < last)
    within = jnp.where(is_inner, jnp.log(-jnp.expm1(-2 / last * precision)), 0.0)
    return below_high + above_low + within


def discretized_logistic_sample(
    key: Key[Array, ""],
    mean: Float[Array, "*dims"],
    log_scale: Float[Array, "*dims"],
    num_bins: int = 256,
) -> Float[Array, "*dims"]:
    """Draws bin centres with the masses of `discretized_logistic_log_prob`.

    Args:
        key: PRNG key.
        mean: The logistic's mean.
        log_scale: The log of its scale.
        num_bins: The number of bins, at least 2.

    Returns:
        Bin centres in [-1, 1].

    Raises:
        ValueError: If `num_bins` is less than 2, or mean and log-scale differ in shape.
    """
    _check_num_bins(num_bins)
    check_same_shape(mean=mean, log_scale=log_scale)
    noise = jax.random.logistic(key, (mean.size,)).reshape(mean.shape)  # flat compiles faster
    return _nearest(mean + jnp.exp(log_scale) * noise, num_bins)


def discretized_logistic_mean(
    mean: Float[Array, "*dims"], log_scale: Float[Array, "*dims"]
) -> Float[Array, "*dims"]:
    """The mean of the logistic clipped to [-1, 1].

    That is 1 less the integral of its distribution function over [-1, 1]. It is at most half a bin
    from the mean of the bins' masses, whatever their number.

    Args:
        mean: The logistic's mean.
        log_scale: The log of its scale.

    Returns:
        Means in [-1, 1].

    Raises:
        ValueError: If mean and log-scale differ in shape.
    """
    check_same_shape(mean=mean, log_scale=log_scale)
    scale = jnp.exp(log_scale)
    above = jax.nn.softplus((1 - mean) / scale) - jax.nn.softplus((-1 - mean) / scale)
    return jnp.clip(1 - scale * above, -1.0, 1.0)


def discretized_logistic_mode(
    mean: Float[Array, "*dims"], log_scale: Float[Array, "*dims"], num_bins: int = 256
) -> Float[Array, "*dims"]:
    """The likeliest bin: the one at the mean, or an outermost one, which holds a whole tail.

    Args:
        mean: The logistic's mean.
        log_scale: The log of its scale.
        num_bins: The number of bins, at least 2.

    Returns:
        Bin centres in [-1, 1].

    Raises:
        ValueError: If `num_bins` is less than 2, or mean and log-scale differ in shape.
    """
    check_same_shape(mean=mean, log_scale=log_scale)
    inner = _nearest(mean, num_bins)
    low, middle, high = (
        discretized_logistic_log_prob(x, mean, log_scale, num_bins) for x in (-1.0, inner, 1.0)
    )
    best = jnp.where(low > middle, -1.0, inner)
    best = jnp.where(high > jnp.maximum(low, middle), 1.0, best)
    return jnp.where(jnp.isnan(middle), jnp.nan, best)  # no comparison says so


def mixture_of_logistics_rows(channels: int) -> int:
    """Numbers that describe one component of a mixture: `(C + 1) (C + 2) / 2`, 3 or 10 of C = 1, 3.

    A logit, C means, C log-scales and C (C - 1) / 2 coefficients.

    Args:
        channels: The number of channels C, at least 1.

    Returns:
        The number of rows.

    Raises:
        ValueError: If `channels` is less than 1.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    return (channels + 1) * (channels + 2) // 2


def mixture_of_logistics_log_prob(
    params: _Rows, x: _Pixels, num_bins: int = 256
) -> Float[Array, "*dims"]:
    """Log-mass of whole pixels under a mixture whose channels are coupled (Salimans et al. 2017).

    A pixel picks one of M components for all its channels. Within it each channel is a discretized
    logistic whose mean is linear in the channels before it (the paper's section 2.2, eq. 3):

        P(x) = sum_m pi_m prod_c P(x_c; mean_mc + sum_{d < c} k_mcd x_d, scale_mc)

    Args:
        params: Rows of M numbers: the logits of pi; C of means; C of log-scales, of which those
            below `least_log_scale` count as that; C (C - 1) / 2 of coefficients k before their
            tanh, in the order (c, d) = (2, 1), (3, 1), (3, 2), ...
        x: Pixels, each channel a bin centre.
        num_bins: The number of bins, at least 2.

    Returns:
        The log-mass in nats of each pixel, summed over its channels.

    Raises:
        ValueError: If the number of rows is not that of x's channels, the other axes of the two
            differ, or `num_bins` is less than 2.
    """
    expected = mixture_of_logistics_rows(x.shape[-1])
    if params.shape[-2] != expected:
        raise ValueError(
            f"params must have {expected} rows for {x.shape[-1]} channels, got {params.shape[-2]}"
        )
    if params.shape[:-2] != x.shape[:-1]:
        raise ValueError(
            f"params must have the pixels' shape {x.shape[:-1]}, rows and mixtures, "
            f"got {params.shape}"
        )
    return _mixture_log_prob(_components(params, num_bins), x, num_bins)


def mixture_of_logistics_sample(
    key: Key[Array, ""], params: _Rows, num_bins: int = 256, temperature: float = 1.0
) -> Float[Array, "*dims channels"]:
    """Draws whole pixels: a component, then its channels in turn, each given those before it.

    Args:
        key: PRNG key.
        params: The mixture's numbers, see `mixture_of_logistics_log_prob`.
        num_bins: The number of bins, at least 2.
        temperature: Divisor of the logits and factor of the scales, positive and finite.

    Returns:
        Pixels of bin centres in [-1, 1], at temperature 1 exactly of the masses of
        `mixture_of_logistics_log_prob`.

    Raises:
        ValueError: If the number of rows is of no number of channels, `num_bins` less than 2, or
            the temperature out of range.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    key_component, key_channels = jax.random.split(key)
    chosen = categorical_sample(key_component, params[..., 0, :] / temperature)
    only = _components(jnp.take_along_axis(params, chosen[..., None, None], axis=-1), num_bins)
    # Below the least scale too: that is of what the network says, not of what is drawn.
    scales = [log_scale + math.log(temperature) for log_scale in only.log_scales]
    only = only._replace(log_scales=scales)
    keys = jax.random.split(key_channels, len(only.means))

    def draw(c, mean, log_scale):
        return discretized_logistic_sample(keys[c], mean, log_scale, num_bins)

    return jnp.concatenate(_by_channel(only, draw), axis=-1)


def mixture_of_logistics_mean(params: _Rows, num_bins: int = 256) -> Float[Array, "*dims channels"]:
    """The mean pixel: the components' means, weighted.

    Each channel's is that of its clipped logistic at the means of the channels before it: within
    half a bin of exact for one channel, an approximation where the bounds bite for more.

    Args:
        params: The mixture's numbers, see `mixture_of_logistics_log_prob`.
        num_bins: The number of bins, at least 2.

    Returns:
        Pixels in [-1, 1].

    Raises:
        ValueError: If the number of rows is of no number of channels, or `num_bins` less than 2.
    """
    mixture = _components(params, num_bins)
    weights = jax.nn.softmax(mixture.logits)
    means = _by_channel(mixture, lambda c, mean, scale: discretized_logistic_mean(mean, scale))
    return jnp.stack([jnp.sum(weights * mean, axis=-1) for mean in means], axis=-1)


def mixture_of_logistics_mode(params: _Rows, num_bins: int = 256) -> Float[Array, "*dims channels"]:
    """The likeliest of the components' own modes, by the mass of the whole mixture.

    A component's mode is sought channel by channel. Where components overlap, a pixel between them
    may be likelier still: the true mode would take a search of all `num_bins ** C` colours.

    Args:
        params: The mixture's numbers, see `mixture_of_logistics_log_prob`.
        num_bins: The number of bins, at least 2.

    Returns:
        Pixels of bin centres in [-1, 1].

    Raises:
        ValueError: If the number of rows is of no number of channels, or `num_bins` less than 2.
    """

    def seek(c, mean, log_scale):
        return discretized_logistic_mode(mean, log_scale, num_bins)

    modes = jnp.stack(_by_channel(_components(params, num_bins), seek), axis=-1)  # [..., M, C]
    masses = _mixture_log_prob(_components(params[..., None, :, :], num_bins), modes, num_bins)
    best = likeliest(masses)
    return jnp.take_along_axis(modes, best[..., None, None], axis=-2)[..., 0, :]


class _Mixture(NamedTuple):
    """Components on the last axis; one entry of a list per channel, or per pair of channels."""

    logits: Array
    means: list[Array]
    log_scales: list[Array]
    coefficients: list[Array]


def _components(params, num_bins: int) -> _Mixture:
    rows = params.shape[-2]
    channels = (math.isqrt(8 * rows + 1) - 3) // 2
    if channels < 1 or mixture_of_logistics_rows(channels) != rows:
        raise ValueError(f"params must have 3 rows for 1 channel, 10 for 3, and so on, got {rows}")
    logits, *others = (params[..., i, :] for i in range(rows))
    return _Mixture(
        logits=logits,
        means=others[:channels],
        log_scales=[
            jnp.maximum(s, least_log_scale(num_bins)) for s in others[channels : 2 * channels]
        ],
        coefficients=[jnp.tanh(k) for k in others[2 * channels :]],
    )


def _coupled_mean(mixture: _Mixture, channel: int, before: list[Array]):
    """The channel's mean [..., M] given the channels before it, [..., M] or [..., 1]."""
    mean, first = mixture.means[channel], channel * (channel - 1) // 2
    for d in range(channel):
        mean = mean + mixture.coefficients[first + d] * before[d]
    return mean


def _by_channel(mixture: _Mixture, pick):
    """`[x_1, ..., x_C]`, each `pick(c, mean given those before it, log_scale)`."""
    channels: list[Array] = []
    for c, log_scale in enumerate(mixture.log_scales):
        channels.append(pick(c, _coupled_mean(mixture, c, channels), log_scale))
    return channels


def _mixture_log_prob(mixture: _Mixture, x, num_bins: int):
    """log P of pixels x [..., C], of shape [...]."""
    log_prob = jax.nn.log_softmax(mixture.logits)
    values = [x[..., c, None] for c in range(x.shape[-1])]
    for c, log_scale in enumerate(mixture.log_scales):
        mean = _coupled_mean(mixture, c, values)
        log_prob = log_prob + discretized_logistic_log_prob(values[c], mean, log_scale, num_bins)
    return jax.nn.logsumexp(log_prob, axis=-1)


def _nearest(x, num_bins: int):
    """The bin centre nearest to x."""
    half = 0.5 * (num_bins - 1)
    # Clipped last: XLA may divide by a reciprocal, and so leave [-1, 1] by a rounding.
    return jnp.clip(jnp.round((x + 1) * half) / half - 1, -1.0, 1.0)


def _check_num_bins(num_bins: int) -> None:
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, got {num_bins}")
