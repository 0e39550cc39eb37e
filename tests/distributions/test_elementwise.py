"""Distributions against SciPy in float64, quadrature and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy import integrate, stats
from scipy.special import log_ndtr

from jaxgen.distributions.elementwise import (
    bernoulli_log_prob,
    categorical_log_prob,
    categorical_sample,
    discretized_gaussian_log_prob,
    gaussian_kl,
    gaussian_log_prob,
    log_sigmoid,
    standard_normal,
)

PIXELS = (2 * np.arange(256) / 255 - 1).astype(np.float32)


def test_gaussian_log_prob_is_scipys():
    x = jnp.linspace(-5, 5, 101)
    for mean, std in [(0.0, 1.0), (0.3, 0.01), (-2.0, 30.0)]:
        got = gaussian_log_prob(x, jnp.float32(mean), jnp.float32(2 * np.log(std)))
        want = stats.norm.logpdf(np.asarray(x, float), mean, std)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mean_p", "std_p", "mean_q", "std_q"),
    [(0, 1, 0, 1), (0.3, 0.5, -0.2, 0.7), (1, 2, 0, 0.9), (-1, 0.05, 1, 1)],
)
def test_gaussian_kl_is_the_integral(mean_p, std_p, mean_q, std_q):
    p, q = stats.norm(mean_p, std_p), stats.norm(mean_q, std_q)
    want, _ = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), *p.ppf([1e-14, 1 - 1e-14])
    )
    arguments = (mean_p, 2 * np.log(std_p), mean_q, 2 * np.log(std_q))
    got = gaussian_kl(*(jnp.float32(argument) for argument in arguments))
    assert got == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_gaussian_kl_keeps_its_precision_between_near_equals():
    # A relative difference d of variances costs d^2 / 4; the naive form in float32 gives noise.
    d = jnp.float32(1e-3)
    got = gaussian_kl(jnp.float32(0), jnp.log1p(d), jnp.float32(0), jnp.float32(0))
    assert got == pytest.approx(0.5 * (1e-3 - np.log1p(1e-3)), rel=1e-3)
    assert gaussian_kl(jnp.float32(3), jnp.float32(-9), jnp.float32(3), jnp.float32(-9)) == 0


def log_mass(x, mean, std):
    """The bins' log-masses in float64, each taken in the left tail, where log_ndtr is exact."""
    half = 1 / 255
    low = np.where(x < -1 + half, -np.inf, (x - half - mean) / std)
    high = np.where(x > 1 - half, np.inf, (x + half - mean) / std)
    low, high = np.where(low + high > 0, [-high, -low], [low, high])
    return log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))


log_prob = jax.jit(discretized_gaussian_log_prob)
log_prob_gradient = jax.jit(jax.vmap(jax.grad(discretized_gaussian_log_prob, argnums=(1, 2))))
MEANS = [-30.0, -1.0, -0.999, -0.3, 0.0, 0.0017, 0.5, 1.0, 1.5, 40.0]
STDS = [1e-4, 1e-3, 0.0074, 0.02, 0.1, 0.5, 0.78, 1.0, 3.0, 100.0]


