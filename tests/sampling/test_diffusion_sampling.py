"""Samplers on solvable models, against exact recursions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.chain import (
    chain,
    large_variance,
    learned_variance,
    levels_of,
    linear_betas,
    small_variance,
)
from jaxgen.noise.levels import Posterior, reverse
from jaxgen.noise.parametrization import EPS, X0, Denoised, V, denoiser
from jaxgen.noise.process import Level
from jaxgen.noise.spacing import leading, linspace, quadratic, trailing
from jaxgen.sampling.guidance import clip_x0, guided
from jaxgen.sampling.solvers import Step, ancestral, ddim, solve

BETAS = linear_betas(200, 5e-4, 0.1)
CHAIN = chain(BETAS)
MEAN, STD = 0.3, 0.5
SHAPE = (4, 3, 3, 2)
PARAMETRIZATIONS = {"eps": EPS, "x0": X0, "v": V}
VARIANCES = {"small": small_variance, "large": large_variance}


def sample(
    denoise,
    key,
    solver=ancestral(),  # noqa: B008
    num_steps=None,
    spacing=linspace,
    *,
    start=None,
    shape=SHAPE,
    steps=CHAIN,
    condition=None,
):
    """From noise to data, as the family draws."""
    key_start, key_steps = jax.random.split(key)
    x = steps.prior_std * standard_normal(key_start, shape) if start is None else start
    levels = levels_of(steps, num_steps, spacing)
    return solve(denoise, levels, solver, key_steps, x, condition=condition)


def perfect_network(prediction="eps", mean=MEAN, std=STD, steps=CHAIN):
    """The optimal network, by E[x0 | x_t], of independent Gaussian pixels."""

    def network(x_t, t, condition):
        a2 = jnp.asarray(steps.alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        s2 = jnp.asarray(steps.one_minus_alphas_cumprod)[t].reshape(-1, 1, 1, 1)
        a = jnp.sqrt(a2)
        residual = (x_t - a * mean) / (a2 * std**2 + s2)
        x0, eps = mean + a * std**2 * residual, jnp.sqrt(s2) * residual
        return {"eps": eps, "x0": x0, "v": a * eps - jnp.sqrt(s2) * x0}[prediction]

    return network


def perfect(prediction="eps", **options):
    return denoiser(perfect_network(prediction, **options), PARAMETRIZATIONS[prediction])


def kept(num_steps, spacing, betas=BETAS):
    """alphas_cumprod at the kept steps, in float64, and before each of them."""
    timesteps = np.asarray(spacing(len(betas), num_steps))[:num_steps]
    signal = np.cumprod(1 - betas)[timesteps]
    return signal, np.concatenate([[1.0], signal[:-1]])


def gain(signal, std=STD):
    """E[x0 | x_t] of the Gaussian data is `mean + gain (x_t - alpha mean)`."""
    return np.sqrt(signal) * std**2 / (signal * std**2 + 1 - signal)


def ancestral_moments(num_steps, variance, spacing=linspace, betas=BETAS, data=(MEAN, STD)):
    """Mean and variance of the samples: the chain is linear, so they follow a recursion."""
    mean, var, (data_mean, std) = 0.0, 1.0, data
    for i, (a, b) in reversed(list(enumerate(zip(*kept(num_steps, spacing, betas), strict=True)))):
        beta = 1 - a / b
        to_x0, to_xt = np.sqrt(b) * beta / (1 - a), np.sqrt(1 - beta) * (1 - b) / (1 - a)
        slope = to_x0 * gain(a, std) + to_xt
        noise = {"small": beta * (1 - b) / (1 - a), "large": beta}[variance] * (i > 0)
        mean = slope * mean + to_x0 * (data_mean - gain(a, std) * np.sqrt(a) * data_mean)
        var = slope**2 * var + noise
    return mean, var


def ddim_map(x, num_steps, spacing, eta=0.0, noise=None):
    """DDIM of the Gaussian data in float64, with the i-th noise at the step from level i."""
    for i, (a, b) in reversed(list(enumerate(zip(*kept(num_steps, spacing), strict=True)))):
        x0 = MEAN + gain(a) * (x - np.sqrt(a) * MEAN)
        s2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(b) * x0 + np.sqrt(1 - b - s2) * eps
        if eta:
            x = x + np.sqrt(s2) * noise[i]
    return x


@pytest.mark.parametrize("variance", VARIANCES)
def test_ancestral_samples_have_the_chains_moments(key, variance):
    @jax.jit
    def draw(num_steps):
        solver = ancestral(VARIANCES[variance])
        return sample(perfect(), key, solver, num_steps, shape=(4096, 2, 2, 1))

    for num_steps in (200, 20, 1):
        x = np.asarray(draw(num_steps), float)
        mean, var = ancestral_moments(num_steps, variance)
        assert x.mean() == pytest.approx(mean, abs=4 * np.sqrt(var / x.size))
        assert x.var() == pytest.approx(var, rel=4 * np.sqrt(2 / x.size))
        if num_steps == 200:  # and these are the data's
            assert mean == pytest.approx(MEAN, abs=0.01)
            assert np.sqrt(var) == pytest.approx(STD, rel=0.05)


LONG = linear_betas(1000)
FINE = {"betas": LONG, "data": (0.0, 0.1)}  # the least that few steps must not drown in noise


@pytest.mark.parametrize("spacing", [linspace, leading, trailing, quadratic])
def test_few_steps_by_default_neither_add_noise_nor_lose_what_the_data_have(key, spacing):
    """Of data N(0, 0.1^2) under the paper's chain of 1000 steps; the documented numbers too."""
    steps, documented = chain(LONG), {linspace: (0.043, 0.103), trailing: (0.047, 0.103)}

    @jax.jit
    def draw(num_steps):
        denoise = perfect(mean=0.0, std=0.1, steps=steps)
        return sample(
            denoise, key, ancestral(), num_steps, spacing, shape=(4096, 2, 2, 1), steps=steps
        )

    for index, num_steps in enumerate((10, 50)):
        std = float(draw(num_steps).std())
        _, large = ancestral_moments(num_steps, "large", spacing, **FINE)
        _, small = ancestral_moments(num_steps, "small", spacing, **FINE)
        assert np.sqrt(small) < std  # nearer to 0.1 than what is drawn too narrow,
        assert (0.04, 0.095)[index] < std < 0.11  # and not noisy
        assert std < 1.03 * np.sqrt(large)
        if spacing in documented:
            assert std == pytest.approx(documented[spacing][index], rel=0.02)
    if spacing is linspace:
        for num_steps, kind, want in [(10, "large", 0.354), (50, "large", 0.129)]:
            _, var = ancestral_moments(num_steps, kind, linspace, **FINE)
            assert np.sqrt(var) == pytest.approx(want, abs=5e-4)
        for num_steps, want in [(10, 0.027), (50, 0.068)]:
            _, var = ancestral_moments(num_steps, "small", linspace, **FINE)
            assert np.sqrt(var) == pytest.approx(want, abs=5e-4)


