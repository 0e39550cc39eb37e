"""Diffusion losses: values by hand, exact bounds of solvable models, masks and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jaxgen.distributions.elementwise import discretized_gaussian_log_prob
from jaxgen.losses.diffusion import (
    bound_loss,
    denoising_loss,
    edm_weight,
    hybrid_loss,
    likelihood,
    min_snr,
    p2,
    prior_kl,
    simple,
    snr,
    snr_plus_one,
    truncated_snr,
    variational_bound,
    vb_term,
)
from jaxgen.losses.reduce import weighted_mean
from jaxgen.noise import parametrization
from jaxgen.noise.chain import (
    chain,
    cosine_betas,
    large_variance,
    learned_variance,
    linear_betas,
    posterior_mean,
    small_variance,
)
from jaxgen.noise.parametrization import EPS, X0, Denoised, V, denoiser, interpret
from jaxgen.noise.process import Level, edm, q_sample, ve
from jaxgen.sampling.guidance import clip_x0

LINEAR = chain(linear_betas(1000))
SHORT = chain(linear_betas(20, 5e-3, 0.6))
PARAMETRIZATIONS = {"eps": EPS, "x0": X0, "v": V}
WEIGHTINGS = {
    "simple": simple,
    "snr": snr,
    "snr_plus_one": snr_plus_one,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr(),
}
T = jnp.array([0, 3, 500, 999])
SHAPE = (4, 3, 3, 2)


@pytest.fixture
def data(key):
    """8-bit x0 in [-1, 1], eps, and a denoiser's output."""
    key_x, key_eps, key_output = jax.random.split(key, 3)
    x0 = 2 * jax.random.randint(key_x, SHAPE, 0, 256) / 255 - 1
    return x0, jax.random.normal(key_eps, SHAPE), jax.random.normal(key_output, SHAPE)


def perfect(mean, std, prediction="eps"):
    """The optimal denoiser, E[x0 | x_t], of independent Gaussian pixels, clipped to their range."""
    return clip_x0(perfect_unclipped(mean, std, prediction))


def perfect_unclipped(mean, std, prediction="eps"):
    def denoise(x_t, level, condition):
        a = level.alpha.reshape(-1, 1, 1, 1)
        s = level.sigma.reshape(-1, 1, 1, 1)
        residual = (x_t - a * mean) / (a**2 * std**2 + s**2)
        x0, eps = mean + a * std**2 * residual, s * residual
        output = {"eps": eps, "x0": x0, "v": a * eps - s * x0}[prediction]
        return interpret(PARAMETRIZATIONS[prediction], output, x_t, level)

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
    ratio = jnp.array([0.25, 4.0, 16.0])
    level = Level(jnp.sqrt(ratio / (ratio + 1)), jnp.sqrt(1 / (ratio + 1)), jnp.arange(3))
    weight = WEIGHTINGS[weighting](level, PARAMETRIZATIONS[prediction])
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_simple_loss_is_the_mean_squared_error(data):
    (x0, eps, output), level = data, LINEAR.at(T)
    for predicts in PARAMETRIZATIONS.values():
        target = predicts.target(x0, eps, level)
        want = np.mean((np.asarray(output) - np.asarray(target)) ** 2, axis=(1, 2, 3))
        got = denoising_loss(output, x0, eps, level, predicts)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert not denoising_loss(target, x0, eps, level, predicts).any()


@pytest.mark.parametrize("weighting", [snr, snr_plus_one, truncated_snr, min_snr(3.0)])
def test_a_weighting_is_one_objective_for_all_predictions(data, weighting):
    """The same predicted x0, said as eps, x0 or v, costs the same."""
    x0, eps, guess = data
    t = jnp.array([5, 100, 300, 700])
    level = LINEAR.at(t)
    x_t = q_sample(x0, eps, level)
    a, s = (values.reshape(-1, 1, 1, 1) for values in (level.alpha, level.sigma))
    guessed_eps = (x_t - a * guess) / s
    outputs = {"x0": guess, "eps": guessed_eps, "v": a * guessed_eps - s * guess}
    losses = [
        denoising_loss(output, x0, eps, level, PARAMETRIZATIONS[kind], weighting)
        for kind, output in outputs.items()
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)


def test_prior_kl_is_its_formula(data):
    x0, _, _ = data
    for steps in (LINEAR, SHORT, chain([0.1]), chain(cosine_betas(50))):
        log_alpha2 = np.log1p(-np.asarray(steps.betas, float)).sum()
        signal = np.exp(log_alpha2)
        per_dim = signal * np.asarray(x0, float) ** 2 - signal - np.log1p(-signal)
        want = 0.5 * per_dim.sum(axis=(1, 2, 3))
        np.testing.assert_allclose(prior_kl(steps, x0), want, rtol=1e-3)


