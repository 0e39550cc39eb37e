"""VDM's bound: of a law whose entropy is known, its parts by hand, at the schedule's extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    at = vdm.schedule_at(curved, t)
    np.testing.assert_allclose(at[0], curved(np.asarray(t)), rtol=1e-6)
    np.testing.assert_allclose(
        vdm.diffusion_weight(at), 9.15 * (0.3 + 1.4 * np.asarray(t)), rtol=1e-5
    )
    want = 2 * np.expm1([18.3 / 4] * 3)
    got = vdm.diffusion_weight(vdm.schedule_at(line, t, 4), 4)
    np.testing.assert_allclose(got, want, rtol=1e-5)


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
    np.testing.assert_allclose(gamma(t), line(t), atol=1e-2)
    np.testing.assert_allclose(gamma(t[::100]), [-13.3, 5.0], rtol=1e-6)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda v: jnp.asarray(rng.normal(0, 9, v.shape), jnp.float32), params)
    wild, ends = gamma_of(schedule, params), params["b"] + np.abs(params["w"]) * np.arange(2.0)
    assert (np.diff(wild(t)) > 0).all()
    np.testing.assert_allclose(wild(t[::100]), ends, rtol=1e-6)
    some = t[:100]
    np.testing.assert_allclose(wild(some.reshape(4, 25)).ravel(), wild(some), rtol=1e-5)


def test_the_monotone_network_by_hand():
    schedule = MonotoneSchedule(features=16)
    rng = np.random.default_rng(2)
    shapes = schedule.init(jax.random.key(0), jnp.zeros(1))["params"]
    params = jax.tree.map(lambda v: rng.normal(0, 3, v.shape), shapes)
    p = params["inner"]

    def rise(t):
        u = np.abs(p["rates"]) * (2 * t - 1) + p["bias"]
        return np.abs(p["slope"]) * t + (np.abs(p["weights"]) * np.tanh(u / 2)).sum() / 16

    gamma = gamma_of(schedule, jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params))
    for t in (0.1, 0.5, 0.8):
        want = params["b"] + abs(params["w"]) * (rise(t) - rise(0)) / (rise(1) - rise(0))
        assert float(gamma(jnp.float32(t))) == pytest.approx(float(want), rel=1e-4)


def test_the_gradient_of_a_square():
    """By the argument that of the square, by what the loss closes over its own."""

    def loss(factor, argument):
        return factor * jnp.sin(argument[0]) + argument[1] ** 3

    x = jnp.array([[0.3, 1.0, -2.0], [0.5, -1.0, 0.2]])

    @jax.jit
    def both(factor, x):
        value = vdm.with_gradient_of_square(lambda x: loss(factor, x), x)
        return value @ jnp.array([1.0, 0.5, 2.0])

    value, (by_factor, by_x) = jax.value_and_grad(both, (0, 1))(1.5, x)
    weights = np.array([1.0, 0.5, 2.0])
    assert value == pytest.approx(float(loss(1.5, x) @ weights), rel=1e-6)
    assert by_factor == pytest.approx(float(np.sin(x[0]) @ weights), rel=1e-5)
    want = jax.grad(lambda x: jnp.square(loss(1.5, x)) @ weights)(x)
    np.testing.assert_allclose(by_x, want, rtol=1e-5)


SCHEDULE = MonotoneSchedule(features=8)


@pytest.fixture(scope="module")
def params():
    """A schedule far from the line."""
    rng = np.random.default_rng(3)
    shapes = SCHEDULE.init(jax.random.key(0), jnp.zeros(2))["params"]
    inner = jax.tree.map(lambda v: jnp.asarray(rng.normal(0, 3, v.shape), jnp.float32), shapes)
    return {**shapes, "inner": inner["inner"]}


def test_inner_parameters_get_the_gradient_of_the_square(image, params):
    """Of the diffusion's term alone; the ends that of the bound."""
    still = jax.lax.stop_gradient

    def bound(ends, inner):
        return vdm.variational_bound(
            exact,
            gamma_of(SCHEDULE, {**ends, "inner": still(inner)}),
            image[:256],
            jax.random.key(1),
            inner=gamma_of(SCHEDULE, {**still(ends), "inner": inner}),
        )[0].mean()

    def plain(ends, inner):
        gamma = gamma_of(SCHEDULE, {**ends, "inner": inner})
        nats, terms = vdm.variational_bound(exact, gamma, image[:256], jax.random.key(1))
        return nats.mean(), jnp.square(terms["diffusion_kl"]).mean()

    ends = {name: params[name] for name in ("w", "b")}

    @jax.jit
    def gradients(ends, inner):
        got = jax.grad(bound, (0, 1))(ends, inner)
        by_ends = jax.grad(lambda ends: plain(ends, inner)[0])(ends)
        by_inner = jax.grad(lambda inner: plain(ends, inner)[1])(inner)
        return got, (by_ends, by_inner)

    got, want = gradients(ends, params["inner"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), got, want)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(want))


def test_the_least_variance_is_less_than_the_lines(image):
    """Training what is between the ends: the same mean, a smaller deviation.

    The law's bytes are all but known at one end and lost at the other, where a schedule should not
    linger.
    """
    params = SCHEDULE.init(jax.random.key(0), jnp.zeros(2))["params"]
    places = {"rates": jnp.full(8, 12.0), "bias": jnp.linspace(-12.0, 12.0, 8)}
    inner = {"slope": jnp.float32(1), "weights": jnp.ones(8), **places}
    ends = {name: params[name] for name in ("w", "b")}
    optimizer = optax.adam(0.05)

    def terms(inner, key):
        gamma = gamma_of(SCHEDULE, {**ends, "inner": inner})
        _, parts = vdm.variational_bound(exact, gamma, image[:1024], key)
        return parts["diffusion_kl"]

    def step(carry, key):
        inner, state = carry

        def loss(inner):
            moving = gamma_of(SCHEDULE, {**ends, "inner": inner})
            fixed = gamma_of(SCHEDULE, {**ends, "inner": jax.lax.stop_gradient(inner)})
            return vdm.variational_bound(exact, fixed, image[:1024], key, inner=moving)[0].mean()

        updates, state = optimizer.update(jax.grad(loss)(inner), state)
        return (optax.apply_updates(inner, updates), state), None

    @jax.jit
    def run(inner, keys):
        (trained, _), _ = jax.lax.scan(step, (inner, optimizer.init(inner)), keys)
        values = [jax.lax.map(lambda k, i=i: terms(i, k), keys[:30]) for i in (inner, trained)]
        return [(v.mean(), v.std()) for v in values]

    (mean, std), (mean_after, std_after) = run(inner, jax.random.split(jax.random.key(2), 200))
    assert std_after < 0.85 * std
    assert mean_after == pytest.approx(float(mean), abs=0.2)


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
