"""Samplers on solvable models, against exact recursions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.sampling.diffusion import ancestral, ddim, ddim_encode, guided
from jaxgen.schedules import (
    discrete_schedule,
    linear_betas,
    spaced_timesteps,
)

BETAS = linear_betas(200, 5e-4, 0.1)
SCHEDULE = discrete_schedule(BETAS)
MEAN, STD = 0.3, 0.5
SHAPE = (4, 3, 3, 2)


def perfect(prediction="eps", mean=MEAN, std=STD, schedule=SCHEDULE):
    """The optimal denoiser, E[x0 | x_t], of independent Gaussian pixels."""

    def denoise(x_t, t, condition):
        a2 = jnp.asarray(schedule.alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        s2 = jnp.asarray(schedule.one_minus_alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        a = jnp.sqrt(a2)
        residual = (x_t - a * mean) / (a2 * std**2 + s2)
        x0, eps = mean + a * std**2 * residual, jnp.sqrt(s2) * residual
        return {"eps": eps, "x0": x0, "v": a * eps - jnp.sqrt(s2) * x0}[prediction]

    return denoise


def kept(num_steps, spacing):
    """alphas_cumprod at the kept steps, in float64, and before each of them."""
    timesteps = np.asarray(spaced_timesteps(len(BETAS), num_steps, spacing))[:num_steps]
    signal = np.cumprod(1 - BETAS)[timesteps]
    return signal, np.concatenate([[1.0], signal[:-1]])


def gain(signal):
    """E[x0 | x_t] of the Gaussian data is `MEAN + gain (x_t - alpha MEAN)`."""
    return np.sqrt(signal) * STD**2 / (signal * STD**2 + 1 - signal)


def ancestral_moments(num_steps, variance):
    """Mean and variance of the samples: the chain is linear, so they follow a recursion."""
    mean, var = 0.0, 1.0
    for i, (a, b) in reversed(list(enumerate(zip(*kept(num_steps, "linspace"), strict=True)))):
        beta = 1 - a / b
        to_x0, to_xt = np.sqrt(b) * beta / (1 - a), np.sqrt(1 - beta) * (1 - b) / (1 - a)
        slope = to_x0 * gain(a) + to_xt
        noise = {"small": beta * (1 - b) / (1 - a), "large": beta}[variance] * (i > 0)
        mean = slope * mean + to_x0 * (MEAN - gain(a) * np.sqrt(a) * MEAN)
        var = slope**2 * var + noise
    return mean, var


def ddim_map(x, num_steps, spacing):
    """Deterministic DDIM of the Gaussian data in float64."""
    for a, b in reversed(list(zip(*kept(num_steps, spacing), strict=True))):
        x0 = MEAN + gain(a) * (x - np.sqrt(a) * MEAN)
        x = np.sqrt(b) * x0 + np.sqrt(1 - b) * (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    return x


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_samples_have_the_chains_moments(key, variance):
    @jax.jit
    def sample(num_steps):
        shape = (4096, 2, 2, 1)
        kind = {"variance": variance, "num_steps": num_steps}
        return ancestral(perfect(), SCHEDULE, key, shape, clip_x0=False, **kind)

    for num_steps in (200, 20, 1):
        x = np.asarray(sample(num_steps), float)
        mean, var = ancestral_moments(num_steps, variance)
        assert x.mean() == pytest.approx(mean, abs=4 * np.sqrt(var / x.size))
        assert x.var() == pytest.approx(var, rel=4 * np.sqrt(2 / x.size))
        if num_steps == 200:  # and these are the data's
            assert mean == pytest.approx(MEAN, abs=0.01)
            assert np.sqrt(var) == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize(
    ("prediction", "spacing"), [("eps", "leading"), ("x0", "linspace"), ("v", "trailing")]
)
def test_ddim_is_its_recursion(key, prediction, spacing):
    x_T = jax.random.normal(key, SHAPE)

    def denoise(x_t, t, condition):
        output = perfect(prediction)(x_t, t, condition)
        # A learned variance, which is to be ignored.
        return jnp.concatenate([output, x_t], axis=-1) if prediction == "v" else output

    @jax.jit
    def sample(num_steps):
        kept = {"num_steps": num_steps, "spacing": spacing}
        kind = {"prediction": prediction, "clip_x0": False}
        return ddim(denoise, SCHEDULE, key, SHAPE, x_T=x_T, **kept, **kind)

    for num_steps in (1, 2, 7, 50, 199, 200):
        want = ddim_map(np.asarray(x_T, float), num_steps, spacing)
        np.testing.assert_allclose(sample(num_steps), want, atol=3e-5 * (1 + np.abs(want).max()))


def test_ddim_reaches_the_data(key):
    """With every step the map is the probability-flow ODE's: it carries quantiles to quantiles."""
    x_T = jax.random.normal(key, SHAPE)
    x0 = ddim(perfect(), SCHEDULE, key, SHAPE, num_steps=200, clip_x0=False, x_T=x_T)
    np.testing.assert_allclose(x0, MEAN + STD * x_T, atol=0.03)


