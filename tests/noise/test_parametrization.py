"""Parametrizations and denoisers: identities, NumPy in float64, and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise import parametrization
from jaxgen.noise import process as processes
from jaxgen.noise.chain import (
    chain,
    cosine_betas,
    large_variance,
    learned_variance,
    linear_betas,
    posterior_mean,
    small_variance,
)
from jaxgen.noise.log_snr import log_snr_linear
from jaxgen.noise.parametrization import (
    EPS,
    X0,
    Denoised,
    Parametrization,
    V,
    ask,
    denoiser,
    interpret,
    to_eps,
)
from jaxgen.noise.process import Level, q_sample
from jaxgen.sampling.guidance import clip_x0

LINEAR = chain(linear_betas(1000))
COSINE = chain(cosine_betas(1000))
T = jnp.array([0, 1, 400, 998])
SHAPE = (4, 3, 5, 2)
PARAMETRIZATIONS = {"eps": EPS, "x0": X0, "v": V}


@pytest.fixture
def data(key):
    """x0 in [-1, 1] and eps."""
    key_x, key_eps = jax.random.split(key)
    x0 = jax.random.uniform(key_x, SHAPE, minval=-1, maxval=1)
    return x0, jax.random.normal(key_eps, SHAPE)


def at(values, t):
    return np.asarray(values, float)[np.asarray(t)].reshape(-1, 1, 1, 1)


def test_q_sample_is_its_equation(data):
    x0, eps = data
    alpha2, sigma2 = at(LINEAR.alphas_cumprod, T), at(LINEAR.one_minus_alphas_cumprod, T)
    want = np.sqrt(alpha2) * np.asarray(x0) + np.sqrt(sigma2) * np.asarray(eps)
    np.testing.assert_allclose(q_sample(x0, eps, LINEAR.at(T)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", PARAMETRIZATIONS)
def test_a_perfect_prediction_gives_back_x0_and_eps(data, prediction):
    (x0, eps), level, predicts = data, LINEAR.at(T), PARAMETRIZATIONS[prediction]
    x_t = q_sample(x0, eps, level)
    target = predicts.target(x0, eps, level)
    denoised = interpret(predicts, target, x_t, level)
    # An eps of relative error u gives x0 an error of u sigma / alpha, 160 at the last t.
    np.testing.assert_allclose(denoised.x0, x0, atol=1e-4)
    assert denoised.extra is None
    np.testing.assert_allclose(to_eps(denoised.x0, x_t, level), eps, atol=2e-5)
    half = interpret(predicts, target.astype(jnp.bfloat16), x_t, level)
    assert half.x0.dtype == jnp.float32


def test_v_is_the_rotated_pair(data):
    (x0, eps), level = data, COSINE.at(T)
    x_t, v = q_sample(x0, eps, level), V.target(x0, eps, level)
    # (x_t, v) is (x0, eps) rotated by an angle, so norms agree.
    np.testing.assert_allclose(x_t**2 + v**2, x0**2 + eps**2, rtol=1e-4)


def test_a_denoiser_asks_by_the_parametrization(data):
    """All that EDM's preconditioning needs: factors before and after, and a time of its own."""
    x_t, extra = data
    level = Level(jnp.ones(4), jnp.array([0.1, 0.5, 2.0, 80.0]), jnp.arange(4))
    edm = Parametrization(
        skip=lambda level: 0.25 / (level.sigma**2 + 0.25),
        out=lambda level: 0.5 * level.sigma / jnp.sqrt(level.sigma**2 + 0.25),
        scale_in=lambda level: 1 / jnp.sqrt(level.sigma**2 + 0.25),
        time=lambda level: jnp.log(level.sigma) / 4,
        target=lambda x0, eps, level: x0,
    )

    def network(x, time, condition):
        return jnp.concatenate([jnp.tanh(x) + time.reshape(-1, 1, 1, 1) * condition, extra], -1)

    denoised = denoiser(network, edm)(x_t, level, 3.0)
    s = np.asarray(level.sigma, float).reshape(-1, 1, 1, 1)
    root = np.sqrt(s**2 + 0.25)
    inner = np.tanh(np.asarray(x_t) / root) + 3 * np.log(s) / 4
    want = 0.25 / root**2 * np.asarray(x_t) + 0.5 * s / root * inner
    np.testing.assert_allclose(denoised.x0, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(denoised.extra, extra)
    np.testing.assert_array_equal(ask(lambda x, t, c: t, edm, x_t, level), edm.time(level))


def test_clipping(data):
    x0, eps = data
    free = denoiser(lambda x, time, condition: jnp.concatenate([3 * x0, eps], axis=-1), X0)
    denoised = clip_x0(free)(eps, LINEAR.at(T), None)
    np.testing.assert_array_equal(denoised.x0, jnp.clip(3 * x0, -1, 1))
    np.testing.assert_array_equal(denoised.extra, eps)
    np.testing.assert_array_equal(free(eps, LINEAR.at(T), None).x0, 3 * x0)
    half = clip_x0(free, 0.0, 0.5)(eps, LINEAR.at(T), None)
    assert (half.x0.min(), half.x0.max()) == (0, 0.5)


@pytest.mark.parametrize("shape", [(4, 3, 5, 1), (4, 3, 4, 2), (4, 3, 5)])
def test_a_network_of_the_wrong_shape(data, shape):
    with pytest.raises(ValueError, match=r"x_t of shape \(4, 3, 5, 2\) must have that shape, or"):
        denoiser(lambda x, time, condition: jnp.zeros(shape), EPS)(data[1], LINEAR.at(T))


def in_double(scheduler_class, betas, **config):
    """A scheduler of diffusers whose constants are float64: what ours should be equal to."""
    torch = pytest.importorskip("torch")
    scheduler = scheduler_class(len(betas), trained_betas=list(betas), **config)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(betas), dim=0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def to_torch(x):
    """float64, channels first."""
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)


