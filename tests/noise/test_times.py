"""Times of samplers, in closed form and padded, and the times that training draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise import times
from jaxgen.noise.log_snr import log_snr_linear
from jaxgen.noise.process import edm, log_snr_of, rectified, vp

LINEAR = vp(log_snr_linear)
GRIDS = {
    "uniform": times.uniform_times,
    "power": times.power_times,
    "karras": times.karras_times,
    "log-SNR": lambda n, **k: times.log_snr_times(LINEAR, n, **k),
}


def test_karras_times_are_the_papers():
    """Their first, second and last for N = 18 by the formula in float64; then clean data."""
    grid = times.karras_times(18)
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid[:-1], want, rtol=2e-5)
    assert grid.shape == (19,)
    assert grid[-1] == 0


def test_karras_times_of_another_process_have_its_ratios():
    for process in (rectified(), LINEAR):
        grid = times.karras_times(7, sigma_max=50.0, process=process)
        level = process.at(grid[:-1])
        want = times.karras_times(7, sigma_max=50.0)[:-1]
        np.testing.assert_allclose(level.sigma / level.alpha, want, rtol=2e-3)


def test_uniform_and_power_times():
    np.testing.assert_allclose(times.uniform_times(4), [1, 0.75, 0.5, 0.25, 0])
    got = times.power_times(4, first=1.0, last=0.0)
    np.testing.assert_allclose(got, np.array([1, 0.75, 0.5, 0.25, 0]) ** 2, atol=1e-7)
    even = times.power_times(4, first=0.9, last=0.1, rho=1.0)
    np.testing.assert_allclose(even, [0.9, 0.7, 0.5, 0.3, 0.1], atol=1e-6)


def test_log_snr_times_are_even_in_it():
    grid = times.log_snr_times(LINEAR, 9, first=0.9, last=0.01)
    assert (grid[0], grid[-1]) == (np.float32(0.9), np.float32(0.01))
    gaps = np.diff(log_snr_of(LINEAR.at(grid)))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_fall_and_are_padded_by_their_end(name):
    grid = GRIDS[name]
    padded = jax.jit(lambda n: grid(n, most=8))
    for count in (1, 2, 5, 8):
        plain = grid(count)
        assert plain.shape == (count + 1,)
        assert (np.diff(plain) < 0).all()
        np.testing.assert_allclose(padded(jnp.int32(count))[: count + 1], plain, rtol=1e-5)
        assert np.isfinite(padded(jnp.int32(count))).all()
    with pytest.raises(ValueError, match="num_steps must be at least 1 and at most 8, got 9"):
        grid(9, most=8)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        grid(0)
    with pytest.raises(ValueError, match="a traced num_steps needs most"):
        jax.jit(grid)(3)


def test_uniform_draws():
    key = jax.random.key(0)
    drawn = times.uniform(0.2, 0.6)(key, 4000)
    assert drawn.min() >= 0.2
    assert drawn.max() <= 0.6
    assert drawn.mean() == pytest.approx(0.4, abs=0.01)


def test_antithetic_draws_are_evenly_spaced():
    drawn = np.sort(times.uniform(antithetic=True)(jax.random.key(0), 10))
    np.testing.assert_allclose(np.diff(drawn), 0.1, atol=1e-6)
    other = np.sort(times.uniform(antithetic=True)(jax.random.key(1), 10))
    assert np.abs(other - drawn).max() > 1e-3


def test_log_normal_draws():
    drawn = np.log(times.log_normal(-1.2, 1.2)(jax.random.key(0), 8000))
    assert drawn.mean() == pytest.approx(-1.2, abs=0.05)
    assert drawn.std() == pytest.approx(1.2, abs=0.05)
    other = times.log_normal(-1.2, 1.2, process=rectified())(jax.random.key(0), 8000)
    np.testing.assert_allclose(np.log(other / (1 - other)), drawn, atol=2e-3)


def test_logit_normal_draws():
    drawn = times.logit_normal(0.3, 0.8)(jax.random.key(0), 8000)
    logit = np.log(drawn / (1 - drawn))
    assert logit.mean() == pytest.approx(0.3, abs=0.03)
    assert logit.std() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: times.uniform_times(3, first=0.0, last=1.0), "times must run between two"),
        (lambda: times.uniform_times(3, first=1.0, last=-1.0), "the least at least 0"),
        (lambda: times.power_times(3, rho=0.5), "rho must be finite and at least 1, got 0.5"),
        (lambda: times.karras_times(3, sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: times.karras_times(3, rho=float("nan")), "rho must be finite"),
        (lambda: times.log_snr_times(edm(), 3, first=0.5, last=1.0), "times must run between"),
        (lambda: times.uniform(0.5, 0.5), "times must run between"),
        (lambda: times.log_normal(0.0, 0.0), "std must be positive and finite, got 0.0"),
        (lambda: times.logit_normal(0.0, -1.0), "std must be positive and finite, got -1.0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pairs_of_times(key):
    """In order; apart as often as asked; both from their distributions, put in order."""
    t, r = times.pairs(times.uniform(0.0, 0.5), times.uniform(0.5, 1.0), apart=0.75)(key, 4000)
    assert (t > 0.5).all()
    assert np.mean(r < t) == pytest.approx(0.75, abs=0.03)
    assert (r[r < t] < 0.5).all()
    t, r = times.pairs(times.uniform(), apart=1.0)(key, 4000)
    assert t.mean() == pytest.approx(2 / 3, abs=0.02)  # the greater of two
    assert r.mean() == pytest.approx(1 / 3, abs=0.02)
    with pytest.raises(ValueError, match=r"apart must lie in \[0, 1\], got 1.5"):
        times.pairs(times.uniform(), apart=1.5)
