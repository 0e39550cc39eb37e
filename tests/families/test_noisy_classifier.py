"""A classifier of noisy data: its loss by hand, that it learns, and that its guidance leads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.guide import guided_samples
from jaxgen.core import Denoising, Variables
from jaxgen.families.noisy_classifier import NAME, class_log_prob, noisy_classifier
from jaxgen.models.noisy_classifier import NoisyClassifier
from jaxgen.noise import parametrization
from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import Level, edm
from jaxgen.noise.times import karras_times, log_normal
from jaxgen.sampling.ode_solvers import heun

PREDICTS = parametrization.edm(1.0)


class Right(nn.Module):
    """Bayes' rule for N(-1, 1) and N(1, 1), each number of an example alike, by EDM's scale."""

    @nn.compact
    def __call__(self, x, t, *, train=False):
        one = self.param("one", nn.initializers.ones, ())
        sigma = jnp.exp(4 * t)
        seen = x.reshape(len(x), -1).sum(1) * jnp.sqrt(1 + sigma**2)
        logit = one * 2 * seen / (1 + sigma**2)
        return jnp.stack([jnp.zeros_like(logit), logit], axis=-1)


def variables():
    return Variables({NAME: {"one": jnp.ones(())}})


def test_the_loss_is_the_cross_entropy_of_noised_examples(key):
    """Of Bayes' rule, the log-probabilities of two Gaussians; one classifier for any process."""
    x, label = jax.random.normal(key, (6, 2, 2, 1)), jnp.arange(6) % 2
    log_prob = jax.jit(class_log_prob(Right(), PREDICTS, variables()))
    sigma = jnp.linspace(0.1, 9.0, 6)
    level = Level(jnp.ones(6), sigma, sigma)
    each = np.square(np.asarray(x)[..., 0] - np.reshape([-1, 1], (2, 1, 1, 1))).sum((2, 3))
    densities = -0.5 * each / (1 + np.square(sigma))
    want = (densities - np.logaddexp(*densities))[np.asarray(label), np.arange(6)]
    np.testing.assert_allclose(log_prob(x, level, label), want, atol=1e-4)
    smaller = Level(0.3 * jnp.ones(6), 0.3 * sigma, sigma)
    np.testing.assert_allclose(log_prob(0.3 * x, smaller, label), want, atol=1e-4)

    family = noisy_classifier(Right(), edm(), PREDICTS, optax.sgd(0.1), times=log_normal())
    batch = {"image": x, "label": label}
    nats, metrics = jax.jit(family.evaluate)(variables(), batch, key)
    key_t, key_eps = jax.random.split(key)
    times = log_normal()(key_t, 6)
    noisy = x + times.reshape(-1, 1, 1, 1) * jax.random.normal(key_eps, (24,)).reshape(x.shape)
    at = Level(jnp.ones(6), times, times)
    np.testing.assert_allclose(nats, -log_prob(noisy, at, label), atol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], np.exp(-nats) > 0.5)
    assert family.sample is None


def test_guidance_leads_to_the_class(key):
    """A denoiser of both Gaussians together and Bayes' rule give each class its own Gaussian."""

    def denoiser(variables):
        def denoise(x, level, condition=None):
            a = 1 / (1 + jnp.square(level.sigma))[:, None, None, None]
            return Denoised((1 - a) * jnp.tanh(x * a) + a * x)

        return denoise

    def levels(num):
        return levels_at(edm(), karras_times(num))

    parts = Denoising(denoiser, lambda *_: None, edm(), levels, heun(), 30, (1, 1, 1))
    labels = jnp.arange(400) % 2
    log_prob = class_log_prob(Right(), PREDICTS, variables())
    run = jax.jit(lambda scale: guided_samples(parts, variables(), log_prob, key, labels, scale))
    means = {}
    for scale in (0.0, 1.0):
        x = run(scale).reshape(200, 2)
        means[scale] = x.mean(0)
    np.testing.assert_allclose(means[0.0], [0, 0], atol=0.25)
    np.testing.assert_allclose(means[1.0], [-1, 1], atol=0.2)


def test_the_network(key):
    model = NoisyClassifier(10, channels=8)
    x, t = jnp.ones((2, 8, 8, 1)), jnp.array([3.0, 700.0])
    logits, _ = jax.jit(lambda: model.init_with_output(key, x, t, train=False))()
    assert logits.shape == (2, 10)
    assert np.ptp(logits, axis=0).max() > 1e-6  # the level counts
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        NoisyClassifier(1)
    with pytest.raises(ValueError, match="channels"):
        NoisyClassifier(10, channels=3)
