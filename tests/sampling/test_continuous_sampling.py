"""Solvers on continuous processes, variance preserving and exploding, of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.levels import levels_at, reverse
from jaxgen.noise.log_snr import log_snr_cosine, log_snr_linear
from jaxgen.noise.parametrization import Denoised, to_eps
from jaxgen.noise.process import Level, Process, vp
from jaxgen.sampling.solvers import Solver, ancestral, ddim, solve

MEAN, STD = 0.3, 0.5
SHAPE = (4, 3, 3, 2)


def explode(t):
    """Variance exploding, from 0.01 to 10."""
    sigma = 0.01 * 1000**t
    return Level(jnp.ones_like(t), sigma, jnp.log(sigma))


PROCESSES = {
    "cosine": vp(log_snr_cosine),
    "linear": vp(log_snr_linear),
    "exploding": Process(explode, 10.0),
}


def optimal(x, level, condition):
    """The optimal denoiser of the Gaussian data at any level."""
    a, s = level.alpha.reshape(-1, 1, 1, 1), level.sigma.reshape(-1, 1, 1, 1)
    return Denoised(MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN))


def adams_bashforth():
    """A solver of two steps, of order 2 in `sigma / alpha`: its state is its last slope."""

    def ratio(level):
        return (level.sigma / level.alpha).reshape(-1, 1, 1, 1)

    def step(denoise, step, x, state, key):
        eps = to_eps(denoise(x, step.start).x0, x, step.start)
        last_eps, last_width = state
        width = ratio(step.end) - ratio(step.start)
        share = jnp.where(
            last_width == 0, 0.0, 0.5 * width / jnp.where(last_width == 0, 1, last_width)
        )
        scaled = x / step.start.alpha.reshape(-1, 1, 1, 1)
        scaled = scaled + width * (eps + share * (eps - last_eps))
        return step.end.alpha.reshape(-1, 1, 1, 1) * scaled, (eps, width)

    return Solver(lambda x: (jnp.zeros_like(x), jnp.zeros((x.shape[0], 1, 1, 1))), step)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(("solver", "order"), [(ddim(), 1), (adams_bashforth(), 2)])
def test_order_of_convergence_on_continuous_processes(key, process, solver, order):
    """The probability-flow ODE of Gaussian data is solved exactly by its quantiles."""
    z = jax.random.normal(key, SHAPE)

    def quantile(time):
        level = process.at(jnp.float32(time))
        return level.alpha * MEAN + jnp.sqrt(level.alpha**2 * STD**2 + level.sigma**2) * z

    def error(num_steps):
        levels = levels_at(process, jnp.linspace(0.9, 0.1, num_steps + 1))
        x = jax.jit(lambda x: solve(optimal, levels, solver, key, x))(quantile(0.9))
        return float(jnp.abs(x - quantile(0.1)).mean())

    rough, fine = error(40), error(80)
    assert np.log2(rough / fine) == pytest.approx(order, abs=0.25)
    assert fine < {1: 0.03, 2: 0.003}[order]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_ancestral_sampling_of_a_continuous_process(key, process):
    """Each step is Bayes' rule, so with many steps the samples have the data's moments."""
    levels = levels_at(process, jnp.linspace(1, 0, 301))
    start = process.prior_std * jax.random.normal(key, (4096, 2, 2, 1))
    x = jax.jit(lambda x: solve(optimal, levels, ancestral(), jax.random.key(1), x))(start)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, rel=0.05)


def test_a_continuous_process_is_inverted_by_reversed_levels(key):
    x0 = MEAN + STD * jax.random.normal(key, SHAPE)
    levels = levels_at(PROCESSES["cosine"], jnp.linspace(1, 0, 201))
    up = solve(optimal, reverse(levels), ddim(), key, x0)
    np.testing.assert_allclose(up, (x0 - MEAN) / STD, atol=0.05)
    np.testing.assert_allclose(solve(optimal, levels, ddim(), key, up), x0, atol=0.03)