def test_decoder_term_is_the_bins_mass(data):
    x0, eps, output = data
    t = jnp.zeros(4, int)
    level, posterior = LINEAR.at(t), LINEAR.posterior(t)
    x_t = q_sample(x0, eps, level)
    denoised = interpret(EPS, eps + 0.1 * output, x_t, level)
    got = vb_term(LINEAR, denoised, x0, x_t, t)
    mean = np.asarray(posterior_mean(posterior, denoised.x0, x_t), float)
    std = np.exp(0.5 * np.asarray(large_variance(posterior, denoised), float))
    pixels = np.asarray(x0, float)
    low = np.where(pixels < -0.999, -np.inf, pixels - 1 / 255)
    high = np.where(pixels > 0.999, np.inf, pixels + 1 / 255)
    mass = ndtr((high - mean) / std) - ndtr((low - mean) / std)
    np.testing.assert_allclose(got, -np.log(mass).sum(axis=(1, 2, 3)), rtol=1e-4)


def test_kl_term_is_a_weighted_error_of_x0(data):
    """With equal variances, L_t = (SNR_{t-1} - SNR_t) |x0 - x0_hat|^2 / 2 (Kingma et al. 2021)."""
    x0, eps, guess = data
    t = jnp.array([1, 10, 500, 999])
    x_t = q_sample(x0, eps, LINEAR.at(t))
    got = vb_term(LINEAR, Denoised(guess), x0, x_t, t, variance=small_variance)
    snr = np.exp(np.asarray(LINEAR.log_snr, float))
    error = ((np.asarray(x0) - np.asarray(guess)) ** 2).sum(axis=(1, 2, 3))
    want = 0.5 * (snr[np.asarray(t) - 1] - snr[np.asarray(t)]) * error
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize("prediction", PARAMETRIZATIONS)
def test_bound_of_a_single_image_is_tight(key, prediction):
    """Where all data is one image the optimal steps are exact: only prior and decoder cost."""
    x0 = 2 * jnp.tile(jnp.array([0.0, 77, 128, 255]).reshape(1, 2, 2, 1), (3, 1, 1, 1)) / 255 - 1
    nats, terms = jax.jit(
        lambda x0: variational_bound(
            perfect(x0, 0.0, prediction), SHORT, x0, key, variance=small_variance
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
    denoise = perfect(mean, std)
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
            perfect_unclipped(mean, std), SHORT, x0, key, variance=small_variance
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
    denoise = perfect(mean, 2 * std)  # a wrong model, so that the terms matter
    keys = jax.random.split(jax.random.key(1), 2)
    (exact, exact_terms), (rough, rough_terms) = (
        jax.jit(
            lambda x0, key, num=num: variational_bound(
                denoise, SHORT, x0, key, num_timesteps=num, variance=small_variance
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

    def denoise(x_t, level, condition):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), level.time)
        return Denoised(jnp.zeros_like(x_t))

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
        def network(x_t, t, condition):
            traces.append(1)
            return x_t + condition.reshape(-1, 1, 1, 1)

        denoise = clip_x0(denoiser(network, EPS))
        return variational_bound(denoise, SHORT, x0, key, condition=label)[0]

    x0 = jnp.zeros(SHAPE)
    first = bound(x0, key, jnp.zeros(4))
    assert (bound(x0, key, jnp.ones(4)) != first).all()
    assert len(traces) == 1


def test_hybrid_trains_the_variance_by_the_bound_and_the_mean_by_the_error(data):
    (x0, eps, mean), level = data, LINEAR.at(T)
    spread = 0.3 * jnp.ones(SHAPE)

    def hybrid(mean, spread):
        output = jnp.concatenate([mean, spread], axis=-1)
        return hybrid_loss(LINEAR, output, x0, eps, T, vb_weight=0.5).sum()

    def simple(mean):
        return denoising_loss(mean, x0, eps, level).sum()

    def bound(spread):
        output = jnp.concatenate([mean, spread], axis=-1)
        x_t = q_sample(x0, eps, level)
        denoised = interpret(EPS, output, x_t, level)
        nats = vb_term(LINEAR, denoised, x0, x_t, T, variance=learned_variance).sum()
        return 0.5 * 1000 * nats / (18 * np.log(2))

    np.testing.assert_allclose(hybrid(mean, spread), simple(mean) + bound(spread), rtol=1e-5)
    by_mean, by_spread = jax.grad(hybrid, argnums=(0, 1))(mean, spread)
    np.testing.assert_allclose(by_mean, jax.grad(simple)(mean), rtol=1e-5)
    np.testing.assert_allclose(by_spread, jax.grad(bound)(spread), rtol=1e-5)
    assert (by_spread != 0).all()


def test_weight_equals_slicing(data):
    x0, eps, output = data
    weight = jnp.array([1.0, 0.0, 1.0, 1.0])
    keep = np.array([0, 2, 3])

    def losses(x0, eps, output, t):
        level = LINEAR.at(t)
        x_t = q_sample(x0, eps, level)
        return (
            denoising_loss(output, x0, eps, level),
            vb_term(LINEAR, interpret(EPS, output, x_t, level), x0, x_t, t),
            prior_kl(LINEAR, x0),
        )

    broken = x0.at[1].set(jnp.nan)
    weighted = losses(broken, eps, output, T)
    sliced = losses(x0[keep], eps[keep], output[keep], T[keep])
    for whole, part in zip(weighted, sliced, strict=True):
        np.testing.assert_allclose(weighted_mean(whole, weight), part.mean(), rtol=1e-6)


@pytest.mark.parametrize("variance", [small_variance, large_variance, learned_variance])
@pytest.mark.parametrize("steps", [LINEAR, chain(cosine_betas(1000))], ids=["linear", "cosine"])
def test_gradients_are_finite_at_extremes(data, variance, steps):
    x0, eps, output = data
    x0 = jnp.sign(x0)
    t = jnp.array([0, 1, 998, 999])
    level = steps.at(t)

    @jax.jit
    @jax.grad
    def gradient(scale):
        x_t = q_sample(x0, eps, level)
        spread = [20 * output] if variance is learned_variance else []
        both = jnp.concatenate([scale * output, *spread], axis=-1)
        denoised = interpret(EPS, both, x_t, level)
        total = vb_term(steps, denoised, x0, x_t, t, variance=variance).sum()
        for weighting in WEIGHTINGS.values():
            total += denoising_loss(scale * output, x0, eps, level, X0, weighting).sum()
        return total

    for scale in (0.0, 1.0, 1e3):
        assert jnp.isfinite(gradient(scale))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_timesteps": 1}, "num_timesteps must be from 2 to T = 20, got 1"),
        ({"num_timesteps": 21}, "got 21"),
        ({"variance": learned_variance}, r"ones of shape \(4, 3, 3, 2\), got None"),
    ],
)
def test_bad_bound_arguments(key, arguments, message):
    with pytest.raises(ValueError, match=message):
        variational_bound(
            lambda x, level, c: Denoised(x), SHORT, jnp.zeros(SHAPE), key, **arguments
        )


@pytest.mark.parametrize("gamma", [0.0, -1.0, np.nan])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match=f"gamma must be positive, got {gamma}"):
        min_snr(gamma)


