"""Consistency models' boundary, grids, schedules and the intervals that training draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxgen.noise import consistency, parametrization
from jaxgen.noise.consistency import EDM_GRID, Grid
from jaxgen.noise.parametrization import interpret
from jaxgen.noise.process import edm, q_sample


def test_the_boundary(key):
    """At the cleanest level x itself, whatever the network says; with none, EDM's."""
    x, said, eps = jax.random.normal(key, (3, 3, 5))
    level = edm().at(jnp.array([0.002, 0.5, 80.0]))
    predicts = consistency.boundary(0.5, 0.002)
    denoised = interpret(predicts, said, x, level)
    np.testing.assert_allclose(denoised.x0[0], x[0], rtol=1e-6)
    assert jnp.abs(denoised.x0[1:] - x[1:]).min() > 1e-3
    target = predicts.target(x, eps, level)
    got = interpret(predicts, target, q_sample(x, eps, level), level).x0
    np.testing.assert_allclose(got[1:], x[1:], atol=1e-4)
    for field in ("skip", "out", "scale_in", "time"):
        plain, ours = (
            getattr(p, field)(level)
            for p in (parametrization.edm(0.5), consistency.boundary(0.5, 0.0))
        )
        np.testing.assert_allclose(ours, plain, rtol=1e-5)


def test_schedules_are_the_papers():
    """iCT on CIFAR-10: 11 levels to 1281 in eight stages; CT: 2 to 151 by the root's formula."""
    ict = consistency.doubling(400_000)
    steps = [0, 49_999, 50_000, 100_000, 349_999, 350_000, 399_999, 2**30]
    assert [int(ict(jnp.int32(k))) for k in steps] == [11, 11, 21, 41, 641, 1281, 1281, 1281]
    odd = consistency.doubling(100, 10, 50)  # 10, 20, 40, 50
    assert [int(odd(jnp.int32(k))) for k in (0, 30, 60, 2**30)] == [11, 21, 41, 51]
    ct = consistency.square_root(800_000)
    want = [max(1, np.ceil(np.sqrt(k / 8e5 * (151**2 - 4) + 4) - 1)) + 1 for k in (0, 1e5, 8e5)]
    assert [int(ct(jnp.int32(k))) for k in (0, 100_000, 800_000)] == want
    assert want[0] == 2
    assert want[-1] == 151
    assert int(consistency.fixed(18)(jnp.int32(7))) == 18
    decay = consistency.adaptive_decay(0.9, 2)
    np.testing.assert_allclose(decay(jnp.int32(3)), 0.9, rtol=1e-6)
    np.testing.assert_allclose(decay(jnp.int32(151)), 0.9 ** (2 / 150), rtol=1e-6)


@pytest.mark.parametrize("kind", ["log_normal", "uniform"])
def test_intervals(kind, key):
    """Neighbours of the grid, each as often as its mass; the number of levels may be traced."""
    grid = np.asarray(EDM_GRID.at(jnp.arange(11), 11))
    np.testing.assert_allclose(grid[[0, -1]], [0.002, 80.0], rtol=1e-4)
    if kind == "uniform":
        draw, mass = consistency.uniform_neighbours(), np.ones(10)
    else:
        draw = consistency.log_normal_neighbours(-1.1, 2.0)
        mass = np.diff(erf((np.log(grid) + 1.1) / (np.sqrt(2) * 2.0)))
    low, high = jax.jit(draw, static_argnums=1)(key, 20_000, jnp.int32(11))
    index = np.abs(grid - np.asarray(low)[:, None]).argmin(1)
    np.testing.assert_allclose(high, grid[index + 1], rtol=1e-4)
    share = np.bincount(index, minlength=10) / len(index)
    np.testing.assert_allclose(share, mass / mass.sum(), atol=0.015)


def test_times_of_restarts():
    np.testing.assert_allclose(consistency.restart_times(1), [80, 0], rtol=1e-5)
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(consistency.restart_times(2), [80, middle, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: consistency.boundary(0.0), "sigma_data must be positive"),
        (lambda: consistency.boundary(0.5, -1.0), "sigma_min must be finite and at least 0"),
        (lambda: consistency.fixed(1), "num_levels must be at least 2, got 1"),
        (lambda: consistency.doubling(3), "total_steps must be more than 7, got 3"),
        (lambda: consistency.square_root(10, 5, 2), "1 <= first <= last must hold, got 5 and 2"),
        (lambda: consistency.adaptive_decay(1.0), r"first_decay must lie in \(0, 1\)"),
        (lambda: consistency.log_normal_neighbours(std=0.0), "std must be positive"),
        (lambda: consistency.uniform_neighbours(Grid(1.0, 0.5)), "0 < sigma_min < sigma_max"),
        (lambda: consistency.restart_times(0), "num_steps must be at least 1, got 0"),
        (lambda: consistency.restart_times(2, Grid(rho=0.5)), "rho must be finite and at least 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
