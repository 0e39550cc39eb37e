"""Processes: the log-SNR curves in closed form, their levels, and the levels of a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise import log_snr as curves
from jaxgen.noise import process
from jaxgen.noise.chain import chain, cosine_betas, levels_of, linear_betas, sigmoid_betas
from jaxgen.noise.levels import levels_at, padded, remaining, reverse
from jaxgen.noise.log_snr import log_snr_cosine, log_snr_linear, log_snr_sigmoid
from jaxgen.noise.process import Level, Process, log_snr_of, q_sample, vp

T = np.linspace(0.002, 0.998, 499)


@pytest.mark.parametrize(
    ("log_snr", "betas"),
    [
        (log_snr_linear, lambda n: linear_betas(n, 0.1 / n, 20 / n)),
        (log_snr_cosine, cosine_betas),
        (log_snr_sigmoid, lambda n: sigmoid_betas(n, 0.1 / n, 20 / n)),
    ],
)
def test_continuous_forms_are_the_limit_of_the_discrete(log_snr, betas):
    num = 100_000
    index = np.arange(num // 100, num - num // 100, 97)
    discrete = chain(betas(num)).log_snr[index]
    continuous = log_snr(jnp.asarray((index + 1) / num, jnp.float32))
    np.testing.assert_allclose(continuous, discrete, atol=2e-3)


def test_continuous_forms_are_accurate_in_float32():
    t = T.astype(np.float32).astype(np.float64)
    linear = -np.log(np.expm1(0.1 * t + 9.95 * t**2))
    np.testing.assert_allclose(log_snr_linear(jnp.float32(t)), linear, atol=1e-5)
    rise = np.log1p(np.exp(12 * t - 6)) - np.log1p(np.exp(-6))
    sigmoid = -np.log(np.expm1(0.1 * t + 19.9 / 12 * rise))
    np.testing.assert_allclose(log_snr_sigmoid(jnp.float32(t)), sigmoid, atol=1e-5)
    for s in (0.0, 0.008):
        a = (t + s) / (1 + s) * np.pi / 2
        signal = (np.cos(a) / np.cos(s / (1 + s) * np.pi / 2)) ** 2
        got = log_snr_cosine(jnp.float32(t), s=s)
        np.testing.assert_allclose(got, np.log(signal / (1 - signal)), atol=6e-5)
    tangent = -2 * np.log(np.tan(np.pi * t / 2))
    np.testing.assert_allclose(log_snr_cosine(jnp.float32(t), s=0.0), tangent, atol=6e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_continuous_forms_decrease_between_finite_limits(name):
    log_snr = getattr(curves, f"log_snr_{name}")
    t = jnp.linspace(0, 1, 1001)
    value = log_snr(t)
    assert value[0] == 20
    assert value[-1] == (-20 if name == "cosine" else pytest.approx(value[-1]))
    assert (jnp.diff(value) <= 0).all()
    assert (jnp.diff(value[10:-10]) < 0).all()
    assert jnp.isfinite(jax.vmap(jax.grad(log_snr))(t)).all()
    clipped = log_snr(t, log_snr_min=-3.0, log_snr_max=4.0)
    assert (clipped.min(), clipped.max()) == (-3, 4)


def test_a_variance_preserving_process_has_its_log_snr():
    t = jnp.array([0.0, 0.3, 0.7, 1.0])
    level = vp(log_snr_cosine).at(t)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(log_snr_of(level), log_snr_cosine(t), atol=1e-5)
    np.testing.assert_array_equal(level.time, t)
    assert vp(log_snr_cosine).prior_std == 1


def test_noising_is_its_equation(key):
    x0, eps = jax.random.normal(key, (2, 3, 5, 2))
    level = Level(jnp.array([0.5, 0.9, 0.0]), jnp.array([2.0, 0.0, 1.0]), jnp.zeros(3))
    want = np.array([0.5, 0.9, 0.0])[:, None, None] * np.asarray(x0)
    want += np.array([2.0, 0.0, 1.0])[:, None, None] * np.asarray(eps)
    np.testing.assert_allclose(q_sample(x0, eps, level), want, rtol=1e-6)


@pytest.mark.parametrize("num", [5, 50])
def test_levels_of_a_process_are_those_of_the_chain_it_is_the_limit_of(num):
    """At the same levels, the same constants of the posterior."""
    betas = cosine_betas(200)
    down = levels_of(chain(betas), num)
    ratio = jnp.asarray(chain(betas).log_snr)[down.level.time[:num]]
    times = jnp.arange(num) / num
    levels = levels_at(vp(lambda t: jnp.interp(t, times, ratio)), times)
    assert levels.num_steps == num - 1
    assert not levels.complete
    for field, values, want in zip(
        ("alpha", "sigma"), levels.level[:2], down.level[:2], strict=True
    ):
        np.testing.assert_allclose(values, want[:num], rtol=1e-5, err_msg=field)
    for field, values, want in zip(
        levels.posterior._fields, levels.posterior, down.posterior, strict=True
    ):
        np.testing.assert_allclose(values, want[: num - 1], rtol=2e-4, err_msg=field)


def test_the_types_hold_a_process_that_does_not_preserve_variance(key):
    """Variance exploding: `alpha = 1`, and the posterior is still Bayes' rule."""
    explode = Process(lambda t: Level(jnp.ones_like(t), 80 * t, jnp.log(t)), 80.0)
    levels = levels_at(explode, jnp.array([1.0, 0.5, 0.1, 0.0]))
    far, near = np.array([80.0, 40.0]) ** 2, np.array([40.0, 8.0]) ** 2
    precision = 1 / near + 1 / (far - near)
    posterior = jax.tree.map(lambda v: np.asarray(v)[:2], levels.posterior)
    np.testing.assert_allclose(posterior.added, far - near, rtol=1e-5)
    np.testing.assert_allclose(np.exp(posterior.log_variance), 1 / precision, rtol=1e-5)
    np.testing.assert_allclose(posterior.x0_coef, 1 / near / precision, rtol=1e-5)
    np.testing.assert_allclose(posterior.xt_coef, 1 / (far - near) / precision, rtol=1e-5)
    # To clean data the posterior is a point, and what stands in for its variance is finite.
    last = jax.tree.map(lambda v: float(v[-1]), levels.posterior)
    assert (last.x0_coef, last.xt_coef) == (1, 0)
    assert last.log_variance == pytest.approx(np.log(64), rel=1e-5)