def test_few_steps_bring_at_most_four_times_the_noise_of_the_level_by_default(key):
    """The variance is large up to that, and small beyond."""
    one, x = jnp.ones(2), jnp.zeros((2, 3, 3, 1))
    posterior = Posterior(one, one, jnp.log(0.01 * one), added=jnp.array([4 * 0.99, 4 * 1.01]))
    counts = (jnp.int32(0), jnp.int32(2))
    step = Step(Level(one, 2 * one, one), Level(one, one, one), posterior, False, *counts)
    got, _ = ancestral().step(lambda x, level: Denoised(x, None), step, x, (), key)
    deviation = jnp.sqrt(jnp.array([4 * 0.99, 0.01])).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(got, deviation * standard_normal(key, x.shape), rtol=1e-5)


def test_all_steps_by_default_have_the_papers_variance(key):
    """Also where the chain is so short that a step brings much noise."""
    short = chain(linear_betas(20, 5e-3, 0.999))
    default, large = (
        sample(perfect(steps=short), key, solver, steps=short)
        for solver in (ancestral(), ancestral(large_variance))
    )
    np.testing.assert_array_equal(default, large)


@pytest.mark.parametrize(
    ("prediction", "spacing"),
    [("eps", leading), ("x0", linspace), ("v", trailing), ("eps", quadratic)],
)
def test_ddim_is_its_recursion(key, prediction, spacing):
    start = jax.random.normal(key, SHAPE)

    def network(x_t, t, condition):
        output = perfect_network(prediction)(x_t, t, condition)
        # A learned variance, which is to be ignored.
        return jnp.concatenate([output, x_t], axis=-1) if prediction == "v" else output

    @jax.jit
    def draw(num_steps):
        denoise = denoiser(network, PARAMETRIZATIONS[prediction])
        return sample(denoise, key, ddim(), num_steps, spacing, start=start)

    for num_steps in (1, 2, 7, 50, 199, 200):
        want = ddim_map(np.asarray(start, float), num_steps, spacing)
        # An eps of relative error u gives x0 an error of u sigma / alpha, 150 at the last level.
        tolerance = (1e-4 if prediction == "eps" else 3e-5) * (1 + np.abs(want).max())
        np.testing.assert_allclose(draw(num_steps), want, atol=tolerance)