@pytest.mark.parametrize("clip_x0", [True, False])
def test_ddim_with_eta_one_and_every_step_is_ancestral(key, clip_x0):
    small = ancestral(perfect(), SCHEDULE, key, SHAPE, variance="small", clip_x0=clip_x0)
    noisy = ddim(perfect(), SCHEDULE, key, SHAPE, num_steps=200, eta=1.0, clip_x0=clip_x0)
    np.testing.assert_allclose(noisy, small, atol=1e-4)


def test_learned_range_at_its_ends_is_the_fixed_variance(key):
    def learned(sign):
        def denoise(x_t, t, condition):
            return jnp.concatenate([perfect()(x_t, t, None), jnp.full(x_t.shape, sign)], axis=-1)

        return denoise

    @jax.jit
    def sample(sign):
        kind = {"variance": "learned_range", "num_steps": 10}
        return ancestral(learned(sign), SCHEDULE, key, SHAPE, **kind)

    for sign, variance in ((-1.0, "small"), (1.0, "large")):
        fixed = ancestral(perfect(), SCHEDULE, key, SHAPE, variance=variance, num_steps=10)
        np.testing.assert_allclose(sample(sign), fixed, atol=1e-5)


def bimodal(x_t, t, condition):
    """The optimal x0-prediction of pixels that are -0.7 or 0.4, each with deviation 0.1."""
    a = jnp.sqrt(jnp.asarray(SCHEDULE.alphas_cumprod)[t]).reshape(-1, 1, 1, 1)
    s2 = jnp.asarray(SCHEDULE.one_minus_alphas_cumprod)[t].reshape(-1, 1, 1, 1)
    total = a**2 * 0.01 + s2
    low, high = (c + a * 0.01 * (x_t - a * c) / total for c in (-0.7, 0.4))
    odds = (jnp.square(x_t + a * 0.7) - jnp.square(x_t - a * 0.4)) / (2 * total)
    return low + jax.nn.sigmoid(odds) * (high - low)


def test_encode_then_decode_gives_the_data_back(key):
    x0 = jnp.where(jax.random.bernoulli(key, 0.5, SHAPE), -0.7, 0.4)
    x0 = x0 + 0.1 * jax.random.normal(jax.random.key(1), SHAPE)
    options = {"num_steps": 200, "prediction": "x0"}
    x_T = jax.jit(lambda x: ddim_encode(bimodal, SCHEDULE, x, **options))(x0)
    back = ddim(bimodal, SCHEDULE, key, SHAPE, clip_x0=False, x_T=x_T, **options)
    np.testing.assert_allclose(back, x0, atol=0.03)
    assert abs(float(x_T.std()) - 1) < 0.3

    rough = {"num_steps": 10, "prediction": "x0"}
    x_T = ddim_encode(bimodal, SCHEDULE, x0, **rough)
    rough_back = ddim(bimodal, SCHEDULE, key, SHAPE, clip_x0=False, x_T=x_T, **rough)
    assert jnp.abs(back - x0).mean() < 0.3 * jnp.abs(rough_back - x0).mean()


def test_encoding_gaussian_data_standardizes_it(key):
    x0 = MEAN + STD * jax.random.normal(key, SHAPE)
    x_T = ddim_encode(perfect("v"), SCHEDULE, x0, num_steps=200, prediction="v")
    np.testing.assert_allclose(x_T, (x0 - MEAN) / STD, atol=0.05)


def by_label(x_t, t, label):
    """A conditional denoiser: the label shifts the prediction; 0 stands for none."""
    return 0.1 * x_t + 0.05 * label.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_guidance(key, sampler):
    label = jnp.array([1, 2, 3, 4])

    @jax.jit
    def sample(condition, scale):
        return sampler(
            by_label,
            SCHEDULE,
            key,
            SHAPE,
            num_steps=5,
            clip_x0=False,
            condition=condition,
            null_condition=0,
            guidance_scale=scale,
        )

    # This denoiser is linear in its label, so guidance multiplies it.
    plain = [sample(times * label, None) for times in (0, 1, 3)]
    each = sample(label, jnp.array([0.0, 1.0, 3.0, 0.0]))
    want = [plain[which][i] for i, which in enumerate((0, 1, 2, 0))]
    np.testing.assert_allclose(each, jnp.stack(want), rtol=1e-4, atol=1e-4)
    assert (plain[0] != plain[1]).all()


