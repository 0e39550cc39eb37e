"""Every likelihood through the same questions, then each one's own values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.distributions.likelihoods import (
    Likelihood,
    bernoulli,
    categorical,
    discretized_logistic,
    gaussian,
    mixture_of_logistics,
)

PIXELS = (2 * np.arange(256) / 255 - 1).astype(np.float32)
TABLE = {
    "bernoulli": bernoulli(),
    "gaussian": gaussian(0.3),
    "gaussian-learned": gaussian(None),
    "categorical": categorical(),
    "discretized_logistic": discretized_logistic(),
    "mixture_of_logistics": mixture_of_logistics(4),
}
# Compiled once: the tests share shapes.
COMPILED = {
    name: entry._replace(
        log_prob=jax.jit(entry.log_prob),
        sample=jax.jit(entry.sample),
        mean=jax.jit(entry.mean),
        mode=jax.jit(entry.mode),
    )
    for name, entry in TABLE.items()
}
each = pytest.mark.parametrize("likelihood", COMPILED.values(), ids=COMPILED)
DISCRETE = ["categorical", "discretized_logistic", "mixture_of_logistics"]


def make(key, likelihood, channels=3, batch=2, spread=1.0):
    """Parameters [B, 3, 2, P] and an image of their own distribution."""
    width = likelihood.num_params(channels)
    params = spread * jax.random.normal(key, (batch, 3, 2, width))
    return params, likelihood.sample(key, params)


@pytest.mark.parametrize("channels", [1, 3])
@each
def test_contract(key, likelihood, channels):
    assert isinstance(likelihood, Likelihood)
    params, x = make(key, likelihood, channels)
    assert x.shape == (2, 3, 2, channels)
    assert x.dtype == jnp.float32
    likelihood.check(x)
    nats = likelihood.log_prob(params, x)
    assert nats.shape == (2,)
    # A sum over the example's pixels: twice the image has twice the nats.
    twice = likelihood.log_prob(jnp.tile(params, (1, 2, 1, 1)), jnp.tile(x, (1, 2, 1, 1)))
    np.testing.assert_allclose(twice, 2 * nats, rtol=1e-5)
    for image in (likelihood.mean(params), likelihood.mode(params)):
        assert image.shape == x.shape
        assert np.isfinite(image).all()
    np.testing.assert_array_equal(x, likelihood.sample(key, params))
    # The mode is likelier than what was drawn (of the mixture: for nearly all draws).
    assert (likelihood.log_prob(params, likelihood.mode(params)) >= nats).all()


@each
def test_mean_is_that_of_samples(key, likelihood):
    params, _ = make(key, likelihood, channels=1, batch=1, spread=0.5)
    many = jnp.tile(params[:, :1], (4000, 1, 1, 1))
    x = likelihood.sample(key, many)
    np.testing.assert_allclose(
        likelihood.mean(params)[0, :1], x.mean(axis=0), atol=4 * x.std(axis=0).max() / 60
    )
    assert len(np.unique(x[:, 0, 0])) > 1


@pytest.mark.parametrize("likelihood", [COMPILED[name] for name in DISCRETE], ids=DISCRETE)
def test_all_grey_levels_add_up_to_one(key, likelihood):
    for spread in (0.1, 1.0, 20.0):
        params, _ = make(key, likelihood, channels=1, batch=1, spread=spread)
        pixel = jnp.tile(params[:, :1, :1], (256, 1, 1, 1))
        masses = jnp.exp(likelihood.log_prob(pixel, jnp.asarray(PIXELS).reshape(-1, 1, 1, 1)))
        assert masses.sum() == pytest.approx(1, abs=3e-5)


@pytest.mark.parametrize("value", [-1e3, 0.0, 1e3])
@each
def test_gradients_are_finite_at_the_extremes(likelihood, value):
    x = jnp.array([-1.0, 1.0, 1.0]).reshape(1, 1, 1, 3)
    params = jnp.full((1, 1, 1, likelihood.num_params(3)), value)
    if likelihood is COMPILED["gaussian-learned"]:
        params = jnp.clip(params, -1e3, 80)  # e^1000 is no variance
    gradient = jax.jit(jax.grad(lambda params: likelihood.log_prob(params, x).sum()))(params)
    assert np.isfinite(gradient).all()


@each
def test_parameters_that_are_nan_draw_nan(key, likelihood):
    """And no value that looks like any other: black, say, of a comparison with NaN."""
    params = np.zeros((2, 3, 2, likelihood.num_params(3)), np.float32)
    params[0, 1, 1] = np.nan
    for images in (
        likelihood.sample(key, params),
        likelihood.mean(params),
        likelihood.mode(params),
    ):
        np.testing.assert_array_equal(np.argwhere(np.isnan(images))[:, :3], [[0, 1, 1]] * 3)


@each
def test_computes_in_float32(key, likelihood):
    params, x = make(key, likelihood)
    params = params.astype(jnp.bfloat16)
    nats = likelihood.log_prob(params, x)
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats, likelihood.log_prob(params.astype(jnp.float32), x))


def test_bernoulli_by_hand():
    logits = jnp.array([0.0, 3.0, -3.0, 200.0]).reshape(1, 2, 2, 1)
    x = jnp.array([1.0, 1.0, -1.0, 1.0]).reshape(1, 2, 2, 1)
    want = np.log(0.5) - 2 * np.log1p(np.exp(-3.0))
    likelihood = bernoulli()
    assert likelihood.log_prob(logits, x)[0] == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(
        likelihood.mean(logits).ravel(), np.tanh([0, 1.5, -1.5, 100]), rtol=1e-6
    )
    np.testing.assert_array_equal(likelihood.mode(logits).ravel(), [-1, 1, -1, 1])
    assert set(np.unique(likelihood.sample(jax.random.key(0), logits))) <= {-1.0, 1.0}


def test_gaussian_is_scipys():
    x = np.linspace(-1, 1, 12).reshape(2, 3, 2, 1).astype(np.float32)
    mean = np.full_like(x, 0.2)
    want = stats.norm.logpdf(x, 0.2, 0.3).reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(
        gaussian(0.3).log_prob(jnp.asarray(mean), jnp.asarray(x)), want, rtol=1e-5
    )
    raw = np.full_like(x, 2 * np.log(0.3))
    params = jnp.asarray(np.concatenate([mean, raw], axis=-1))
    np.testing.assert_allclose(gaussian(None).log_prob(params, jnp.asarray(x)), want, rtol=2e-3)


def test_gaussian_samples_have_the_scale(key):
    means = jnp.zeros((5000, 1, 1, 1))
    params = jnp.concatenate([means, jnp.full_like(means, 2 * np.log(0.1))], axis=-1)
    assert COMPILED["gaussian"].sample(key, means).std() == pytest.approx(0.3, rel=0.04)
    assert COMPILED["gaussian-learned"].sample(key, params).std() == pytest.approx(0.1, rel=0.04)


def test_learned_variance_has_a_soft_floor():
    params = jnp.array([0.0, -1e3]).reshape(1, 1, 1, 2)
    x = jnp.zeros((1, 1, 1, 1))
    peak = gaussian(None).log_prob(params, x)[0]
    assert peak == pytest.approx(stats.norm.logpdf(0, 0, 1 / 255), rel=1e-5)

    def log_prob(raw):
        return gaussian(None).log_prob(jnp.stack([jnp.float32(0), raw])[None], x[0, 0] + 0.5)[0]

    # Well below the floor an error still pulls the variance up.
    assert jax.grad(log_prob)(jnp.float32(-14.0)) > 1


def test_categorical_by_hand():
    likelihood = categorical(4)
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4, 0.7, 0.1, 0.1, 0.1])).reshape(1, 1, 1, 8)
    x = jnp.array([1 / 3, -1.0]).reshape(1, 1, 1, 2)
    assert likelihood.log_prob(logits, x)[0] == pytest.approx(np.log(0.3 * 0.7), rel=1e-5)
    np.testing.assert_allclose(likelihood.mode(logits).ravel(), [1, -1])
    mean = [-0.1 - 0.2 / 3 + 0.3 / 3 + 0.4, -0.7 - 0.1 / 3 + 0.1 / 3 + 0.1]
    np.testing.assert_allclose(likelihood.mean(logits).ravel(), mean, rtol=1e-5)


def test_discretized_logistic_clamps_its_scale():
    likelihood = discretized_logistic()
    x = jnp.full((1, 1, 1, 1), PIXELS[9])
    sharp, clamped = (
        likelihood.log_prob(jnp.array([PIXELS[9], s]).reshape(1, 1, 1, 2), x) for s in (-20.0, -7.0)
    )
    assert sharp == clamped


def test_num_params():
    widths = {name: (entry.num_params(1), entry.num_params(3)) for name, entry in TABLE.items()}
    assert widths == {
        "bernoulli": (1, 3),
        "gaussian": (1, 3),
        "gaussian-learned": (2, 6),
        "categorical": (256, 768),
        "discretized_logistic": (2, 6),
        "mixture_of_logistics": (12, 40),
    }


@pytest.mark.parametrize("name", TABLE)
def test_data_outside_the_support(name):
    check = TABLE[name].check
    for data in (np.array([0.0, np.nan]), np.array([0.0, np.inf])):
        with pytest.raises(ValueError, match=name.split("-")[0]):
            check(data)
    if not name.startswith("gaussian"):
        with pytest.raises(ValueError, match=r"\[-1, 1\], got values from 0.0 to 255.0"):
            check(np.array([0, 255], np.uint8))
    if name in DISCRETE:
        with pytest.raises(ValueError, match=r"256 values 2 u / 255 - 1, got 0\.0$"):
            check(jnp.array([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian(0.0), "scale must be None or positive and finite, got 0.0"),
        (lambda: gaussian(float("nan")), "scale must be"),
        (lambda: categorical(1), "num_values must be at least 2, got 1"),
        (lambda: discretized_logistic(0), "num_values must be at least 2, got 0"),
        (lambda: mixture_of_logistics(0), "num_mixtures must be at least 1, got 0"),
        (lambda: mixture_of_logistics(3, 1), "num_values must be at least 2, got 1"),
    ],
)
def test_bad_constructions(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@each
def test_bad_shapes(likelihood):
    width = likelihood.num_params(3)
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        likelihood.num_params(0)
    message = rf"image of shape \(2, 4, 4, 3\) must have shape \(2, 4, 4, {width}\), got "
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob(jnp.zeros((2, 4, 4, width + 1)), jnp.zeros((2, 4, 4, 3)))


def test_params_of_no_number_of_channels(key):
    for call in (mixture_of_logistics(3).mean, categorical().mode, discretized_logistic().mean):
        with pytest.raises(ValueError, match="the last axis of params must be .* got 29"):
            call(jnp.zeros((1, 2, 2, 29)))