def test_ddim_with_noise_is_its_recursion(key):
    """With the very noise that it draws; at eta = 1/2 it has a quarter of the variance."""
    start = jax.random.normal(key, SHAPE)

    @jax.jit
    def draw(num_steps, eta):
        return sample(perfect(), key, ddim(eta), num_steps, start=start)

    _, key_steps = jax.random.split(key)
    noise = [
        np.asarray(standard_normal(jax.random.fold_in(key_steps, i), SHAPE), float)
        for i in range(20)
    ]
    for num_steps, eta in [(5, 0.5), (20, 0.5), (20, 0.3), (20, 1.0)]:
        want = ddim_map(np.asarray(start, float), num_steps, linspace, eta, noise)
        np.testing.assert_allclose(draw(num_steps, eta), want, atol=1e-4)


def test_ddim_reaches_the_data(key):
    """With every step the map is the probability-flow ODE's: it carries quantiles to quantiles."""
    start = jax.random.normal(key, SHAPE)
    x0 = sample(perfect(), key, ddim(), start=start)
    np.testing.assert_allclose(x0, MEAN + STD * start, atol=0.03)


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_eta_one_and_every_step_is_ancestral(key, clip):
    denoise = clip_x0(perfect()) if clip else perfect()
    small = sample(denoise, key, ancestral(small_variance))
    noisy = sample(denoise, key, ddim(1.0))
    np.testing.assert_allclose(noisy, small, atol=1e-4)


def test_a_learned_variance_at_its_ends_is_the_fixed_one(key):
    def learned(sign):
        def network(x_t, t, condition):
            output = perfect_network()(x_t, t, None)
            return jnp.concatenate([output, jnp.full(x_t.shape, sign)], axis=-1)

        return denoiser(network, EPS)

    def draw(denoise, variance):
        return sample(clip_x0(denoise), key, ancestral(variance), 10)

    by_default = jax.jit(lambda sign: draw(learned(sign), None))
    by_name = jax.jit(lambda sign: draw(learned(sign), learned_variance))
    for sign, variance in ((-1.0, small_variance), (1.0, large_variance)):
        fixed = draw(perfect(), variance)
        np.testing.assert_allclose(by_name(sign), fixed, atol=1e-5)
        np.testing.assert_array_equal(by_default(sign), by_name(sign))
    # A fixed variance is free to be chosen in the place of the learned one.
    np.testing.assert_allclose(draw(learned(-1.0), large_variance), fixed, atol=1e-5)


def bimodal(x_t, t, condition):
    """The optimal x0-prediction of pixels that are -0.7 or 0.4, each with deviation 0.1."""
    a = jnp.sqrt(jnp.asarray(CHAIN.alphas_cumprod)[t]).reshape(-1, 1, 1, 1)
    s2 = jnp.asarray(CHAIN.one_minus_alphas_cumprod)[t].reshape(-1, 1, 1, 1)
    total = a**2 * 0.01 + s2
    low, high = (c + a * 0.01 * (x_t - a * c) / total for c in (-0.7, 0.4))
    odds = (jnp.square(x_t + a * 0.7) - jnp.square(x_t - a * 0.4)) / (2 * total)
    return low + jax.nn.sigmoid(odds) * (high - low)


def encode(denoise, x0, num_steps, spacing=leading):
    """DDIM backwards, from data to noise."""
    return solve(denoise, reverse(levels_of(CHAIN, num_steps, spacing)), ddim(), KEY, x0)


