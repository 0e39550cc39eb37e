"""VDM's bound: of a law whose entropy is known, its parts by hand, at the schedule's extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import vdm
from jaxgen.models.schedules import MonotoneSchedule, ScalarSchedule, gamma_of
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import expand, vp

POINTS = 2 * (np.arange(256) + 0.5) / 256 - 1
VALUES = np.arange(8, 256, 16)  # of bytes, with the weights of a Gaussian
LOG_P = -0.5 * ((POINTS[VALUES] - 0.1) / 0.4) ** 2
LOG_P -= np.log(np.exp(LOG_P).sum())
DRAWS = 48


def line(t):
    return -13.3 + 18.3 * t


def curved(t):
    """Of the same ends, elsewhere far from the line."""
    return -13.3 + 18.3 * (0.3 * t + 0.7 * jnp.square(t))


def exact(z, level, condition=None):
    """The mean of bytes of the law LOG_P given their noisy points."""
    alpha, sigma = (expand(v, 2) for v in (level.alpha, level.sigma))
    points, log_p = (jnp.asarray(v, jnp.float32)[None] for v in (POINTS[VALUES], LOG_P))
    mass = jax.nn.softmax(log_p - 0.5 * jnp.square((z - alpha * points) / sigma))
    return Denoised((mass * points).sum(-1, keepdims=True))


def off(z, level, condition=None):
    """One that expects less of the data than it should."""
    return Denoised(0.9 * exact(z, level).x0)


@pytest.fixture(scope="module")
def image():
    u = np.random.default_rng(0).choice(VALUES, (8192, 1), p=np.exp(LOG_P))
    return jnp.asarray(2 * u / 255 - 1, jnp.float32)


def bound(denoise, gamma, image, **options):
    """The mean and its parts, the diffusion's over many draws."""

    def draw(key):
        return vdm.variational_bound(denoise, gamma, image, key, **options)

    @jax.jit
    def run(keys):
        nats, terms = draw(keys[0])
        return nats, terms, jax.lax.map(lambda key: draw(key)[1]["diffusion_kl"].mean(), keys)

    nats, terms, draws = run(jax.random.split(jax.random.key(0), DRAWS))
    np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-5, atol=1e-5)
    parts = {k: float(v.mean()) for k, v in terms.items()} | {"diffusion_kl": float(draws.mean())}
    return sum(parts.values()), parts


@pytest.fixture(scope="module")
def truth(image):
    """The mean of -log p of the bytes that were drawn."""
    u = np.round((np.asarray(image) + 1) * 127.5).astype(int)
    return -LOG_P[(u - 8) // 16].mean()


@pytest.fixture(scope="module")
def straight(image):
    return bound(exact, line, image)


def test_the_exact_denoiser_reaches_the_likelihood(image, truth, straight):
    """The law's own negative log-likelihood, whatever the schedule between its ends."""
    nats, parts = straight
    assert truth == pytest.approx(-(np.exp(LOG_P) * LOG_P).sum(), abs=0.02)
    assert nats == pytest.approx(truth, abs=0.04)
    assert bound(exact, curved, image)[0] == pytest.approx(truth, abs=0.04)
    assert 0 < parts["prior_kl"] < 0.01
    assert 0 < parts["decoder_nll"] < 0.02
    assert bound(off, line, image)[0] > truth + 0.1


def test_more_steps_are_a_tighter_bound(image, truth, straight):
    """Of a chain too it lies above the law's own, and falls to the limit (section 4.2)."""
    few, some, many = (bound(exact, line, image, num_timesteps=n)[0] for n in (8, 32, 2048))
    assert few > some + 0.1 > many + 0.2 > truth + 0.2
    assert many == pytest.approx(straight[0], abs=0.04)


def test_weights_by_hand():
    t = jnp.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(vdm.diffusion_weight(line, t), np.full(3, 9.15), rtol=1e-6)
    np.testing.assert_allclose(
        vdm.diffusion_weight(curved, t), 9.15 * (0.3 + 1.4 * np.asarray(t)), rtol=1e-5
    )
    want = 2 * np.expm1([18.3 / 4] * 3)
    np.testing.assert_allclose(vdm.diffusion_weight(line, t, 4), want, rtol=1e-5)


def test_diffusion_loss_by_hand():
    rng = np.random.default_rng(1)
    x, eps, output = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(3))
    t = jnp.array([0.5, 0.9])
    a2 = 1 / (1 + np.exp(line(np.asarray(t, float))))[:, None]
    z = np.sqrt(a2) * x + np.sqrt(1 - a2) * eps
    guess = (z - np.sqrt(a2) * output) / np.sqrt(1 - a2)
    want = 9.15 * ((eps - guess) ** 2).sum(1)
    got = vdm.diffusion_loss(lambda z, level, c: Denoised(output), line, x, eps, t)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("gamma_0", [-20.0, -13.3, -4.0, 0.0])
