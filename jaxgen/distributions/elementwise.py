"""Log-densities, divergences and masses of the distributions that models speak in, in nats.

All functions are elementwise, and the caller sums over an example's dimensions. Arguments are
numbers, or arrays of one number of axes whose sizes are equal or 1: other shapes are refused. The
logistic distribution and its mixture are in `jaxgen.distributions.logistic`;
`jaxgen.distributions.likelihoods` makes of all of them what a decoder of images needs.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key

from jaxgen.checks import check_broadcast

# What is drawn by logits that are NaN: a number of none of the values, beyond the end of any table.
NO_CLASS = 2**31 - 1
_Values = Float[Array, "*#dims"] | float  # broadcast against each other


def gaussian_log_prob(x: _Values, mean: _Values, log_variance: _Values) -> Float[Array, "..."]:
    """`log N(x; mean, e^log_variance)`, elementwise.

    Args:
        x: The points.
        mean: The mean.
        log_variance: The log of the variance.

    Returns:
        The log-density in nats, of the broadcast shape.

    Raises:
        ValueError: Shapes that do not fit.
    """
    check_broadcast(x=x, mean=mean, log_variance=log_variance)
    return _log_phi((x - mean) * jnp.exp(-0.5 * log_variance)) - 0.5 * log_variance


def gaussian_kl(
    mean_p: _Values,
    log_variance_p: _Values,
    mean_q: _Values,
    log_variance_q: _Values,
) -> Float[Array, "..."]:
    """`KL(p || q)` of two Gaussians, elementwise.

    `(e^d - 1 - d + (mean_p - mean_q)^2 e^-log_variance_q) / 2`, `d` the difference of the
    log-variances; zero, not merely small, where p equals q.

    Args:
        mean_p: The mean of p.
        log_variance_p: The log-variance of p.
        mean_q: The mean of q.
        log_variance_q: The log-variance of q.

    Returns:
        The divergence in nats, of the broadcast shape.

    Raises:
        ValueError: Shapes that do not fit.
    """
    check_broadcast(
        mean_p=mean_p,
        log_variance_p=log_variance_p,
        mean_q=mean_q,
        log_variance_q=log_variance_q,
    )
    difference = log_variance_p - log_variance_q
    distance = jnp.square((mean_p - mean_q) * jnp.exp(-0.5 * log_variance_q))
    return 0.5 * (jnp.expm1(difference) - difference + distance)


def discretized_gaussian_log_prob(
    x: _Values,
    mean: _Values,
    log_variance: _Values,
    num_bins: int = 256,
) -> Float[Array, "..."]:
    """Log of the mass that a Gaussian puts in x's bin (Ho et al. 2020, eq. 13).

    [-1, 1] holds the centres of `num_bins` bins of width `h = 2 / (num_bins - 1)`, the first and
    last of which reach out to infinity:

        log P(x) = log(Phi((x + h/2 - mean) / std) - Phi((x - h/2 - mean) / std))

    Value and gradient stay accurate in float32 however far out the bin and however small the std
    (below 1e-13, where all mass is in one bin in any case, it is taken to be 1e-13).

    Args:
        x: Bin centres; of 8-bit data u, `2 u / 255 - 1`.
        mean: The Gaussian's mean, on the same scale.
        log_variance: The log of its variance.
        num_bins: The number of bins, at least 2.

    Returns:
        The log-mass in nats, of the broadcast shape. Over all bins the masses add up to one.

    Raises:
        ValueError: If `num_bins` is less than 2, or shapes do not fit.
    """
    check_broadcast(x=x, mean=mean, log_variance=log_variance)
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, got {num_bins}")
    half = 1.0 / (num_bins - 1)
    precision = jnp.exp(-0.5 * jnp.maximum(log_variance, -60.0))
    lowest, highest = x < -1 + half, x > 1 - half
    # By symmetry the interval starts at `near` and runs away from the mean: for an inner bin,
    # |near| <= |near + width|. The outermost bins run outwards, farther than any mass.
    mirrored = jnp.where(lowest | highest, lowest, x < mean)
    offset = jnp.where(mirrored, mean - x, x - mean)
    near = (offset - half) * precision
    endless = 2 * jax.lax.stop_gradient(jnp.abs(near)) + 40
    width = jnp.where(lowest | highest, endless, 2 * half * precision)
    return _log_interval_mass(near, width)


def bernoulli_log_prob(x: _Values, logits: Float[Array, "*#dims"]) -> Float[Array, "..."]:
    """`x log p + (1 - x) log(1 - p)` with `p = sigmoid(logits)`, elementwise.

    The log-mass of a Bernoulli where x is 0 or 1. Of an x between it is the (negative) cross
    entropy, which is no likelihood. Exact also where p rounds to 0 or 1.

    Args:
        x: Zeros and ones, or shares of ones between.
        logits: The log-odds of a one.

    Returns:
        The log-mass in nats, of the broadcast shape.

    Raises:
        ValueError: Shapes that do not fit.
    """
    check_broadcast(x=x, logits=logits)
    # One log1p for both outcomes. By `where`, so that a logit of 0 too has the slope x - 1/2.
    linear = jnp.where(logits > 0, x - 1.0, x) * logits
    return linear - jnp.log1p(jnp.exp(jnp.where(logits > 0, -logits, logits)))


def categorical_log_prob(
    x: Integer[Array, "*dims"], logits: Float[Array, "*dims num_values"]
) -> Float[Array, "*dims"]:
    """`log softmax(logits)[x]`, elementwise.

    Args:
        x: The values' numbers, 0..V-1.
        logits: The V values' unnormalized log-masses, on the last axis.

    Returns:
        The log-mass in nats, of the shape of `x`.

    Raises:
        ValueError: Logits that are not of the shape of `x` and an axis of values.
    """
    if logits.ndim < 1 or logits.shape[:-1] != x.shape:
        raise ValueError(
            f"logits must have x's shape {x.shape} and an axis of values, got {logits.shape}"
        )
    x = x.astype(jnp.int32)  # a byte cannot be compared with more than 255 values
    chosen = jnp.take_along_axis(logits, x[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def categorical_sample(
    key: Key[Array, ""], logits: Float[Array, "*dims num_values"]
) -> Int[Array, "*dims"]:
    """Draws from `softmax(logits)` over the last axis, by the Gumbel maximum.

    Args:
        key: PRNG key.
        logits: The V values' unnormalized log-masses.

    Returns:
        The values' numbers, 0..V-1, i32; `NO_CLASS` where a logit is NaN.
    """
    noise = jax.random.gumbel(key, (logits.size,)).reshape(logits.shape)  # flat compiles faster
    return likeliest(logits + noise)


def likeliest(logits: Float[Array, "*dims num_values"]) -> Int[Array, "*dims"]:
    """The number of the greatest logit of the last axis.

    Args:
        logits: The V values' unnormalized log-masses.

    Returns:
        The values' numbers, 0..V-1, i32; `NO_CLASS` where a logit is NaN: the number of a value
        would look like any other.
    """
    number = jnp.argmax(logits, axis=-1).astype(jnp.int32)  # XLA's maximum may pass over NaN
    return jnp.where(jnp.isnan(logits).any(axis=-1), NO_CLASS, number)


def _log_phi(z):
    """Log-density of the standard Gaussian."""
    return -0.5 * jnp.square(z) - 0.5 * math.log(2 * math.pi)


def _log_interval_mass(near, width):
    """`log(Phi(near + width) - Phi(near))` where `near + width / 2 >= 0` and `width > 0`.

    A short interval has the density at its middle; one that holds 0, a difference of erf. Elsewhere
    the density at the nearer edge is taken out, so that what is left does not underflow however
    small the mass: `phi(near) (R(near) - R(far) phi(far) / phi(near))`, R the Mills ratio.
    """
    middle = near + 0.5 * width
    short, holds_zero = width * (1 + middle) < 0.01, near <= 0
    # Where a form is not chosen it sees harmless numbers, so that its gradient is finite.
    log_short = _log_phi(jnp.where(short, middle, 0.0)) + jnp.log(width)
    root = math.sqrt(0.5)
    central = jax.lax.erf(root * (near + width)) - jax.lax.erf(root * near)
    log_central = jnp.log(0.5 * jnp.where(holds_zero, central, 1.0))
    in_tail = ~(short | holds_zero)
    near, width = jnp.where(in_tail, near, 1.0), jnp.where(in_tail, width, 1.0)
    decay = jnp.exp(-width * (near + 0.5 * width))
    remainder = _mills_ratio(near) - _mills_ratio(near + width) * decay
    log_tail = _log_phi(near) + jnp.log(remainder)
    return jnp.where(short, log_short, jnp.where(holds_zero, log_central, log_tail))


def _mills_ratio(z):
    """`(1 - Phi(z)) / phi(z)`, z >= 0: by erfc below 4, then by Laplace's continued fraction."""
    is_small = z < 4.0
    small = jnp.where(is_small, z, 0.0)
    by_erfc = jax.lax.erfc(math.sqrt(0.5) * small) * jnp.exp(0.5 * jnp.square(small))
    fraction = large = jnp.where(is_small, 4.0, z)
    for k in range(10, 0, -1):
        fraction = large + k / fraction
    return jnp.where(is_small, math.sqrt(0.5 * math.pi) * by_erfc, 1 / fraction)


def standard_normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """`jax.random.normal(key, shape)`, bit for bit, drawn flat: XLA's CPU backend compiles a draw
    of one dimension five times faster than one of four.

    Args:
        key: PRNG key.
        shape: The shape of the result.

    Returns:
        Standard Gaussian noise, f32.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def log_sigmoid(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """`log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|)`: six times as fast on a CPU as
    `jax.nn.log_sigmoid`, which minds NaN, with the same values and gradients up to rounding.

    Args:
        x: Real numbers.

    Returns:
        Logs of probabilities, 0 or less.
    """
    negative = x < 0  # by `where`: at 0 the slope is 1/2 too
    return jnp.where(negative, x, 0.0) - jnp.log1p(jnp.exp(jnp.where(negative, x, -x)))