KEY = jax.random.key(9)  # not drawn from


def test_encode_then_decode_gives_the_data_back(key):
    x0 = jnp.where(jax.random.bernoulli(key, 0.5, SHAPE), -0.7, 0.4)
    x0 = x0 + 0.1 * jax.random.normal(jax.random.key(1), SHAPE)
    denoise = denoiser(bimodal, X0)
    up = jax.jit(lambda num_steps: encode(denoise, x0, num_steps))
    down = jax.jit(lambda x, num: sample(denoise, key, ddim(), num, leading, start=x))
    x_T = up(200)
    back = down(x_T, 200)
    np.testing.assert_allclose(back, x0, atol=0.03)
    assert abs(float(x_T.std()) - 1) < 0.3
    rough_back = down(up(10), 10)
    assert jnp.abs(back - x0).mean() < 0.3 * jnp.abs(rough_back - x0).mean()


def test_encoding_gaussian_data_standardizes_it(key):
    x0 = MEAN + STD * jax.random.normal(key, SHAPE)
    np.testing.assert_allclose(encode(perfect("v"), x0, 200), (x0 - MEAN) / STD, atol=0.05)


def encode_map(x, num_steps, spacing):
    """The recursion of DDIM backwards in float64; the first step asks at the least noisy level."""
    signal, _ = kept(num_steps, spacing)
    for i, b in enumerate(signal):
        a = signal[max(i - 1, 0)]
        x0 = MEAN + gain(a) * (x - np.sqrt(a) * MEAN)
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(b) * (x0 if i else x) + np.sqrt(1 - b) * eps
    return x


@pytest.mark.parametrize("spacing", [leading, trailing])
def test_encoding_is_its_recursion(key, spacing):
    x0 = MEAN + STD * jax.random.normal(key, SHAPE)
    up = jax.jit(lambda num_steps: encode(perfect(), x0, num_steps, spacing))
    for num_steps in (1, 2, 7, 200):
        want = encode_map(np.asarray(x0, float), num_steps, spacing)
        np.testing.assert_allclose(up(num_steps), want, atol=3e-5)


def by_label(x_t, t, label):
    """A conditional network: the label shifts the prediction; 0 stands for none."""
    return 0.1 * x_t + 0.05 * label.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", [ancestral(large_variance), ddim()], ids=["ancestral", "ddim"])
@pytest.mark.parametrize("prediction", PARAMETRIZATIONS)
def test_guidance(key, solver, prediction):
    label = jnp.array([1, 2, 3, 4])
    plain_denoise = denoiser(by_label, PARAMETRIZATIONS[prediction])
    plain = jax.jit(lambda condition: sample(plain_denoise, key, solver, 5, condition=condition))
    strong = jax.jit(
        lambda scale: sample(guided(plain_denoise, 0, scale), key, solver, 5, condition=label)
    )
    # This denoiser is linear in its label, so guidance multiplies it.
    plains = [plain(times * label) for times in (0, 1, 3)]
    each = strong(jnp.array([0.0, 1.0, 3.0, 0.0]))
    want = jnp.stack([plains[which][i] for i, which in enumerate((0, 1, 2, 0))])
    np.testing.assert_allclose(each, want, rtol=1e-4, atol=1e-4 * jnp.abs(want).max())
    assert (plains[0] != plains[1]).all()


def test_clipping_is_of_the_guided_data(key):
    level, label = CHAIN.at(jnp.array([3, 50])), jnp.array([1, 2])
    x = jax.random.normal(key, (2, 3, 3, 2))
    free = guided(denoiser(lambda x, t, c: c.reshape(-1, 1, 1, 1) + 0 * x, X0), 0, 0.25)
    np.testing.assert_allclose(clip_x0(free)(x, level, label).x0[:, 0, 0, 0], [0.25, 0.5])


