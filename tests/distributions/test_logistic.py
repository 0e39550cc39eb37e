"""Discretized logistics and their mixture against definitions in float64 and by enumeration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions.likelihoods import discretized_logistic
from jaxgen.distributions.logistic import (
    discretized_logistic_log_prob,
    discretized_logistic_mean,
    discretized_logistic_mode,
    discretized_logistic_sample,
    least_log_scale,
    mixture_of_logistics_log_prob,
    mixture_of_logistics_mean,
    mixture_of_logistics_mode,
    mixture_of_logistics_rows,
    mixture_of_logistics_sample,
)

PIXELS = (2 * np.arange(256) / 255 - 1).astype(np.float32)
GREYS = jnp.asarray(PIXELS)[:, None]
MEANS = np.float32([-1e3, -1.3, -1, -0.3, 0, 1 / 255, 0.5, 1, 1.02, 1e3])
LOG_SCALES = np.float32([-30, -7, -5, -3, -1, 0, 3, 7, 20])


def sigmoid(z):
    """In float64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * z))


def log_mass(x, mean, log_scale, num_bins=256):
    """The definition in float64; differences are taken in the left tail, of small sigmoids."""
    half, scale = 1 / (num_bins - 1), np.exp(log_scale)
    low = -np.inf if x < -1 + half / 2 else (x - half - mean) / scale
    high = np.inf if x > 1 - half / 2 else (x + half - mean) / scale
    if low + high > 0:
        low, high = -high, -low

    def log_sigmoid(z):
        return -np.logaddexp(0, -z)

    return log_sigmoid(high) + np.log1p(-np.exp(log_sigmoid(low) - log_sigmoid(high)))


log_prob = jax.jit(discretized_logistic_log_prob, static_argnums=3)


