"""A mixture of two Gaussians in one dimension, whose denoiser and law are known at every level."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.noise.parametrization import Denoised

MEANS, STDS, WEIGHTS = np.array([-0.7, 0.5]), np.array([0.1, 0.25]), np.array([0.4, 0.6])


def denoise(x, level, condition=None):
    """The mean of the data given x, per element."""
    ones = (1,) * x.ndim
    a, s = level.alpha.reshape(-1, *ones), level.sigma.reshape(-1, *ones)
    base, stds, weights = (jnp.float32(v).reshape(*ones, 2) for v in (MEANS, STDS, WEIGHTS))
    variances = jnp.square(a * stds) + jnp.square(s)
    gap = x[..., None] - a * base
    scores = jnp.log(weights) - 0.5 * jnp.square(gap) / variances - 0.5 * jnp.log(variances)
    data = base + a * jnp.square(stds) / variances * gap
    return Denoised((jax.nn.softmax(scores, axis=-1) * data).sum(-1))


def cdf(x, level=None):
    """The share of the law below x, of the data or of noisy data."""
    a, s = (1.0, 0.0) if level is None else (float(level.alpha), float(level.sigma))
    std = np.sqrt((a * STDS) ** 2 + s**2)
    z = (np.asarray(x, np.float64)[..., None] - a * MEANS) / (std * math.sqrt(2))
    return (WEIGHTS * 0.5 * (1 + np.vectorize(math.erf)(z))).sum(-1)


def log_density(x):
    """The log-density of the data, per element."""
    z = (np.asarray(x, np.float64)[..., None] - MEANS) / STDS
    parts = np.log(WEIGHTS) - 0.5 * z**2 - np.log(STDS) - 0.5 * math.log(2 * math.pi)
    return np.logaddexp.reduce(parts, axis=-1)


def kolmogorov(samples):
    """The greatest distance between the samples' law and the data's."""
    ordered = np.sort(np.ravel(samples))
    below = cdf(ordered)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return max((steps[1:] - below).max(), (below - steps[:-1]).max())


def quantile(process, time, share, low=-60.0, high=60.0):
    """The value below which a share of the noisy data lies, by bisection in float64."""
    level = process.at(jnp.float32(time))
    low, high = np.full_like(share, low), np.full_like(share, high)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = cdf(middle, level) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)