def test_guided_leaves_the_variance_alone_and_takes_trees():
    condition = {"label": jnp.array([1.0, 2.0]), "text": jnp.ones((2, 5))}
    null = {"label": 0.0, "text": jnp.zeros(5)}

    def network(x_t, t, condition):
        assert x_t.shape[0] == t.shape[0] == 4
        strength = condition["label"] + condition["text"].sum(axis=1)
        value = x_t + strength[:, None]
        return jnp.concatenate([value, -value], axis=-1).astype(jnp.bfloat16)

    denoise = guided(denoiser(network, X0), null, 2.0)
    output = denoise(jnp.zeros((2, 3)), CHAIN.at(jnp.zeros(2, int)), condition)
    np.testing.assert_array_equal(output.x0, jnp.array([[12.0], [14.0]]) * jnp.ones((1, 3)))
    np.testing.assert_array_equal(output.extra, -jnp.array([[6.0], [7.0]]) * jnp.ones((1, 3)))


def test_no_retrace_for_new_values(key):
    traces = []

    @jax.jit
    def draw(key, num_steps, eta, guidance_scale):
        def network(x_t, t, label):
            traces.append(1)
            return by_label(x_t, t, label)

        denoise, label = denoiser(network, EPS), jnp.arange(4)
        options = {"num_steps": num_steps, "condition": label}
        strong = clip_x0(guided(denoise, 0, guidance_scale))
        levels = reverse(levels_of(CHAIN, num_steps))
        return (
            sample(strong, key, **options),
            sample(strong, key, ddim(eta), **options),
            solve(denoise, levels, ddim(), key, jnp.zeros(SHAPE), condition=label),
        )

    first = draw(key, 10, 0.0, 1.0)
    assert len(traces) == 3  # one for each
    for arguments in [(20, 0.0, 1.0), (10, 0.5, 1.0), (10, 0.0, 3.0)]:
        other = draw(key, *arguments)
        assert jnp.isfinite(other[1]).all()
        assert (other[1] != first[1]).any()
    assert len(traces) == 3


def test_traced_steps_equal_static_ones(key):
    def draw(num_steps):
        return sample(perfect(), key, ddim(), num_steps, leading)

    np.testing.assert_allclose(jax.jit(draw)(13), draw(np.int64(13)), atol=1e-5)


def test_a_chain_may_be_an_argument_and_samples_are_reproducible(key):
    denoise = clip_x0(perfect())
    draw = jax.jit(lambda steps, key: sample(denoise, key, ddim(), 5, leading, steps=steps))
    first = draw(CHAIN, key)
    np.testing.assert_array_equal(first, draw(CHAIN, key))
    assert (first != draw(CHAIN, jax.random.key(1))).all()
    assert (jnp.abs(first) <= 1).all()  # clipped


@pytest.mark.parametrize("solver", [ancestral(), ddim()], ids=["ancestral", "ddim"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be from 1 to T = 200, got 0"),
        ({"num_steps": 201}, "got 201"),
        ({"scale": 2.0}, "guidance needs a condition, got None"),
        ({"condition": jnp.zeros(3)}, r"condition must have the batch's 4 .* \(3,\)"),
        (
            {"condition": jnp.zeros(4), "scale": jnp.ones(3)},
            r"guidance scale must be a scalar or have shape \(4,\), got \(3,\)",
        ),
        ({"shape": (4,)}, r"x must be \[batch, ..., channels\] of positive sizes, got \(4,\)"),
        ({"shape": (0, 3, 3, 2)}, "x must be"),
    ],
)
def test_bad_arguments(key, solver, arguments, message):
    arguments = dict(arguments)
    denoise = denoiser(by_label, EPS)
    if "scale" in arguments:
        denoise = guided(denoise, 0, arguments.pop("scale"))
    with pytest.raises(ValueError, match=message):
        sample(denoise, key, solver, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: ddim(-0.1), "eta must be from 0 to 1"),
        (lambda key: ddim(2), "eta must be from 0 to 1, got 2"),
        (lambda key: encode(perfect(), jnp.ones(SHAPE), 0), "num_steps"),
        (
            lambda key: sample(perfect(), key, ancestral(learned_variance), 2),
            r"further ones of shape \(4, 3, 3, 2\), got None",
        ),
        (
            lambda key: solve(
                perfect(), reverse(levels_of(CHAIN)), ancestral(), key, jnp.ones(SHAPE)
            ),
            "levels must fall for ancestral sampling",
        ),
        (
            lambda key: solve(
                perfect(), reverse(levels_of(CHAIN)), ddim(0.5), key, jnp.ones(SHAPE)
            ),
            "levels must fall for DDIM with noise",
        ),
    ],
)
def test_more_bad_arguments(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)
