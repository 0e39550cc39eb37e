"""Schedules against extended precision, closed forms and diffusers."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import schedules
from jaxgen.schedules import DiscreteSchedule, discrete_schedule, respace, spaced_timesteps

BETAS = {
    "linear": schedules.linear_betas(1000),
    "cosine": schedules.cosine_betas(1000),
    "sigmoid": schedules.sigmoid_betas(1000),
    "short": schedules.cosine_betas(10),
    "two": np.array([0.1, 0.6]),
    "one": np.array([0.3]),
}


def reference(betas) -> DiscreteSchedule:
    """The textbook formulas, in extended precision."""
    betas = np.asarray(betas, np.longdouble)
    product = np.cumprod(1 - betas)
    before = np.concatenate([[np.longdouble(1)], product[:-1]])
    variance = betas * (1 - before) / (1 - product)
    variance[0] = variance[1] if len(betas) > 1 else betas[0]
    return DiscreteSchedule(
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
    got, want = discrete_schedule(BETAS[name]), reference(BETAS[name])
    for field, value, expected in zip(DiscreteSchedule._fields, got, want, strict=True):
        assert isinstance(value, np.ndarray), field
        assert value.dtype == np.float32, field
        # One rounding to float32 (a log near 0 is right in absolute terms).
        np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-9, err_msg=field)


def test_known_values():
    np.testing.assert_allclose(schedules.linear_betas(3, 0.1, 0.3), [0.1, 0.2, 0.3])
    schedule = discrete_schedule([0.1, 0.2, 0.5])
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.72, 0.36], rtol=1e-6)
    np.testing.assert_allclose(np.exp(schedule.log_snr), [9, 0.72 / 0.28, 0.5625], rtol=1e-6)
    variance = [0.2 * 0.1 / 0.28, 0.2 * 0.1 / 0.28, 0.5 * 0.28 / 0.64]
    np.testing.assert_allclose(np.exp(schedule.posterior_log_variance), variance, rtol=1e-6)
    assert schedule.posterior_x0_coef[0] == pytest.approx(1)
    assert schedule.posterior_xt_coef[0] == 0
    # Nichol & Dhariwal's offset: the chain starts with a deviation just below a pixel bin's 2/255.
    cosine = discrete_schedule(schedules.cosine_betas(4000))
    assert 0.002 < np.sqrt(cosine.one_minus_alphas_cumprod[0]) < 2 / 255
    assert schedules.cosine_betas(100)[-1] == 0.999


def test_building_a_schedule_touches_no_accelerator():
    # JAX fails on this platform as soon as anything asks for a device.
    environment = os.environ | {"JAX_PLATFORMS": "nowhere"}
    build = "from jaxgen import schedules as s; s.discrete_schedule(s.cosine_betas(1000))"
    for program, fails in [(build, False), (build + "; s.spaced_timesteps(10, 5)", True)]:
        command = [sys.executable, "-c", program]
        assert (
            bool(subprocess.run(command, env=environment, capture_output=True).returncode) is fails
        )


@pytest.mark.parametrize("name", ["linear", "scaled", "squaredcos_cap_v2", "sigmoid"])
def test_betas_are_those_of_diffusers(name):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    num, ends = (250, (4e-4, 0.08)) if name == "scaled" else (1000, (1e-4, 0.02))
    kind = "linear" if name == "scaled" else name
    scheduler = diffusers.DDPMScheduler(num, ends[0], ends[1], beta_schedule=kind)
    ours = {
        "linear": lambda: schedules.linear_betas(num, *ends),
        "squaredcos_cap_v2": lambda: schedules.cosine_betas(num),
        "sigmoid": lambda: schedules.sigmoid_betas(num, *ends),
    }[kind]()
    np.testing.assert_allclose(ours, scheduler.betas.numpy(), rtol=2e-6)
    product = discrete_schedule(ours).alphas_cumprod
    np.testing.assert_allclose(product, scheduler.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("spacing", "total", "num", "expected"),
    [
        ("leading", 10, 5, [0, 2, 4, 6, 8]),
        ("leading", 10, 3, [0, 3, 6]),
        ("leading", 10, 1, [0]),
        ("linspace", 10, 4, [0, 3, 6, 9]),
        ("linspace", 11, 3, [0, 5, 10]),
        ("linspace", 10, 1, [0]),
        ("trailing", 10, 5, [1, 3, 5, 7, 9]),
        ("trailing", 10, 1, [9]),
    ],
)
def test_spaced_timesteps(spacing, total, num, expected):
    got = spaced_timesteps(total, num, spacing)
    np.testing.assert_array_equal(got[:num], expected)
    np.testing.assert_array_equal(got[num:], total - 1)


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_spaced_timesteps_increase_for_every_count(spacing):
    timesteps = jax.jit(jax.vmap(lambda n: spaced_timesteps(53, n, spacing)))(jnp.arange(1, 54))
    for num, row in enumerate(np.asarray(timesteps), start=1):
        assert (np.diff(row[:num]) > 0).all()
        assert row[0] >= 0
        assert row[num - 1] < 53
    np.testing.assert_array_equal(timesteps[-1], np.arange(53))


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("num", [1, 2, 50, 999, 1000])
def test_respaced_chain_is_the_chain_of_the_respaced_betas(name, num):
    timesteps = spaced_timesteps(1000, num, "linspace")
    got = respace(discrete_schedule(BETAS[name]), timesteps)
    product = np.cumprod(1 - BETAS[name].astype(np.longdouble))[np.asarray(timesteps[:num])]
    want = reference(1 - product / np.concatenate([[1], product[:-1]]))
    for field, value, expected in zip(DiscreteSchedule._fields, got, want, strict=True):
        assert not np.isnan(value).any(), field
        if num == 1 and field == "posterior_log_variance":
            continue  # a single step has no posterior variance; what stands in for it is arbitrary
        # 1 - betas[-1] of the cosine chain is 1e-3, which float32 betas hold to 3e-5.
        np.testing.assert_allclose(value[:num], expected, rtol=1e-4, atol=1e-6, err_msg=field)


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
        discrete_schedule(betas)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.linear_betas(0), "num_steps"),
        (lambda: schedules.cosine_betas(-1), "num_steps"),
        (lambda: schedules.linear_betas(10, beta_start=0.0), "beta_start"),
        (lambda: schedules.sigmoid_betas(10, beta_end=1.0), "beta_end"),
        (lambda: schedules.cosine_betas(10, s=-1.0), "s must"),
        (lambda: schedules.cosine_betas(10, max_beta=1.0), "max_beta"),
        (lambda: spaced_timesteps(10, 0), "num_steps"),
        (lambda: spaced_timesteps(10, 11), "num_steps must be from 1 to T = 10, got 11"),
        (lambda: spaced_timesteps(10, 5, "even"), "spacing must be one of leading"),
        (lambda: spaced_timesteps(10**5, 5), "num_timesteps"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


T = np.linspace(0.002, 0.998, 499)


@pytest.mark.parametrize(
    ("log_snr", "betas"),
    [
        (schedules.log_snr_linear, lambda n: schedules.linear_betas(n, 0.1 / n, 20 / n)),
        (schedules.log_snr_cosine, schedules.cosine_betas),
        (schedules.log_snr_sigmoid, lambda n: schedules.sigmoid_betas(n, 0.1 / n, 20 / n)),
    ],
)
def test_continuous_forms_are_the_limit_of_the_discrete(log_snr, betas):
    num = 100_000
    index = np.arange(num // 100, num - num // 100, 97)
    discrete = discrete_schedule(betas(num)).log_snr[index]
    continuous = log_snr(jnp.asarray((index + 1) / num, jnp.float32))
    np.testing.assert_allclose(continuous, discrete, atol=2e-3)


def test_continuous_forms_are_accurate_in_float32():
    t = T.astype(np.float32).astype(np.float64)
    linear = -np.log(np.expm1(0.1 * t + 9.95 * t**2))
    np.testing.assert_allclose(schedules.log_snr_linear(jnp.float32(t)), linear, atol=1e-5)
    rise = np.log1p(np.exp(12 * t - 6)) - np.log1p(np.exp(-6))
    sigmoid = -np.log(np.expm1(0.1 * t + 19.9 / 12 * rise))
    np.testing.assert_allclose(schedules.log_snr_sigmoid(jnp.float32(t)), sigmoid, atol=1e-5)
    for s in (0.0, 0.008):
        a = (t + s) / (1 + s) * np.pi / 2
        signal = (np.cos(a) / np.cos(s / (1 + s) * np.pi / 2)) ** 2
        got = schedules.log_snr_cosine(jnp.float32(t), s=s)
        np.testing.assert_allclose(got, np.log(signal / (1 - signal)), atol=6e-5)
    tangent = -2 * np.log(np.tan(np.pi * t / 2))
    np.testing.assert_allclose(schedules.log_snr_cosine(jnp.float32(t), s=0.0), tangent, atol=6e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_continuous_forms_decrease_between_finite_limits(name):
    log_snr = getattr(schedules, f"log_snr_{name}")
    t = jnp.linspace(0, 1, 1001)
    value = log_snr(t)
    assert value[0] == 20
    assert value[-1] == (-20 if name == "cosine" else pytest.approx(value[-1]))
    assert (jnp.diff(value) <= 0).all()
    assert (jnp.diff(value[10:-10]) < 0).all()
    assert jnp.isfinite(jax.vmap(jax.grad(log_snr))(t)).all()
    clipped = log_snr(t, log_snr_min=-3.0, log_snr_max=4.0)
    assert (clipped.min(), clipped.max()) == (-3, 4)