def test_noising_is_that_of_diffusers(data):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = in_double(diffusers.DDPMScheduler, linear_betas(1000))
    x0, eps = data
    steps, level = torch.tensor(np.asarray(T)), LINEAR.at(T)
    want = scheduler.add_noise(to_torch(x0), to_torch(eps), steps).permute(0, 2, 3, 1)
    np.testing.assert_allclose(q_sample(x0, eps, level), want.numpy(), atol=1e-6)
    want = scheduler.get_velocity(to_torch(x0), to_torch(eps), steps).permute(0, 2, 3, 1)
    np.testing.assert_allclose(V.target(x0, eps, level), want.numpy(), atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("variance", "variance_type"),
    [
        (small_variance, "fixed_small"),
        (large_variance, "fixed_large"),
        (learned_variance, "learned_range"),
    ],
)
@pytest.mark.parametrize(
    ("prediction", "prediction_type"),
    [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")],
)
def test_a_step_is_that_of_diffusers(
    data, monkeypatch, prediction, prediction_type, variance, variance_type, clip
):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = in_double(
        diffusers.DDPMScheduler,
        cosine_betas(1000),
        variance_type=variance_type,
        prediction_type=prediction_type,
        clip_sample=clip,
    )
    x_t, noise = data
    output = x_t[:, ::-1]
    if variance is learned_variance:
        output = jnp.concatenate([output, jnp.tanh(noise[:, ::-1])], axis=-1)
    denoise = denoiser(lambda x, time, condition: output, PARAMETRIZATIONS[prediction])
    denoise = clip_x0(denoise) if clip else denoise
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: to_torch(noise))
    for t in (0, 1, 500, 998):
        step = jnp.full(4, t)
        denoised: Denoised = denoise(x_t, COSINE.at(step), None)
        posterior = COSINE.posterior(step)
        got = posterior_mean(posterior, denoised.x0, x_t)
        got += (t > 0) * jnp.exp(0.5 * variance(posterior, denoised)) * noise
        want = scheduler.step(to_torch(output), t, to_torch(x_t))
        # x_t - sigma eps loses digits where alpha is small: an error of 1e-7 / alpha.
        tolerance = {"rtol": 1e-5, "atol": 1e-4 if prediction == "eps" else 1e-5}
        x0 = want.pred_original_sample.permute(0, 2, 3, 1)
        np.testing.assert_allclose(denoised.x0, x0.numpy(), **tolerance)
        np.testing.assert_allclose(got, want.prev_sample.permute(0, 2, 3, 1).numpy(), **tolerance)


def test_standard_normal_is_jax_normal():
    key, shape = jax.random.key(3), (3, 4, 5, 2)
    np.testing.assert_array_equal(standard_normal(key, shape), jax.random.normal(key, shape))


@pytest.mark.parametrize(
    ("made", "process"),
    [
        (parametrization.SCORE, processes.vp(log_snr_linear)),
        (parametrization.NEGATIVE_EPS, processes.ve()),
        (parametrization.velocity(processes.rectified()), processes.rectified()),
        (parametrization.velocity(processes.trigonometric()), processes.trigonometric()),
        (parametrization.velocity(processes.vp(log_snr_linear)), processes.vp(log_snr_linear)),
        (parametrization.edm(0.5), processes.edm()),
        (parametrization.edm(0.5), processes.rectified()),
    ],
)
def test_a_perfect_prediction_gives_back_the_data_of_any_process(key, made, process):
    x0 = jax.random.uniform(key, SHAPE, minval=-1, maxval=1)
    eps = jax.random.normal(jax.random.key(1), SHAPE)
    level = process.at(jnp.array([0.02, 0.3, 0.6, 0.9]) * process.last_time)
    x = q_sample(x0, eps, level)
    denoise = denoiser(lambda *_: made.target(x0, eps, level), made)
    np.testing.assert_allclose(denoise(x, level).x0, x0, atol=3e-4)


def test_the_velocity_of_straight_lines_is_noise_less_data(key):
    process = processes.rectified()
    x0, eps = jax.random.normal(key, (2, *SHAPE))
    level = process.at(jnp.array([0.0, 0.3, 0.6, 1.0]))
    made = parametrization.velocity(process)
    np.testing.assert_allclose(made.target(x0, eps, level), eps - x0, rtol=1e-6)
    denoise = denoiser(lambda *_: eps - x0, made)
    np.testing.assert_allclose(denoise(q_sample(x0, eps, level), level).x0, x0, atol=1e-6)


def test_edm_preconditioning_is_the_papers(key):
    """Table 1 in float64, and unit variance of inputs and targets at every level."""
    sigma = np.array([0.002, 0.5, 3.0, 80.0])
    level = processes.edm().at(jnp.float32(sigma))
    made = parametrization.edm(0.5)
    np.testing.assert_allclose(made.skip(level), 0.25 / (sigma**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(made.out(level), sigma * 0.5 / np.sqrt(sigma**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(made.scale_in(level), 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(made.time(level), np.log(sigma) / 4, atol=1e-6)
    x0 = 0.5 * jax.random.normal(key, (4, 4000))
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    seen = made.scale_in(level)[:, None] * q_sample(x0, eps, level)
    np.testing.assert_allclose(seen.std(1), 1, rtol=0.05)
    np.testing.assert_allclose(made.target(x0, eps, level).std(1), 1, rtol=0.05)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_bad_deviation_of_the_data(value):
    with pytest.raises(ValueError, match="sigma_data must be positive and finite, got"):
        parametrization.edm(value)