def test_log_prob_is_the_definition():
    x, mean, log_scale = np.meshgrid(
        PIXELS[[0, 1, 77, 127, 254, 255]],
        np.float32([-2, -1, -0.31, 0, 0.5, 1.01, 3]),
        np.float32([-7, -5, -3, -1, 0, 3, 7]),
    )
    got = log_prob(*(jnp.asarray(a.ravel()) for a in (x, mean, log_scale)))
    exact = [a.ravel().astype(float) for a in (x, mean, log_scale)]
    exact[0] = 2 * np.round(127.5 * (exact[0] + 1)) / 255 - 1
    want = [log_mass(*arguments) for arguments in zip(*exact, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("num_bins", [2, 17, 256])
def test_bins_add_up_to_one(num_bins):
    x = jnp.linspace(-1, 1, num_bins).reshape(1, 1, -1)
    masses = jnp.exp(log_prob(x, MEANS.reshape(-1, 1, 1), LOG_SCALES.reshape(1, -1, 1), num_bins))
    assert masses.shape == (len(MEANS), len(LOG_SCALES), num_bins)
    np.testing.assert_allclose(masses.sum(axis=-1), 1, atol=1e-5)


def test_bins_known_by_hand():
    # The outermost bins are half-lines, and a bin as wide as 2 log 3 scales holds half the mass.
    assert log_prob(1.0, 1 - 1 / 255, -1.0) == pytest.approx(np.log(0.5), abs=1e-6)
    assert log_prob(-1.0, -1 + 1 / 255, -1.0) == pytest.approx(np.log(0.5), abs=1e-6)
    log_scale = np.log(1 / 255 / np.log(3))
    assert log_prob(PIXELS[100], PIXELS[100], log_scale) == pytest.approx(np.log(0.5), abs=1e-4)


def test_gradients_are_finite_at_the_extremes():
    x, mean, log_scale = (
        jnp.asarray(a.ravel())
        for a in np.meshgrid(PIXELS[[0, 1, 128, 254, 255]], MEANS, [-1e4, *LOG_SCALES, 1e4])
    )
    arguments = (x, mean, log_scale.astype(jnp.float32))
    value, gradient = jax.jit(
        jax.vmap(jax.value_and_grad(discretized_logistic_log_prob, argnums=(0, 1, 2)))
    )(*arguments)
    assert np.isfinite([value, *gradient]).all()
    assert np.abs(gradient[1]).max() > 0


def test_gradient_is_the_definitions_slope():
    step = 1e-6
    for x, mean, log_scale in [
        (-1, -0.9, -3),
        (PIXELS[40], 0.2, -2),
        (PIXELS[9], -2, 1),
        (1, 2, 0),
    ]:
        exact = float(2 * np.round(127.5 * (x + 1)) / 255 - 1)
        got = jax.grad(discretized_logistic_log_prob, argnums=(1, 2))(
            jnp.float32(x), jnp.float32(mean), jnp.float32(log_scale)
        )
        for i, slope in enumerate(got):
            up, down = ([mean, log_scale] for _ in range(2))
            up[i] += step
            down[i] -= step
            want = (log_mass(exact, *up) - log_mass(exact, *down)) / (2 * step)
            assert slope == pytest.approx(want, rel=1e-3, abs=1e-4)


GRID = [
    (-0.3, -3.0),
    (0.9, -1.0),
    (0.2, 1.0),
    (-1.4, -2.0),
    (0.0015, -7.0),
    (0.6, -0.55),
    (-0.6, -0.55),
]


def logistic_masses(mean, log_scale):
    return np.exp(np.asarray(log_prob(PIXELS, jnp.float32(mean), jnp.float32(log_scale)), float))


@pytest.mark.parametrize(("mean", "log_scale"), GRID)
def test_mean_and_mode_are_those_of_the_masses(mean, log_scale):
    masses = logistic_masses(mean, log_scale)
    arguments = (jnp.float32(mean), jnp.float32(log_scale))
    assert discretized_logistic_mean(*arguments) == pytest.approx(masses @ PIXELS, abs=1 / 255)
    assert discretized_logistic_mode(*arguments) == pytest.approx(PIXELS[masses.argmax()], abs=1e-6)


def test_mean_is_exact_where_the_scale_spans_bins():
    for mean, log_scale in [(-0.3, -3.0), (0.9, -1.0), (0.2, 1.0)]:
        got = discretized_logistic_mean(jnp.float32(mean), jnp.float32(log_scale))
        assert got == pytest.approx(logistic_masses(mean, log_scale) @ PIXELS, abs=1e-4)


@pytest.mark.parametrize(("mean", "log_scale"), [(-0.9, -2.0), (0.2, -6.0)])
def test_samples_have_the_masses(key, mean, log_scale):
    num = 20_000
    x = discretized_logistic_sample(key, jnp.full(num, mean), jnp.full(num, log_scale))
    level = np.round(127.5 * (np.asarray(x) + 1)).astype(int)
    np.testing.assert_allclose(x, PIXELS[level], atol=1e-6)
    shares = np.bincount(level, minlength=256) / num
    np.testing.assert_allclose(shares, logistic_masses(mean, log_scale), atol=0.015)


@pytest.mark.parametrize("num_bins", [2, 32, 256, 65_536])
def test_a_perfect_prediction_costs_the_same_for_any_number_of_bins(num_bins):
    """A fixed floor of -7 would make it 6.9 bits of 16-bit audio."""
    assert least_log_scale(256) == -7
    x = (2 * (num_bins // 2) / (num_bins - 1) - 1) * jnp.ones((1, 1))
    sure = jnp.array([[[0.0], [x[0, 0]], [-30.0]]])
    nats = -mixture_of_logistics_log_prob(sure, x, num_bins)
    of_one = -discretized_logistic(num_bins).log_prob(jnp.array([[x[0, 0], -30.0]]), x)
    np.testing.assert_allclose(nats, of_one, rtol=1e-5)
    edge = 1 / 255 / math.exp(-7)  # half a bin, in scales
    below = 1 / (1 + math.exp(-edge))
    expected = -math.log(below) if num_bins == 2 else -math.log(2 * below - 1)
    np.testing.assert_allclose(nats, expected, rtol=0.05)


mixture_log_prob = jax.jit(mixture_of_logistics_log_prob, static_argnums=2)
mixture_sample = jax.jit(mixture_of_logistics_sample, static_argnums=2)
mixture_mean = jax.jit(mixture_of_logistics_mean)
mixture_mode = jax.jit(mixture_of_logistics_mode)


def mixture_log_prob_by_loops(params, x, num_bins=256):
    """PixelCNN++'s mixture of one pixel from its definition: Python floats, one bin at a time."""
    channels, num = len(x), params.shape[1]
    logits, means, log_scales = params[0], params[1 : 1 + channels], params[1 + channels :]
    coefficients = np.tanh(params[1 + 2 * channels :])
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    total = 0.0
    for m in range(num):
        mass, pair = weights[m], 0
        for c in range(channels):
            mean = means[c][m]
            for d in range(c):
                mean += coefficients[pair][m] * x[d]
                pair += 1
            scale, half = np.exp(max(log_scales[c][m], -7)), 1 / (num_bins - 1)
            low = 0 if x[c] < -1 + half / 2 else sigmoid((x[c] - half - mean) / scale)
            high = 1 if x[c] > 1 - half / 2 else sigmoid((x[c] + half - mean) / scale)
            mass *= high - low
        total += mass
    return np.log(total)


@pytest.fixture
def mixture(key):
    """`(channels, num_mixtures, num_pixels) -> params` of moderate size."""

    def make(channels, num_mixtures, num_pixels, spread=0.7):
        shape = (num_pixels, mixture_of_logistics_rows(channels), num_mixtures)
        params = spread * np.array(jax.random.normal(key, shape))
        params[:, 1 + channels : 1 + 2 * channels] -= 2
        return params

    return make


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_mixture_is_the_papers(key, mixture, channels):
    params = mixture(channels, 5, 40)
    level = np.array(jax.random.randint(key, (40, channels), 0, 256))
    level[:4], level[4:8] = 0, 255
    x = 2 * level / 255 - 1
    got = mixture_log_prob(jnp.asarray(params), jnp.asarray(x, jnp.float32))
    want = [mixture_log_prob_by_loops(p.astype(float), v) for p, v in zip(params, x, strict=True)]
    assert np.min(want) > -60  # else the loop's differences would have lost their digits
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-4)


def test_mixture_is_torchs(key, mixture):
    torch = pytest.importorskip("torch")
    params = mixture(3, 4, 64)
    params[:, 4:7] += 1.5  # so that torch's plain difference of sigmoids keeps its digits
    x = 2 * np.array(jax.random.randint(key, (64, 3), 0, 256)) / 255 - 1

    p = torch.tensor(params, dtype=torch.float64, requires_grad=True)
    values = torch.tensor(x)[:, :, None]
    k = torch.tanh(p[:, 7:])
    means = torch.stack(
        [
            p[:, 1],
            p[:, 2] + k[:, 0] * values[:, 0],
            p[:, 3] + k[:, 1] * values[:, 0] + k[:, 2] * values[:, 1],
        ],
        dim=1,
    )
    scales = p[:, 4:7].clamp(min=-7).exp()
    high = torch.sigmoid((values + 1 / 255 - means) / scales)
    low = torch.sigmoid((values - 1 / 255 - means) / scales)
    mass = torch.where(values > 0.999, 1.0, high) - torch.where(values < -0.999, 0.0, low)
    log_prob = torch.logsumexp(torch.log_softmax(p[:, 0], -1) + mass.log().sum(1), dim=-1)
    log_prob.sum().backward()

    def total(params):
        values = mixture_log_prob(params, jnp.asarray(x, jnp.float32))
        return values.sum(), values

    gradient, got = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(params))
    np.testing.assert_allclose(got, log_prob.detach(), rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, p.grad, rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("scale", [-30.0, -7.0, 0.0, 7.0])
def test_mixture_adds_up_to_one(key, scale):
    params = 3 * jax.random.normal(key, (1, 3, 4))
    params = params.at[:, 2].set(scale)
    masses = jnp.exp(mixture_log_prob(jnp.tile(params, (256, 1, 1)), GREYS))
    assert masses.sum() == pytest.approx(1, abs=2e-5)


def test_coupled_mixture_adds_up_to_one(mixture):
    params = jnp.asarray(mixture(3, 2, 1))
    colours = np.stack(np.meshgrid(*[np.linspace(-1, 1, 8)] * 3), axis=-1).reshape(-1, 3)
    log_probs = mixture_log_prob(
        jnp.tile(params, (512, 1, 1)), jnp.asarray(colours, jnp.float32), 8
    )
    assert jnp.exp(log_probs).sum() == pytest.approx(1, abs=1e-5)


def test_mixture_gradients_are_finite_at_the_extremes():
    def total(params, x):
        return mixture_log_prob(params, x).sum()

    slope = jax.jit(jax.value_and_grad(total))
    x = jnp.asarray(np.array([[-1, 1, -1], [1, -1, 1], [0.0039, -1, 1]], np.float32))
    for mean in (-1e3, 0.0, 1e3):
        for log_scale in (-50.0, -7.0, 7.0):
            params = jnp.zeros((3, 10, 2)).at[:, 1:4].set(mean).at[:, 4:7].set(log_scale)
            value, gradient = slope(params, x)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


def test_mixture_samples_have_the_masses(key):
    # Three grey levels a channel: all 27 colours can be counted. The coupling is strong.
    params = np.zeros((1, 10, 2), np.float32)
    params[0, 0] = [0, 1]
    params[0, 1:4] = [[-0.5, 0.8], [0.1, 0], [0, -0.4]]
    params[0, 4:7] = -1.5
    params[0, 7:] = [[2, -2], [-1, 1], [1, 0.5]]
    num = 20_000
    x = mixture_sample(key, jnp.tile(jnp.asarray(params), (num, 1, 1)), 3)
    assert x.shape == (num, 3)
    level = np.asarray(x).astype(int) + 1
    shares = np.bincount(level @ [9, 3, 1], minlength=27) / num
    colours = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=-1) - 1
    masses = jnp.exp(
        mixture_log_prob(
            jnp.tile(jnp.asarray(params), (27, 1, 1)), jnp.asarray(colours, jnp.float32), 3
        )
    )
    np.testing.assert_allclose(shares, masses, atol=0.012)
    assert masses.max() < 0.5


def test_mixture_mean_is_the_masses_for_one_channel(mixture):
    params = mixture(1, 3, 1)
    masses = jnp.exp(mixture_log_prob(jnp.tile(jnp.asarray(params), (256, 1, 1)), GREYS))
    got = mixture_mean(jnp.asarray(params))
    assert got.shape == (1, 1)
    assert got[0, 0] == pytest.approx(float(masses @ PIXELS), abs=1 / 255)


def test_mixture_mean_is_its_samples(key, mixture):
    params = 0.5 * mixture(3, 2, 1, spread=0.4)
    params[:, 4:7] = -4
    x = mixture_sample(key, jnp.tile(jnp.asarray(params), (20_000, 1, 1)))
    got = mixture_mean(jnp.asarray(params))[0]
    np.testing.assert_allclose(got, x.mean(axis=0), atol=0.01)
    assert np.abs(got).max() > 0.02


def test_mixture_mode():
    # One channel, components apart: the sharp one has the likeliest bin, though it weighs less.
    params = np.array([[[0.0, 0.5], [-0.6, 0.4], [-6.0, -2.0]]], np.float32)
    masses = mixture_log_prob(jnp.tile(jnp.asarray(params), (256, 1, 1)), GREYS)
    got = mixture_mode(jnp.asarray(params))
    assert got[0, 0] == pytest.approx(PIXELS[int(masses.argmax())], abs=1e-6)
    assert got[0, 0] == pytest.approx(-0.6, abs=1 / 255)
    # Three channels: the second component is the heavier; its green follows its red.
    params = np.zeros((1, 10, 2), np.float32)
    params[0, 0] = [0, 3]
    params[0, 1:4] = [[-0.5, 0.8], [0, 0], [0, 0]]
    params[0, 4:7] = -5
    params[0, 7] = 10
    got = mixture_mode(jnp.asarray(params))[0]
    np.testing.assert_allclose(got, [0.8, 0.8, 0], atol=1.01 / 255)


def test_draws_are_pure(key, mixture):
    params = jnp.asarray(mixture(3, 2, 5))
    first, again = (mixture_sample(key, params) for _ in range(2))
    other = mixture_sample(jax.random.key(1), params)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_prob(0.0, 0.0, 0.0, 1), "num_bins must be at least 2, got 1"),
        (
            lambda: discretized_logistic_sample(
                jax.random.key(0), jnp.zeros(2), jnp.zeros(2), num_bins=0
            ),
            "num_bins must be at least 2, got 0",
        ),
        (lambda: mixture_of_logistics_rows(0), "channels must be at least 1, got 0"),
        (
            lambda: mixture_of_logistics_log_prob(jnp.zeros((2, 3, 5)), jnp.zeros((2, 3))),
            "10 rows for 3 channels, got 3",
        ),
        (lambda: mixture_of_logistics_mean(jnp.zeros((2, 4, 5))), "and so on, got 4"),
        (lambda: mixture_of_logistics_mode(jnp.zeros((2, 1, 5))), "and so on, got 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
