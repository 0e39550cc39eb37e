"""The chain against extended precision, Bayes' rule and diffusers."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.chain import (
    Chain,
    chain,
    cosine_betas,
    large_variance,
    learned_variance,
    levels_of,
    linear_betas,
    posterior_mean,
    respace,
    root_linear_betas,
    sigmoid_betas,
    small_variance,
    zero_terminal_snr,
)
from jaxgen.noise.levels import reverse
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import q_sample
from jaxgen.noise.spacing import leading, linspace, quadratic, trailing

BETAS = {
    "linear": linear_betas(1000),
    "cosine": cosine_betas(1000),
    "sigmoid": sigmoid_betas(1000),
    "root_linear": root_linear_betas(1000),
    "short": cosine_betas(10),
    "two": np.array([0.1, 0.6]),
    "one": np.array([0.3]),
}


def reference(betas) -> Chain:
    """The textbook formulas, in extended precision."""
    betas = np.asarray(betas, np.longdouble)
    product = np.cumprod(1 - betas)
    before = np.concatenate([[np.longdouble(1)], product[:-1]])
    variance = betas * (1 - before) / (1 - product)
    variance[0] = variance[1] if len(betas) > 1 else betas[0]
    return Chain(
        betas,
        product,
        1 - product,
        np.log(product / (1 - product)),
        np.sqrt(before) * betas / (1 - product),
        np.sqrt(1 - betas) * (1 - before) / (1 - product),
        np.log(variance),
    )


@pytest.mark.parametrize("name", BETAS)
def test_every_field_has_float32_precision_everywhere(name):
    got, want = chain(BETAS[name]), reference(BETAS[name])
    for field, value, expected in zip(Chain._fields, got, want, strict=True):
        assert isinstance(value, np.ndarray), field
        assert value.dtype == np.float32, field
        # One rounding to float32 (a log near 0 is right in absolute terms).
        np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-9, err_msg=field)


def test_known_values():
    np.testing.assert_allclose(linear_betas(3, 0.1, 0.3), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(root_linear_betas(3, 0.01, 0.09), [0.01, 0.04, 0.09])
    short = chain([0.1, 0.2, 0.5])
    np.testing.assert_allclose(short.alphas_cumprod, [0.9, 0.72, 0.36], rtol=1e-6)
    np.testing.assert_allclose(np.exp(short.log_snr), [9, 0.72 / 0.28, 0.5625], rtol=1e-6)
    variance = [0.2 * 0.1 / 0.28, 0.2 * 0.1 / 0.28, 0.5 * 0.28 / 0.64]
    np.testing.assert_allclose(np.exp(short.posterior_log_variance), variance, rtol=1e-6)
    assert short.posterior_x0_coef[0] == pytest.approx(1)
    assert short.posterior_xt_coef[0] == 0
    # Nichol & Dhariwal's offset: the chain starts with a deviation just below a pixel bin's 2/255.
    cosine = chain(cosine_betas(4000))
    assert 0.002 < np.sqrt(cosine.one_minus_alphas_cumprod[0]) < 2 / 255
    assert cosine_betas(100)[-1] == 0.999


def test_building_a_chain_touches_no_accelerator():
    # JAX fails on this platform as soon as anything asks for a device.
    environment = os.environ | {"JAX_PLATFORMS": "nowhere"}
    build = "from jaxgen.noise import chain as c; c.chain(c.cosine_betas(1000))"
    for program, fails in [(build, False), (build + "; c.levels_of(c.chain([0.1]))", True)]:
        command = [sys.executable, "-c", program]
        assert (
            bool(subprocess.run(command, env=environment, capture_output=True).returncode) is fails
        )


@pytest.mark.parametrize(
    "name", ["linear", "scaled", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
)
def test_betas_are_those_of_diffusers(name):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    num, ends = (250, (4e-4, 0.08)) if name == "scaled" else (1000, (1e-4, 0.02))
    kind = "linear" if name == "scaled" else name
    scheduler = diffusers.DDPMScheduler(num, ends[0], ends[1], beta_schedule=kind)
    ours = {
        "linear": lambda: linear_betas(num, *ends),
        "scaled_linear": lambda: root_linear_betas(num, *ends),
        "squaredcos_cap_v2": lambda: cosine_betas(num),
        "sigmoid": lambda: sigmoid_betas(num, *ends),
    }[kind]()
    np.testing.assert_allclose(ours, scheduler.betas.numpy(), rtol=2e-6)
    product = chain(ours).alphas_cumprod
    np.testing.assert_allclose(product, scheduler.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("num", [1, 2, 50, 999, 1000])
def test_respaced_chain_is_the_chain_of_the_respaced_betas(name, num):
    timesteps = linspace(1000, num)
    got = respace(chain(BETAS[name]), timesteps)
    product = np.cumprod(1 - BETAS[name].astype(np.longdouble))[np.asarray(timesteps[:num])]
    want = reference(1 - product / np.concatenate([[1], product[:-1]]))
    for field, value, expected in zip(Chain._fields, got, want, strict=True):
        assert not np.isnan(value).any(), field
        if num == 1 and field == "posterior_log_variance":
            continue  # a single step has no posterior variance; what stands in for it is arbitrary
        # 1 - betas[-1] of the cosine chain is 1e-3, which float32 betas hold to 3e-5.
        np.testing.assert_allclose(value[:num], expected, rtol=1e-4, atol=1e-6, err_msg=field)


def test_zero_terminal_snr():
    """Lin et al. 2024, algorithm 1: the last level is noise alone, the first stays."""
    plain, ended = chain(linear_betas(1000)), chain(zero_terminal_snr(linear_betas(1000)))
    root, first = np.sqrt(np.float64(plain.alphas_cumprod)), float(plain.alphas_cumprod[0]) ** 0.5
    expected = np.square((root - root[-1]) * first / (first - root[-1]))
    np.testing.assert_allclose(ended.alphas_cumprod, expected, rtol=1e-4, atol=1e-10)
    assert ended.betas[-1] == 1
    assert ended.alphas_cumprod[-1] == 0
    assert ended.log_snr[-1] == -np.inf
    of_others = [field for name, field in ended._asdict().items() if name != "log_snr"]
    assert all(np.isfinite(field).all() for field in of_others)
    noisy = Denoised(jnp.zeros((1, 2)))
    first_step = ended.posterior(jnp.array([999]))
    assert float(large_variance(first_step, noisy)[0, 0]) == 0  # log of the added 1
    levels = levels_of(ended, 10)
    assert float(levels.level.alpha[0]) == 0
    assert all(np.isfinite(v).all() for v in jax.tree.map(lambda v: v[:10], levels.posterior))
    for betas in ([0.5], [0.1, 1.0], [[0.1, 0.2]]):
        with pytest.raises(ValueError, match=r"betas must be two or more numbers in \(0, 1\)"):
            zero_terminal_snr(betas)
    with pytest.raises(ValueError, match=r"betas\[0\] = 1.0"):
        chain([1.0, 0.5])


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "non-empty"),
        ([[0.1]], r"shape \(1, 1\)"),
        ([0.1, 0.0], r"betas\[1\] = 0.0"),
        ([1.0], r"\(0, 1\)"),
        ([-0.1], r"\(0, 1\)"),
        ([0.1, np.nan], r"betas\[1\] = nan"),
        ([np.inf], r"\(0, 1\)"),
        ([0.5] * 200, "fewer steps"),
        ([1e-40], "least beta"),
    ],
)
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        chain(betas)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_betas(0), "num_steps"),
        (lambda: cosine_betas(-1), "num_steps"),
        (lambda: linear_betas(10, beta_start=0.0), "beta_start"),
        (lambda: sigmoid_betas(10, beta_end=1.0), "beta_end"),
        (lambda: cosine_betas(10, s=-1.0), "s must"),
        (lambda: cosine_betas(10, max_beta=1.0), "max_beta"),
        (lambda: levels_of(chain(cosine_betas(10)), 0), "num_steps"),
        (lambda: levels_of(chain(cosine_betas(10)), 11), "num_steps must be from 1 to T = 10"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


LINEAR = chain(BETAS["linear"])
COSINE = chain(BETAS["cosine"])
SHAPE = (4, 3, 5, 2)


@pytest.fixture
def data(key):
    """x0 in [-1, 1] and eps."""
    key_x, key_eps = jax.random.split(key)
    x0 = jax.random.uniform(key_x, SHAPE, minval=-1, maxval=1)
    return x0, jax.random.normal(key_eps, SHAPE)


def at(values, t):
    return np.asarray(values, float)[np.asarray(t)].reshape(-1, 1, 1, 1)


def test_a_level_is_that_of_its_timestep():
    t = jnp.array([0, 1, 400, 999])
    level = LINEAR.at(t)
    product = np.cumprod(1 - BETAS["linear"])[np.asarray(t)]
    np.testing.assert_allclose(level.alpha, np.sqrt(product), rtol=2e-7)
    np.testing.assert_allclose(level.sigma, np.sqrt(1 - product), rtol=2e-7)
    np.testing.assert_array_equal(level.time, t)
    assert LINEAR.prior_std == 1
    assert LINEAR.num_timesteps == 1000


def test_posterior_is_bayes_rule(data):
    x0, eps = data
    t = jnp.array([1, 2, 500, 999])
    x_t = q_sample(x0, eps, LINEAR.at(t))
    posterior = LINEAR.posterior(t)
    # The product of q(x_{t-1} | x0) and q(x_t | x_{t-1}), as precisions.
    beta, before = at(LINEAR.betas, t), at(LINEAR.one_minus_alphas_cumprod, t - 1)
    precision = 1 / before + (1 - beta) / beta
    weighed = np.sqrt(1 - before) * np.asarray(x0) / before
    weighed += np.sqrt(1 - beta) * np.asarray(x_t) / beta
    np.testing.assert_allclose(posterior.log_variance, -np.log(precision).ravel(), rtol=1e-5)
    mean = posterior_mean(posterior, x0, x_t)
    np.testing.assert_allclose(mean, weighed / precision, rtol=1e-4, atol=1e-5)
    first = posterior_mean(LINEAR.posterior(jnp.zeros(4, int)), x0, x_t)
    np.testing.assert_allclose(first, x0, atol=1e-6)


def test_variance_choices(data):
    _, x_t = data
    t = jnp.array([0, 1, 400, 998])
    posterior, ones = LINEAR.posterior(t), jnp.ones(SHAPE)
    low, high = small_variance(posterior, Denoised(x_t)), jnp.log(at(LINEAR.betas, t))
    large = large_variance(posterior, Denoised(x_t))
    assert low.shape == large.shape == (4, 1, 1, 1)
    for u, want in [(-ones, low), (ones, high), (0 * ones, 0.5 * (low + high))]:
        learned = learned_variance(posterior, Denoised(x_t, u))
        np.testing.assert_allclose(learned, jnp.broadcast_to(want, SHAPE), rtol=1e-6)
    half = learned_variance(posterior, Denoised(x_t, ones.astype(jnp.bfloat16)))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(large[1:], high[1:], rtol=1e-6)
    assert large[0] == low[0]
    for extra, shape in [(None, "None"), (ones[..., :1], r"\(4, 3, 5, 1\)")]:
        with pytest.raises(ValueError, match=rf"ones of shape \(4, 3, 5, 2\), got {shape}"):
            learned_variance(posterior, Denoised(x_t, extra))


@pytest.mark.parametrize("spacing", [linspace, leading, trailing, quadratic])
def test_levels_are_those_of_the_respaced_chain(spacing):
    small = chain(cosine_betas(10))

    @jax.jit
    def traced(num):
        levels, timesteps = levels_of(small, num, spacing), spacing(10, num)
        return levels, reverse(levels), timesteps, respace(small, timesteps)

    for num in (1, 2, 7, 10):
        levels, back, timesteps, kept = jax.device_get(traced(num))
        assert levels.num_steps == num
        assert levels.complete == (num == 10)
        down = np.arange(num)[::-1]
        level = jax.tree.map(lambda v, num=num: v[:num], levels.level)
        np.testing.assert_array_equal(level.time, timesteps[down])
        np.testing.assert_allclose(level.alpha, np.sqrt(kept.alphas_cumprod[down]), rtol=1e-6)
        sigma = np.sqrt(kept.one_minus_alphas_cumprod[down])
        np.testing.assert_allclose(level.sigma, sigma, rtol=1e-6)
        assert (levels.level.alpha[num], levels.level.sigma[num]) == (1, 0)
        want = (
            kept.posterior_x0_coef,
            kept.posterior_xt_coef,
            kept.posterior_log_variance,
            kept.betas,
        )
        for values, expected in zip(levels.posterior, want, strict=True):
            np.testing.assert_allclose(values[:num], expected[down], rtol=1e-5)
        assert back.posterior is None
        for up, before in zip(back.level, levels.level, strict=True):
            np.testing.assert_array_equal(up[: num + 1], before[: num + 1][::-1])
    for values, expected in zip(
        jax.tree.leaves(levels_of(small, None, spacing)), jax.tree.leaves(levels), strict=True
    ):
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_levels_need_an_integer():
    with pytest.raises(TypeError, match="num_steps"):
        levels_of(LINEAR, 2.0)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_timesteps_of_few_bits(dtype):
    thousand = chain(linear_betas(1000))
    t = jnp.array([0, 100], dtype)
    np.testing.assert_array_equal(thousand.at(t).alpha, thousand.at(t.astype(jnp.int32)).alpha)
    posterior = thousand.posterior(t)
    np.testing.assert_array_equal(posterior.added, thousand.betas[np.array([0, 100])])