def test_decoder_is_its_softmax(gamma_0):
    u = np.array([[0.0, 3.0, 200.0, 255.0]])
    noise = np.array([[0.3, -1.0, 2.0, 0.0]])
    x = 2 * (u + 0.5) / 256 - 1
    alpha, sigma = np.sqrt(1 / (1 + np.exp([gamma_0, -gamma_0])))
    logits = -0.5 * ((x + sigma / alpha * noise)[..., None] - POINTS) ** 2 * np.exp(-gamma_0)
    top = logits.max(-1, keepdims=True)
    log_mass = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    want = -np.take_along_axis(log_mass, u.astype(int)[..., None], -1).sum()
    z = jnp.asarray(alpha * x + sigma * noise, jnp.float32)
    image = jnp.asarray(2 * u / 255 - 1, jnp.float32)
    got = vdm.decoder_nll(image, z, jnp.float32(gamma_0))
    np.testing.assert_allclose(got, [want], rtol=1e-3, atol=1e-5)


def test_points_are_the_middles_of_bytes_and_back():
    u = np.arange(256)
    image = jnp.asarray(2 * u / 255 - 1, jnp.float32)[None]
    points = vdm.to_points(image)
    np.testing.assert_allclose(points[0], POINTS, atol=1e-6)
    for offset in (-0.003, 0.0, 0.003):
        np.testing.assert_allclose(vdm.from_points(points + offset), image, atol=1e-6)


@pytest.mark.parametrize(
    "schedule", [ScalarSchedule(-13.3, 5.0), MonotoneSchedule(-13.3, 5.0, features=32)]
)
def test_schedules_rise_from_end_to_end(schedule):
    t = jnp.linspace(0, 1, 101)
    params = schedule.init(jax.random.key(0), t)["params"]
    gamma = gamma_of(schedule, params)
    np.testing.assert_allclose(gamma(t), line(t), atol=2e-3)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda v: jnp.asarray(rng.normal(0, 9, v.shape), jnp.float32), params)
    wild = gamma_of(schedule, params)
    assert (np.diff(wild(t)) > 0).all()
    np.testing.assert_allclose(
        wild(t[:100].reshape(4, 25)), wild(t[:100]).reshape(4, 25), rtol=1e-6
    )
    if isinstance(schedule, MonotoneSchedule):
        p = params
        u = np.abs(p["rates"]) * (2 * 0.3 - 1) + p["bias"]
        want = p["line"]["b"] + abs(p["line"]["w"]) * 0.3
        want += (np.abs(p["weights"]) * np.tanh(u / 2)).sum() / 32
        assert float(wild(jnp.float32(0.3))) == pytest.approx(float(want), rel=1e-5)


def test_gradients_reach_the_ends_of_the_schedule(image):
    """All of the line's parameters, and the data's noise at the ends."""
    schedule = MonotoneSchedule(features=4)
    params = schedule.init(jax.random.key(0), jnp.zeros(2))["params"]

    def mean(params):
        gamma = gamma_of(schedule, params)
        return vdm.variational_bound(exact, gamma, image[:64], jax.random.key(1))[0].mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(mean))(params)):
        assert np.isfinite(leaf).all(), path
        assert np.asarray(leaf).any(), path


def test_bad_arguments(image):
    with pytest.raises(ValueError, match="num_timesteps must be at least 1, got 0"):
        vdm.variational_bound(exact, line, image, jax.random.key(0), num_timesteps=0)
    with pytest.raises(ValueError, match="gamma_min < gamma_max must hold"):
        ScalarSchedule(1.0, 1.0)
    with pytest.raises(ValueError, match="features must be positive, got 0"):
        MonotoneSchedule(features=0)


def test_the_process_of_a_schedule():
    level = vp(lambda t: -line(t)).at(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, [1, 1], rtol=1e-6)
    np.testing.assert_allclose(level.sigma[0] ** 2, 1 / (1 + np.exp(13.3)), rtol=1e-5)