def test_bound_of_a_chain_of_one_step(key):
    denoise = clip_x0(denoiser(lambda x, t, c: x, EPS))
    _, terms = variational_bound(denoise, chain([0.3]), jnp.zeros(SHAPE), key)
    assert not terms["diffusion_kl"].any()
    assert (terms["decoder_nll"] > 0).all()


LEVEL = edm().at(jnp.array([0.02, 0.5, 7.0]))
SIGMA = np.array([0.02, 0.5, 7.0])


def test_edm_weight_is_the_papers():
    """lambda of the data's error (table 1), and 1 of the network's with the preconditioning."""
    weight = edm_weight(0.5)
    want = (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2
    np.testing.assert_allclose(weight(LEVEL, X0), want, rtol=1e-5)
    np.testing.assert_allclose(weight(LEVEL, parametrization.edm(0.5)), 1, rtol=1e-5)


def test_p2_weight_is_the_papers():
    snr = 1 / SIGMA**2
    np.testing.assert_allclose(p2(0.7, 2.0)(LEVEL, EPS), (2 + snr) ** -0.7, rtol=1e-5)
    np.testing.assert_allclose(p2(0.0)(LEVEL, EPS), 1, rtol=1e-5)


def test_likelihood_weight_is_that_of_the_score():
    """EDM's g^2 is 2 sigma; VE's 2 sigma^2 log(max / min), so its weight of eps is constant."""
    np.testing.assert_allclose(
        likelihood(edm())(LEVEL, parametrization.SCORE), 2 * SIGMA, rtol=1e-4
    )
    level = ve().at(jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(likelihood(ve())(level, EPS), 2 * np.log(5000), rtol=1e-4)


def test_bad_weights():
    with pytest.raises(ValueError, match="k must be positive, got 0"):
        p2(1.0, 0.0)
    with pytest.raises(ValueError, match="sigma_data must be positive, got 0"):
        edm_weight(0.0)


def test_the_bound_loss_is_the_bound_by_one_term(data):
    """T times a term; over all t the sum is that of the terms, which is the bound's."""
    x0, eps, output = data
    both = jnp.concatenate([output, 0.3 * output], axis=-1)
    t = jnp.array([0, 3, 7, 19])
    x_t = q_sample(x0, eps, SHORT.at(t))
    denoised = interpret(EPS, both, x_t, SHORT.at(t))
    want = 20 * vb_term(SHORT, denoised, x0, x_t, t, variance=learned_variance)
    np.testing.assert_allclose(bound_loss(SHORT, both, x0, eps, t), want, rtol=1e-6)
    small = bound_loss(SHORT, output, x0, eps, t, variance=small_variance)
    want = 20 * vb_term(SHORT, denoised, x0, x_t, t, variance=small_variance)
    np.testing.assert_allclose(small, want, rtol=1e-6)
    # Both halves of the output have a gradient: the mean is trained by the bound too.
    slope = jax.grad(lambda output: bound_loss(SHORT, output, x0, eps, t).sum())(both)
    assert all(np.abs(part).min(axis=(1, 2, 3)).max() > 0 for part in np.split(slope, 2, -1))
