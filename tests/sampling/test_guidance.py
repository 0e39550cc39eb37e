"""Transforms of denoisers beside their formulas, and where the guided law is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import Level, edm
from jaxgen.noise.times import karras_times
from jaxgen.sampling.guidance import classifier_guided, guided, guided_logits, threshold_x0
from jaxgen.sampling.ode_solvers import heun
from jaxgen.sampling.solvers import solve

LEVEL = Level(jnp.array([1.0, 0.8, 0.5]), jnp.array([0.1, 0.6, 3.0]), jnp.arange(3.0))


def told(x, level, condition=None):
    """Data that grow with the condition, at other rates in each place."""
    return Denoised(0.5 * x + condition[:, None] * jnp.linspace(0.5, 2, 4)[None])


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (3, 4))


def test_guidance_in_an_interval_alone(x):
    condition = jnp.array([1.0, -1.0, 2.0])
    everywhere = guided(told, jnp.zeros(()), 3.0)(x, LEVEL, condition).x0
    plain = told(x, LEVEL, condition).x0
    inside = guided(told, jnp.zeros(()), 3.0, interval=(0.5, 1.0))(x, LEVEL, condition).x0
    np.testing.assert_allclose(inside[1], everywhere[1], rtol=1e-6)
    np.testing.assert_allclose(inside[jnp.array([0, 2])], plain[jnp.array([0, 2])], rtol=1e-6)


def test_rescaled_guidance_has_the_conditional_deviation(x):
    condition = jnp.array([1.0, -1.0, 2.0])
    c, g = (guided(told, jnp.zeros(()), s)(x, LEVEL, condition).x0 for s in (1.0, 5.0))
    full = guided(told, jnp.zeros(()), 5.0, rescale=1.0)(x, LEVEL, condition).x0
    np.testing.assert_allclose(full.std(1), c.std(1), rtol=1e-5)
    half = guided(told, jnp.zeros(()), 5.0, rescale=0.5)(x, LEVEL, condition).x0
    np.testing.assert_allclose(half, 0.5 * (full + g), rtol=1e-5)


def test_another_condition_guides_away_from_it(x):
    condition, negative = jnp.array([1.0, -1.0, 2.0]), jnp.array([0.5, 0.5, -1.0])
    got = guided(told, negative, 2.0)(x, LEVEL, condition).x0
    want = told(x, LEVEL, 2 * condition - negative).x0
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_logits_are_guided_as_data_are(x):
    """Inputs and conditions of any structure; the model is called once, on a doubled batch."""
    calls = []

    def predict(inputs, condition):
        calls.append(condition[0].shape)
        return told(inputs["x"], None, condition[0]).x0[:, :, None]

    condition = (jnp.array([1.0, -1.0, 2.0]), None)
    got = guided_logits(predict, (jnp.zeros(()), None), 3.0)({"x": x}, condition)
    want = guided(told, jnp.zeros(()), 3.0)(x, LEVEL, condition[0]).x0
    np.testing.assert_allclose(got[:, :, 0], want, rtol=1e-6)
    assert calls == [(6,)]


def test_dynamic_thresholds():
    data = jnp.array([[0.1, -0.2, 0.5, 0.9], [3.0, -4.0, 1.0, 0.0]])
    denoise = threshold_x0(lambda x, level, condition=None: Denoised(x), quantile=1.0)
    x0 = denoise(data, jax.tree.map(lambda v: v[:2], LEVEL)).x0
    np.testing.assert_allclose(x0[0], data[0], rtol=1e-6)  # all within: untouched
    np.testing.assert_allclose(x0[1], data[1] / 4, rtol=1e-6)
    clipped = threshold_x0(lambda x, level, condition=None: Denoised(x), quantile=2 / 3)
    np.testing.assert_allclose(
        clipped(data, jax.tree.map(lambda v: v[:2], LEVEL)).x0[1], [1, -1, 1 / 3, 0], rtol=1e-5
    )


def test_a_classifier_guides_to_bayes_law():
    """Data N(0, 1), a classifier's p(y | x0) a Gaussian of x0: the guided law is the posterior."""
    y, spread = 1.5, 0.5

    def denoise(x, level, condition=None):
        return Denoised(x / (1 + jnp.square(level.sigma[:, None])))

    def log_prob(x, level, condition):
        """log N(y; E[x0 | x], Var[x0 | x] + spread^2), exact at every level."""
        noise = jnp.square(level.sigma[:, None])
        mean, variance = x / (1 + noise), noise / (1 + noise) + spread**2
        return (-0.5 * jnp.square(condition[:, None] - mean) / variance).sum(1)

    levels = levels_at(edm(), karras_times(60))
    x = 80 * jax.random.normal(jax.random.key(0), (4000, 1))
    condition = jnp.full(4000, y)
    draws = solve(
        classifier_guided(denoise, log_prob), levels, heun(), jax.random.key(1), x,
        condition=condition,
    )  # fmt: skip
    assert draws.mean() == pytest.approx(y / (1 + spread**2), abs=0.03)
    assert draws.std() == pytest.approx(np.sqrt(spread**2 / (1 + spread**2)), abs=0.03)
    off = solve(
        classifier_guided(denoise, log_prob, 0.0), levels, heun(), jax.random.key(1), x,
        condition=condition,
    )  # fmt: skip
    assert off.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guided(told, 0.0, 2.0, interval=(1.0, 0.5)), "interval must be two rising"),
        (lambda: guided(told, 0.0, 2.0, rescale=1.5), r"rescale must lie in \[0, 1\], got 1.5"),
        (lambda: threshold_x0(told, 0.0), r"quantile must lie in \(0, 1\], got 0.0"),
        (lambda: threshold_x0(told, greatest=0.0), "greatest must be positive, got 0.0"),
        (
            lambda: classifier_guided(told, lambda *_: 0.0)(jnp.zeros((3, 4)), LEVEL),
            "guidance by a classifier needs a condition",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
