"""Diffusion losses: values by hand, exact bounds of solvable models, masks and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jaxgen.distributions import discretized_gaussian_log_prob
from jaxgen.gaussian_diffusion import PREDICTIONS, p_mean_variance, prediction_target, q_sample
from jaxgen.losses import diffusion
from jaxgen.losses.diffusion import (
    denoising_loss,
    hybrid_loss,
    loss_weight,
    prior_kl,
    variational_bound,
    vb_term,
)
from jaxgen.losses.reduce import masked_mean
from jaxgen.schedules import cosine_betas, discrete_schedule, linear_betas

LINEAR = discrete_schedule(linear_betas(1000))
SHORT = discrete_schedule(linear_betas(20, 5e-3, 0.6))
T = jnp.array([0, 3, 500, 999])
SHAPE = (4, 3, 3, 2)


@pytest.fixture
def data(key):
    """8-bit x0 in [-1, 1], eps, and a denoiser's output."""
    key_x, key_eps, key_output = jax.random.split(key, 3)
    x0 = 2 * jax.random.randint(key_x, SHAPE, 0, 256) / 255 - 1
    return x0, jax.random.normal(key_eps, SHAPE), jax.random.normal(key_output, SHAPE)


def perfect(schedule, mean, std, prediction="eps"):
    """The optimal denoiser, E[x0 | x_t], of independent Gaussian pixels."""

    def denoise(x_t, t, condition):
        a2 = jnp.asarray(schedule.alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        s2 = jnp.asarray(schedule.one_minus_alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        a = jnp.sqrt(a2)
        residual = (x_t - a * mean) / (a2 * std**2 + s2)
        x0, eps = mean + a * std**2 * residual, jnp.sqrt(s2) * residual
        return {"eps": eps, "x0": x0, "v": a * eps - jnp.sqrt(s2) * x0}[prediction]

    return denoise


# The weights on the prediction's own error at SNR 1/4, 4 and 16, with gamma = 5, by hand.
@pytest.mark.parametrize(
    ("weighting", "prediction", "expected"),
    [
        ("simple", "eps", [1, 1, 1]),
        ("simple", "x0", [1, 1, 1]),
        ("simple", "v", [1, 1, 1]),
        ("snr", "eps", [1, 1, 1]),
        ("snr", "x0", [0.25, 4, 16]),
        ("snr", "v", [0.2, 0.8, 16 / 17]),
        ("snr_plus_one", "eps", [5, 1.25, 17 / 16]),
        ("snr_plus_one", "x0", [1.25, 5, 17]),
        ("snr_plus_one", "v", [1, 1, 1]),
        ("truncated_snr", "eps", [4, 1, 1]),
        ("truncated_snr", "x0", [1, 4, 16]),
        ("truncated_snr", "v", [0.8, 0.8, 16 / 17]),
        ("min_snr", "eps", [1, 1, 5 / 16]),
        ("min_snr", "x0", [0.25, 4, 5]),
        ("min_snr", "v", [0.2, 0.8, 5 / 17]),
    ],
)
def test_weights(weighting, prediction, expected):
    weight = loss_weight(jnp.log(jnp.array([0.25, 4.0, 16.0])), prediction, weighting)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_simple_loss_is_the_mean_squared_error(data):
    x0, eps, output = data
    for prediction in PREDICTIONS:
        target = prediction_target(LINEAR, x0, T, eps, prediction)
        want = np.mean((np.asarray(output) - np.asarray(target)) ** 2, axis=(1, 2, 3))
        got = denoising_loss(LINEAR, output, x0, T, eps, prediction=prediction)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert not denoising_loss(LINEAR, target, x0, T, eps, prediction=prediction).any()


@pytest.mark.parametrize("weighting", [w for w in diffusion.WEIGHTINGS if w != "simple"])
def test_a_weighting_is_one_objective_for_all_predictions(data, weighting):
    """The same predicted x0, said as eps, x0 or v, costs the same."""
    x0, eps, guess = data
    t = jnp.array([5, 100, 300, 700])
    x_t = q_sample(LINEAR, x0, t, eps)
    a = jnp.sqrt(jnp.asarray(LINEAR.alphas_cumprod)[t]).reshape(-1, 1, 1, 1)
    s = jnp.sqrt(jnp.asarray(LINEAR.one_minus_alphas_cumprod)[t]).reshape(-1, 1, 1, 1)
    guessed_eps = (x_t - a * guess) / s
    outputs = {"x0": guess, "eps": guessed_eps, "v": a * guessed_eps - s * guess}
    losses = [
        denoising_loss(LINEAR, output, x0, t, eps, prediction=kind, weighting=weighting, gamma=3.0)
        for kind, output in outputs.items()
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)


def test_prior_kl_is_its_formula(data):
    x0, _, _ = data
    for schedule in (LINEAR, SHORT, discrete_schedule([0.1]), discrete_schedule(cosine_betas(50))):
        log_alpha2 = np.log1p(-np.asarray(schedule.betas, float)).sum()
        signal = np.exp(log_alpha2)
        per_dim = signal * np.asarray(x0, float) ** 2 - signal - np.log1p(-signal)
        want = 0.5 * per_dim.sum(axis=(1, 2, 3))
        np.testing.assert_allclose(prior_kl(schedule, x0), want, rtol=1e-3)


def test_decoder_term_is_the_bins_mass(data):
    x0, eps, output = data
    t = jnp.zeros(4, int)
    x_t = q_sample(LINEAR, x0, t, eps)
    got = vb_term(LINEAR, eps + 0.1 * output, x0, x_t, t)
    model = p_mean_variance(LINEAR, eps + 0.1 * output, x_t, t, clip_x0=False)
    mean, std = np.asarray(model.mean, float), np.exp(0.5 * np.asarray(model.log_variance, float))
    pixels = np.asarray(x0, float)
    low = np.where(pixels < -0.999, -np.inf, pixels - 1 / 255)
    high = np.where(pixels > 0.999, np.inf, pixels + 1 / 255)
    mass = ndtr((high - mean) / std) - ndtr((low - mean) / std)
    np.testing.assert_allclose(got, -np.log(mass).sum(axis=(1, 2, 3)), rtol=1e-4)


def test_kl_term_is_a_weighted_error_of_x0(data):
    """With equal variances, L_t = (SNR_{t-1} - SNR_t) |x0 - x0_hat|^2 / 2 (Kingma et al. 2021)."""
    x0, eps, guess = data
    t = jnp.array([1, 10, 500, 999])
    x_t = q_sample(LINEAR, x0, t, eps)
    got = vb_term(LINEAR, guess, x0, x_t, t, prediction="x0", variance="small")
    snr = np.exp(np.asarray(LINEAR.log_snr, float))
    error = ((np.asarray(x0) - np.asarray(guess)) ** 2).sum(axis=(1, 2, 3))
    want = 0.5 * (snr[np.asarray(t) - 1] - snr[np.asarray(t)]) * error
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bound_of_a_single_image_is_tight(key, prediction):
    """Where all data is one image the optimal steps are exact: only prior and decoder cost."""
    x0 = 2 * jnp.tile(jnp.array([0.0, 77, 128, 255]).reshape(1, 2, 2, 1), (3, 1, 1, 1)) / 255 - 1
    nats, terms = jax.jit(
        lambda x0: variational_bound(
            perfect(SHORT, x0, 0.0, prediction),
            SHORT,
            x0,
            key,
            prediction=prediction,
            variance="small",
        )
    )(x0)
    decoder = discretized_gaussian_log_prob(x0, x0, jnp.asarray(SHORT.posterior_log_variance[0]))
    np.testing.assert_allclose(terms["diffusion_kl"], 0, atol=1e-4)
    np.testing.assert_allclose(terms["decoder_nll"], -decoder.sum(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(terms["prior_kl"], prior_kl(SHORT, x0), rtol=1e-6)
    np.testing.assert_allclose(nats, sum(terms.values()))


def test_bound_of_gaussian_data_is_nearly_its_entropy(key):
    """With the optimal denoiser and many steps nothing is lost but the steps' discretization."""
    mean, std = 0.1, 0.2
    x0 = jnp.round((mean + std * jax.random.normal(key, (128, 4, 4, 1)) + 1) * 127.5) / 127.5 - 1
    denoise = perfect(LINEAR, mean, std)
    nats, _ = jax.jit(lambda key: variational_bound(denoise, LINEAR, x0, key))(key)
    entropy = 16 * (0.5 * np.log(2 * np.pi * np.e * std**2) - np.log(2 / 255))
    error = 4 * float(nats.std()) / np.sqrt(128)
    assert error < 0.03 * entropy
    assert entropy - error < nats.mean() < 1.02 * entropy + error


def test_steps_of_gaussian_data_cost_what_theory_says(key):
    """E[L_t] = (SNR_{t-1} - SNR_t) Var(x0 | x_t) / 2 for the optimal denoiser."""
    mean, std = 0.1, 0.7
    x0 = mean + std * jax.random.normal(key, (4096, 2, 1, 1))
    _, terms = jax.jit(
        lambda key: variational_bound(
            perfect(SHORT, mean, std), SHORT, x0, key, variance="small", clip_x0=False
        )
    )(jax.random.key(1))
    snr = np.exp(np.asarray(SHORT.log_snr, float))
    variance = std**2 / (1 + std**2 * snr)
    want = 2 * 0.5 * np.sum((snr[:-1] - snr[1:]) * variance[1:])
    error = float(terms["diffusion_kl"].std()) / np.sqrt(4096)
    assert error < 0.02 * want
    assert terms["diffusion_kl"].mean() == pytest.approx(want, abs=4 * error)


def test_fewer_timesteps_estimate_the_same_bound(key):
    mean, std = 0.1, 0.2
    x0 = mean + std * jax.random.normal(key, (1024, 2, 2, 1))
    denoise = perfect(SHORT, mean, 2 * std)  # a wrong model, so that the terms matter
    keys = jax.random.split(jax.random.key(1), 2)
    (exact, exact_terms), (rough, rough_terms) = (
        jax.jit(
            lambda x0, key, num=num: variational_bound(
                denoise, SHORT, x0, key, num_timesteps=num, variance="small"
            )
        )(x0, key)
        for num, key in zip((None, 4), keys, strict=True)
    )
    for name in exact_terms:
        difference = exact_terms[name] - rough_terms[name]
        error = float(difference.std()) / np.sqrt(1024)
        assert abs(difference.mean()) <= 4 * error, name
    assert rough.std() > exact.std()


def test_strata_cover_every_step_once():
    """Summed over strata, weights times probabilities give each t weight 1: unbiased."""
    seen = []

    def denoise(x_t, t, condition):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return jnp.zeros_like(x_t)

    x0 = jnp.zeros((2000, 1))
    for num in (20, 7, 2):
        seen.clear()
        jax.block_until_ready(
            variational_bound(denoise, SHORT, x0, jax.random.key(num), num_timesteps=num)
        )
        jax.effects_barrier()
        seen.sort(key=lambda t: t.mean())
        assert len(seen) == num
        assert set(seen[0]) == {0}
        values = [set(t.tolist()) for t in seen]
        assert sorted(v for stratum in values for v in stratum) == list(range(20))
        assert max(map(len, values[1:])) - min(map(len, values[1:])) <= 1


def test_bound_passes_the_condition_and_takes_one_trace(key):
    traces = []

    @jax.jit
    def bound(x0, key, label):
        def denoise(x_t, t, condition):
            traces.append(1)
            return x_t + condition.reshape(-1, 1, 1, 1)

        return variational_bound(denoise, SHORT, x0, key, condition=label)[0]

    x0 = jnp.zeros(SHAPE)
    first = bound(x0, key, jnp.zeros(4))
    assert (bound(x0, key, jnp.ones(4)) != first).all()
    assert len(traces) == 1


def test_hybrid_trains_the_variance_by_the_bound_and_the_mean_by_the_error(data):
    x0, eps, mean = data
    spread = 0.3 * jnp.ones(SHAPE)

    def hybrid(mean, spread):
        output = jnp.concatenate([mean, spread], axis=-1)
        return hybrid_loss(LINEAR, output, x0, T, eps, vb_weight=0.5).sum()

    def simple(mean):
        return denoising_loss(LINEAR, mean, x0, T, eps).sum()

    def bound(spread):
        output = jnp.concatenate([mean, spread], axis=-1)
        x_t = q_sample(LINEAR, x0, T, eps)
        nats = vb_term(LINEAR, output, x0, x_t, T, variance="learned_range").sum()
        return 0.5 * 1000 * nats / (18 * np.log(2))

    np.testing.assert_allclose(hybrid(mean, spread), simple(mean) + bound(spread), rtol=1e-5)
    by_mean, by_spread = jax.grad(hybrid, argnums=(0, 1))(mean, spread)
    np.testing.assert_allclose(by_mean, jax.grad(simple)(mean), rtol=1e-5)
    np.testing.assert_allclose(by_spread, jax.grad(bound)(spread), rtol=1e-5)
    assert (by_spread != 0).all()


def test_mask_equals_slicing(data):
    x0, eps, output = data
    mask = jnp.array([1.0, 0.0, 1.0, 1.0])
    keep = np.array([0, 2, 3])

    def losses(x0, eps, output, t):
        x_t = q_sample(LINEAR, x0, t, eps)
        return (
            denoising_loss(LINEAR, output, x0, t, eps),
            vb_term(LINEAR, output, x0, x_t, t),
            prior_kl(LINEAR, x0),
        )

    broken = x0.at[1].set(jnp.nan)
    masked = losses(broken, eps, output, T)
    sliced = losses(x0[keep], eps[keep], output[keep], T[keep])
    for whole, part in zip(masked, sliced, strict=True):
        np.testing.assert_allclose(masked_mean(whole, mask), part.mean(), rtol=1e-6)


@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
@pytest.mark.parametrize("schedule", [LINEAR, discrete_schedule(cosine_betas(1000))])
def test_gradients_are_finite_at_extremes(data, variance, schedule):
    x0, eps, output = data
    x0 = jnp.sign(x0)
    t = jnp.array([0, 1, 998, 999])

    @jax.jit
    @jax.grad
    def gradient(scale):
        x_t = q_sample(schedule, x0, t, eps)
        spread = [20 * output] if variance == "learned_range" else []
        both = jnp.concatenate([scale * output, *spread], axis=-1)
        total = vb_term(schedule, both, x0, x_t, t, variance=variance).sum()
        for weighting in diffusion.WEIGHTINGS:
            loss = denoising_loss(
                schedule, scale * output, x0, t, eps, prediction="x0", weighting=weighting
            )
            total += loss.sum()
        return total

    for scale in (0.0, 1.0, 1e3):
        assert jnp.isfinite(gradient(scale))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_timesteps": 1}, "num_timesteps must be from 2 to T = 20, got 1"),
        ({"num_timesteps": 21}, "got 21"),
        ({"prediction": "noise"}, "prediction must be one of"),
        ({"variance": "learned"}, "variance must be one of"),
        ({"variance": "learned_range"}, r"\(4, 3, 3, 4\)"),
    ],
)
def test_bad_bound_arguments(key, arguments, message):
    with pytest.raises(ValueError, match=message):
        variational_bound(lambda x, t, c: x, SHORT, jnp.zeros(SHAPE), key, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "noise"}, "prediction must be one of eps, x0, v, got 'noise'"),
        ({"weighting": "p2"}, "weighting must be one of simple, snr"),
        ({"gamma": 0.0, "weighting": "min_snr"}, "gamma must be positive, got 0.0"),
    ],
)
def test_bad_loss_arguments(data, arguments, message):
    x0, eps, output = data
    with pytest.raises(ValueError, match=message):
        denoising_loss(LINEAR, output, x0, T, eps, **arguments)


def test_bound_of_a_chain_of_one_step(key):
    schedule = discrete_schedule([0.3])
    _, terms = variational_bound(lambda x, t, c: x, schedule, jnp.zeros(SHAPE), key)
    assert not terms["diffusion_kl"].any()
    assert (terms["decoder_nll"] > 0).all()
