"""The algebra of Gaussian diffusion: identities, NumPy in float64, and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.gaussian_diffusion import (
    PREDICTIONS,
    VARIANCES,
    p_mean_variance,
    posterior,
    prediction_target,
    q_sample,
    to_eps,
    to_x0,
)
from jaxgen.primitives import standard_normal
from jaxgen.schedules import cosine_betas, discrete_schedule, linear_betas

LINEAR = discrete_schedule(linear_betas(1000))
COSINE = discrete_schedule(cosine_betas(1000))
T = jnp.array([0, 1, 400, 998])
SHAPE = (4, 3, 5, 2)


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
    np.testing.assert_allclose(q_sample(LINEAR, x0, T, eps), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_back_x0_and_eps(data, prediction):
    x0, eps = data
    x_t = q_sample(LINEAR, x0, T, eps)
    target = prediction_target(LINEAR, x0, T, eps, prediction)
    recovered = to_x0(LINEAR, target, x_t, T, prediction)
    # An eps of relative error u gives x0 an error of u sigma / alpha, 160 at the last t.
    np.testing.assert_allclose(recovered, x0, atol=1e-4)
    np.testing.assert_allclose(to_eps(LINEAR, recovered, x_t, T), eps, atol=2e-5)
    half = to_x0(LINEAR, target.astype(jnp.bfloat16), x_t, T, prediction)
    assert half.dtype == jnp.float32


def test_v_is_the_rotated_pair(data):
    x0, eps = data
    x_t = q_sample(COSINE, x0, T, eps)
    v = prediction_target(COSINE, x0, T, eps, "v")
    # (x_t, v) is (x0, eps) rotated by an angle, so norms agree.
    np.testing.assert_allclose(x_t**2 + v**2, x0**2 + eps**2, rtol=1e-4)


def test_posterior_is_bayes_rule(data):
    x0, eps = data
    t = jnp.array([1, 2, 500, 999])
    x_t = q_sample(LINEAR, x0, t, eps)
    mean, log_variance = posterior(LINEAR, x0, x_t, t)
    # The product of q(x_{t-1} | x0) and q(x_t | x_{t-1}), as precisions.
    beta, before = at(LINEAR.betas, t), at(LINEAR.one_minus_alphas_cumprod, t - 1)
    precision = 1 / before + (1 - beta) / beta
    weighed = np.sqrt(1 - before) * np.asarray(x0) / before
    weighed += np.sqrt(1 - beta) * np.asarray(x_t) / beta
    np.testing.assert_allclose(log_variance, -np.log(precision), rtol=1e-5)
    np.testing.assert_allclose(mean, weighed / precision, rtol=1e-4, atol=1e-5)
    first, _ = posterior(LINEAR, x0, x_t, jnp.zeros(4, int))
    np.testing.assert_allclose(first, x0, atol=1e-6)


def test_variance_choices(data):
    _, x_t = data
    small, large, learned = (
        lambda u, kind=kind: (
            p_mean_variance(
                LINEAR,
                x_t if kind != "learned_range" else jnp.concatenate([x_t, u], -1),
                x_t,
                T,
                variance=kind,
            ).log_variance
        )
        for kind in VARIANCES
    )
    ones = jnp.ones(SHAPE)
    low, high = small(None), jnp.log(at(LINEAR.betas, T))
    assert low.shape == (4, 1, 1, 1)
    np.testing.assert_allclose(learned(-ones), jnp.broadcast_to(low, SHAPE), rtol=1e-6)
    np.testing.assert_allclose(learned(ones), jnp.broadcast_to(high, SHAPE), rtol=1e-6)
    half = jnp.broadcast_to(0.5 * (low + high), SHAPE)
    np.testing.assert_allclose(learned(0 * ones), half, rtol=1e-6)
    np.testing.assert_allclose(large(None)[1:], high[1:], rtol=1e-6)
    assert large(None)[0] == low[0]


def test_clipping(data):
    x0, eps = data
    clipped = p_mean_variance(LINEAR, 3 * x0, eps, T, prediction="x0")
    free = p_mean_variance(LINEAR, 3 * x0, eps, T, prediction="x0", clip_x0=False)
    np.testing.assert_array_equal(clipped.x0, jnp.clip(3 * x0, -1, 1))
    np.testing.assert_array_equal(free.x0, 3 * x0)
    np.testing.assert_array_equal(clipped.mean, posterior(LINEAR, clipped.x0, eps, T)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "noise"}, "prediction must be one of eps, x0, v, got 'noise'"),
        ({"variance": "fixed"}, "variance must be one of small, large, learned_range"),
        ({"variance": "learned_range"}, r"must have shape \(4, 3, 5, 4\), got \(4, 3, 5, 2\)"),
    ],
)
def test_bad_arguments(data, arguments, message):
    x0, eps = data
    with pytest.raises(ValueError, match=message):
        p_mean_variance(LINEAR, x0, eps, T, **arguments)


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
    steps = torch.tensor(np.asarray(T))
    want = scheduler.add_noise(to_torch(x0), to_torch(eps), steps).permute(0, 2, 3, 1)
    np.testing.assert_allclose(q_sample(LINEAR, x0, T, eps), want.numpy(), atol=1e-6)
    want = scheduler.get_velocity(to_torch(x0), to_torch(eps), steps).permute(0, 2, 3, 1)
    got = prediction_target(LINEAR, x0, T, eps, "v")
    np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


@pytest.mark.parametrize("clip_x0", [True, False])
@pytest.mark.parametrize(
    ("variance", "variance_type"),
    [("small", "fixed_small"), ("large", "fixed_large"), ("learned_range", "learned_range")],
)
@pytest.mark.parametrize(
    ("prediction", "prediction_type"),
    [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")],
)
def test_a_step_is_that_of_diffusers(
    data, monkeypatch, prediction, prediction_type, variance, variance_type, clip_x0
):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = in_double(
        diffusers.DDPMScheduler,
        cosine_betas(1000),
        variance_type=variance_type,
        prediction_type=prediction_type,
        clip_sample=clip_x0,
    )
    x_t, noise = data
    output = x_t[:, ::-1]
    if variance == "learned_range":
        output = jnp.concatenate([output, jnp.tanh(noise[:, ::-1])], axis=-1)
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: to_torch(noise))
    for t in (0, 1, 500, 998):
        step = jnp.full(4, t)
        model = p_mean_variance(
            COSINE,
            output,
            x_t,
            step,
            prediction=prediction,
            variance=variance,
            clip_x0=clip_x0,
        )
        got = model.mean + (t > 0) * jnp.exp(0.5 * model.log_variance) * noise
        want = scheduler.step(to_torch(output), t, to_torch(x_t))
        # x_t - sigma eps loses digits where alpha is small: an error of 1e-7 / alpha.
        tolerance = {"rtol": 1e-5, "atol": 1e-4 if prediction == "eps" else 1e-5}
        x0 = want.pred_original_sample.permute(0, 2, 3, 1)
        np.testing.assert_allclose(model.x0, x0.numpy(), **tolerance)
        np.testing.assert_allclose(got, want.prev_sample.permute(0, 2, 3, 1).numpy(), **tolerance)


def test_standard_normal_is_jax_normal():
    key, shape = jax.random.key(3), (3, 4, 5, 2)
    np.testing.assert_array_equal(standard_normal(key, shape), jax.random.normal(key, shape))