def test_guided_leaves_the_variance_alone_and_takes_trees(key):
    condition = {"label": jnp.array([1.0, 2.0]), "text": jnp.ones((2, 5))}
    null = {"label": 0.0, "text": jnp.zeros(5)}

    def denoise(x_t, t, condition):
        assert x_t.shape[0] == t.shape[0] == 4
        strength = condition["label"] + condition["text"].sum(axis=1)
        value = x_t + strength[:, None]
        return jnp.concatenate([value, -value], axis=-1).astype(jnp.bfloat16)

    x_t = jnp.zeros((2, 3))
    output = guided(denoise, null, 2.0)(x_t, jnp.zeros(2, int), condition)
    np.testing.assert_array_equal(output[:, :3], jnp.array([[12.0], [14.0]]) * jnp.ones((1, 3)))
    np.testing.assert_array_equal(output[:, 3:], -jnp.array([[6.0], [7.0]]) * jnp.ones((1, 3)))


def test_no_retrace_for_new_values(key):
    traces = []

    @jax.jit
    def sample(key, num_steps, eta, guidance_scale):
        def denoise(x_t, t, label):
            traces.append(1)
            return by_label(x_t, t, label)

        guide = {
            "condition": jnp.arange(4),
            "null_condition": 0,
            "guidance_scale": guidance_scale,
            "num_steps": num_steps,
        }
        return (
            ancestral(denoise, SCHEDULE, key, SHAPE, **guide),
            ddim(denoise, SCHEDULE, key, SHAPE, eta=eta, **guide),
            ddim_encode(
                denoise, SCHEDULE, jnp.zeros(SHAPE), num_steps=num_steps, condition=jnp.arange(4)
            ),
        )

    first = sample(key, 10, 0.0, 1.0)
    assert len(traces) == 3  # one for each sampler
    for arguments in [(20, 0.0, 1.0), (10, 0.5, 1.0), (10, 0.0, 3.0)]:
        other = sample(key, *arguments)
        assert jnp.isfinite(other[1]).all()
        assert (other[1] != first[1]).any()
    assert len(traces) == 3


def test_traced_steps_equal_static_ones(key):
    def sample(num_steps):
        return ddim(perfect(), SCHEDULE, key, SHAPE, num_steps=num_steps)

    np.testing.assert_allclose(jax.jit(sample)(13), sample(np.int64(13)), atol=1e-5)


def test_a_schedule_may_be_an_argument_and_samples_are_reproducible(key):
    sample = jax.jit(lambda schedule, key: ddim(perfect(), schedule, key, SHAPE, num_steps=5))
    first = sample(SCHEDULE, key)
    np.testing.assert_array_equal(first, sample(SCHEDULE, key))
    assert (first != sample(SCHEDULE, jax.random.key(1))).all()
    assert (jnp.abs(first) <= 1).all()  # clipped


@pytest.mark.parametrize("sampler", [ancestral, ddim])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be from 1 to T = 200, got 0"),
        ({"num_steps": 201}, "got 201"),
        ({"spacing": "uniform"}, "spacing must be one of"),
        ({"prediction": "noise"}, "prediction must be one of eps, x0, v, got 'noise'"),
        ({"guidance_scale": 2.0}, "guidance_scale needs both condition and null_condition"),
        (
            {"guidance_scale": 2.0, "condition": jnp.zeros(4)},
            "guidance_scale needs both condition and null_condition",
        ),
        ({"condition": jnp.zeros(3)}, r"condition must have the batch's 4 .* \(3,\)"),
        (
            {"condition": jnp.zeros(4), "null_condition": 0, "guidance_scale": jnp.ones(3)},
            r"guidance_scale must be a scalar or have shape \(4,\), got \(3,\)",
        ),
    ],
)
def test_bad_arguments(key, sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler(by_label, SCHEDULE, key, SHAPE, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: ancestral(by_label, SCHEDULE, key, (4,)), "shape must be"),
        (lambda key: ancestral(by_label, SCHEDULE, key, (0, 3, 3, 2)), "shape must be"),
        (lambda key: ancestral(by_label, SCHEDULE, key, SHAPE, variance="fixed"), "variance must"),
        (lambda key: ddim(by_label, SCHEDULE, key, SHAPE, eta=-0.1), "eta must be from 0 to 1"),
        (lambda key: ddim(by_label, SCHEDULE, key, SHAPE, eta=2), "eta must be from 0 to 1, got 2"),
        (lambda key: ddim(by_label, SCHEDULE, key, SHAPE, x_T=jnp.ones((4, 1))), "x_T must have"),
        (lambda key: ddim_encode(by_label, SCHEDULE, jnp.ones(SHAPE), num_steps=0), "num_steps"),
        (
            lambda key: ancestral(
                perfect(), SCHEDULE, key, SHAPE, num_steps=2, variance="learned_range"
            ),
            r"must have shape \(4, 3, 3, 4\), got \(4, 3, 3, 2\)",
        ),
    ],
)
def test_more_bad_arguments(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)