def test_reversed_levels_run_from_the_last_to_the_first():
    levels = levels_at(vp(log_snr_linear), jnp.linspace(1, 0, 5))
    back = reverse(levels)
    for up, down in zip(back.level, levels.level, strict=True):
        np.testing.assert_array_equal(up, down[::-1])
    assert back.posterior is None


def test_padded_levels_are_the_same_ones():
    levels = levels_at(vp(log_snr_linear), jnp.linspace(1, 0.1, 5))
    long = padded(levels, 7)
    assert (long.level.alpha.shape, long.posterior.added.shape) == ((8,), (7,))
    assert long.num_steps == 4
    np.testing.assert_array_equal(long.level.sigma[:5], levels.level.sigma)
    np.testing.assert_array_equal(long.posterior.added[:4], levels.posterior.added)
    assert padded(reverse(levels), 9).posterior is None
    with pytest.raises(ValueError, match="most must be at least the 4 intervals .* got 3"):
        padded(levels, 3)


def test_remaining_levels_begin_later():
    """By a number that may be traced; the posterior goes with its interval."""
    levels = levels_at(vp(log_snr_linear), jnp.linspace(1, 0.1, 5))
    for rest in (remaining(levels, 1), jax.jit(remaining)(levels, 1)):
        assert rest.num_steps == 3
        np.testing.assert_array_equal(rest.level.time[:4], levels.level.time[1:])
        np.testing.assert_array_equal(rest.posterior.added[:3], levels.posterior.added[1:])
    with pytest.raises(ValueError, match="done must be from 0 to 3, got 4"):
        remaining(levels, 4)


def test_levels_need_two_times():
    with pytest.raises(ValueError, match="times must be two or more, got 1"):
        levels_at(vp(log_snr_linear), jnp.ones(1))


PROCESSES = {
    "vp": process.vp(log_snr_linear),
    "cosine": process.vp(log_snr_cosine),
    "ve": process.ve(),
    "edm": process.edm(),
    "sub-vp": process.sub_vp(),
    "straight": process.rectified(),
    "quarter circle": process.trigonometric(),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_slopes_are_finite_differences(name):
    made = PROCESSES[name]
    t = np.array([0.1, 0.4, 0.8]) * made.last_time
    alpha_rate, sigma_rate = process.slope(made, jnp.float32(t))
    width = 1e-2 * made.last_time
    up, down = made.at(jnp.float32(t + width)), made.at(jnp.float32(t - width))
    np.testing.assert_allclose(alpha_rate, (up.alpha - down.alpha) / (2 * width), atol=0.02)
    np.testing.assert_allclose(sigma_rate, (up.sigma - down.sigma) / (2 * width), rtol=0.02)


def test_the_sde_of_the_famous_processes():
    """Song et al. 2021: VE without drift, VP with -beta/2 and beta, sub-VP with beta (1 - a^4)."""
    t = jnp.array([0.05, 0.3, 0.9])
    drift, spread = process.sde(process.ve(), t)
    sigma = 0.01 * 5000**t
    np.testing.assert_allclose(drift, 0, atol=1e-7)
    np.testing.assert_allclose(spread, 2 * sigma**2 * np.log(5000), rtol=1e-4)
    beta = 0.1 + 19.9 * t
    drift, spread = process.sde(process.vp(log_snr_linear), t)
    np.testing.assert_allclose(drift, -beta / 2, rtol=1e-3)
    np.testing.assert_allclose(spread, beta, rtol=1e-3)
    drift, spread = process.sde(process.sub_vp(), t)
    alpha = process.sub_vp().at(t).alpha
    np.testing.assert_allclose(drift, -beta / 2, rtol=1e-3)
    np.testing.assert_allclose(spread, beta * (1 - alpha**4), rtol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_times_of_ratios(name):
    made = PROCESSES[name]
    t = jnp.array([0.05, 0.3, 0.7, 0.95]) * made.last_time
    np.testing.assert_allclose(process.time_of(made, log_snr_of(made.at(t))), t, rtol=1e-3)


def test_processes_end_where_they_say():
    for name, made in PROCESSES.items():
        level = made.at(jnp.float32(made.last_time))
        assert level.sigma == pytest.approx(made.prior_std, rel=1e-3), name
    assert process.trigonometric().at(jnp.float32(1)).alpha == 0
    assert process.rectified().at(jnp.float32(0)).sigma == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: process.ve(0.0, 1.0), "0 < sigma_min < sigma_max must hold"),
        (lambda: process.ve(2.0, 1.0), "got 2.0, 1.0"),
        (lambda: process.edm(float("inf")), "sigma_max must be positive and finite, got inf"),
        (lambda: process.sub_vp(0.0, 1.0), "0 < beta_min <= beta_max must hold"),
    ],
)
def test_bad_processes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