@pytest.mark.parametrize("std", STDS)
def test_discretized_gaussian_in_float32_is_scipys_in_float64(std):
    mean = np.repeat(np.float32(MEANS), 256)
    x = np.tile(PIXELS, len(MEANS))
    log_variance = np.full_like(mean, 2 * np.log(std))
    arguments = (jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_variance))

    def exact(mean, log_variance):
        return log_mass(x.astype(float), mean, np.exp(0.5 * log_variance))

    mean, log_variance = mean.astype(float), log_variance.astype(float)
    want = exact(mean, log_variance)
    got = log_prob(*arguments)
    # Distances of up to 40 are held to 1e-7 of themselves, and so to 1e-6 / std in the tails.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)

    by_mean, by_log_variance = log_prob_gradient(*arguments)
    step = 1e-6 * std
    slope = (exact(mean + step, log_variance) - exact(mean - step, log_variance)) / (2 * step)
    np.testing.assert_allclose(by_mean, slope, rtol=1e-3, atol=1e-4 / std)
    step = 1e-6
    slope = (exact(mean, log_variance + step) - exact(mean, log_variance - step)) / (2 * step)
    np.testing.assert_allclose(by_log_variance, slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_bins", [2, 17, 256])
def test_bins_add_up_to_one(num_bins):
    x = 2 * jnp.arange(num_bins) / (num_bins - 1) - 1
    mean = jnp.array([-3.0, -1.0, 0.123, 0.99, 20.0]).reshape(-1, 1, 1)
    log_variance = 2 * jnp.log(jnp.array([1e-9, 0.003, 0.1, 1.0, 50.0])).reshape(1, -1, 1)
    log_prob = discretized_gaussian_log_prob(x.reshape(1, 1, -1), mean, log_variance, num_bins)
    assert log_prob.shape == (5, 5, num_bins)
    np.testing.assert_allclose(jnp.exp(log_prob).sum(axis=-1), 1, atol=1e-5)


def test_bins_known_by_hand():
    def log_prob(x, mean, std, num_bins=256):
        arguments = (x, mean, 2 * np.log(std))
        return discretized_gaussian_log_prob(*(jnp.float32(a) for a in arguments), num_bins)

    # One standard deviation to either side: erf(1 / sqrt 2).
    assert log_prob(PIXELS[100], PIXELS[100], 1 / 255) == pytest.approx(np.log(0.6826895), abs=1e-4)
    # The outer bins are half-lines.
    assert log_prob(1.0, 1 - 1 / 255, 0.3) == pytest.approx(np.log(0.5), abs=1e-6)
    assert log_prob(-1.0, 5.0, 1e-3) < -1e7
    assert log_prob(1.0, 5.0, 1e-3) == 0
    # Three bins: (-inf, -0.5), (-0.5, 0.5), (0.5, inf).
    assert log_prob(0.0, 0.0, 1.0, 3) == pytest.approx(np.log(0.3829249), abs=1e-6)


def test_gradients_are_finite_at_extremes():
    def total(mean, log_variance):
        return discretized_gaussian_log_prob(jnp.asarray(PIXELS), mean, log_variance).sum()

    mean = jnp.array([-1e4, 0.0, 1 / 255, 1.0, 1e4])
    log_variance = jnp.array([-1e4, -200.0, -60.0, 0.0, 40.0, 80.0])
    mean, log_variance = (grid.ravel() for grid in jnp.meshgrid(mean, log_variance))
    value, gradient = jax.vmap(jax.value_and_grad(total, argnums=(0, 1)))(mean, log_variance)
    assert np.isfinite([value, *gradient]).all()


def test_too_few_bins():
    with pytest.raises(ValueError, match="num_bins must be at least 2, got 1"):
        discretized_gaussian_log_prob(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2), num_bins=1)


def test_bernoulli_log_prob_is_scipys():
    logits = jnp.linspace(-30, 30, 61)
    for x in (0.0, 1.0):
        want = -np.logaddexp(0, (1 - 2 * x) * np.asarray(logits, float))
        np.testing.assert_allclose(bernoulli_log_prob(x, logits), want, rtol=1e-6)
    got = bernoulli_log_prob(jnp.float32(0.25), jnp.float32(1.5))
    want = 0.25 * np.log(1 / (1 + np.exp(-1.5))) + 0.75 * np.log(1 / (1 + np.exp(1.5)))
    assert got == pytest.approx(want, rel=1e-6)


def test_bernoulli_gradient_is_x_less_the_probability():
    logits = jnp.array([-1e4, -5.0, 0.0, 0.3, 1e4])
    for x in (0.0, 0.25, 1.0):
        gradient = jax.vmap(jax.grad(lambda logit, x=x: bernoulli_log_prob(x, logit)))(logits)
        np.testing.assert_allclose(gradient, x - jax.nn.sigmoid(logits), atol=1e-6)


def test_categorical_log_prob_and_samples(key):
    probabilities = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    logits = jnp.tile(jnp.log(probabilities) + 50, (20_000, 1))
    got = categorical_log_prob(jnp.array([2, 0]), logits[:2])
    np.testing.assert_allclose(got, np.log([0.3, 0.1]), atol=1e-5)
    shares = np.bincount(categorical_sample(key, logits), minlength=4) / 20_000
    np.testing.assert_allclose(shares, probabilities, atol=0.015)


def test_log_sigmoid_and_its_gradient():
    x = np.array([-1e30, -1e4, -90.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 90.0, 1e4])
    values = log_sigmoid(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(values, scipy.special.log_expit(x), rtol=2e-6, atol=1e-30)
    slope = jax.vmap(jax.grad(log_sigmoid))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(slope, scipy.special.expit(-x), rtol=2e-6, atol=1e-7)
    curve = jax.vmap(jax.grad(jax.grad(log_sigmoid)))(jnp.array([-2.0, 3.0]))
    s = scipy.special.expit(np.array([-2.0, 3.0]))
    np.testing.assert_allclose(curve, -s * (1 - s), rtol=1e-5)
    assert float(log_sigmoid(jnp.inf * jnp.ones(()))) == 0.0
    assert float(log_sigmoid(-jnp.inf * jnp.ones(()))) == -np.inf


def test_flat_noise_is_the_same_noise(key):
    np.testing.assert_array_equal(standard_normal(key, (2, 3)), jax.random.normal(key, (2, 3)))
