"""Editing by denoising where the answer is known: Gaussian data, whose denoiser is linear."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.levels import levels_at, reverse
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import edm
from jaxgen.noise.times import karras_times
from jaxgen.sampling import editing
from jaxgen.sampling.ode_solvers import heun
from jaxgen.sampling.solvers import ancestral, ddim, solve

MEAN, STD = 0.3, 0.5
LEVELS = levels_at(edm(), karras_times(40))
RHO = 0.8


def optimal(x, level, condition=None):
    """The optimal denoiser of N(MEAN, STD^2), the mean moved by the condition."""
    mean = MEAN if condition is None else MEAN + condition[:, None]
    variance = jnp.square(level.sigma)[:, None]
    return Denoised(mean + STD**2 / (STD**2 + variance) * (x - mean))


def correlated(x, level, condition=None):
    """That of two numbers of deviation 1, of correlation RHO."""
    both = jnp.array([[1.0, RHO], [RHO, 1.0]])

    def one(x, sigma):
        return both @ jnp.linalg.solve(both + jnp.square(sigma) * jnp.eye(2), x)

    return Denoised(jax.vmap(one)(x, level.sigma))


def test_a_strip_is_what_the_solver_has(key):
    """Its start, its result, and between them what fewer of the same steps lead to."""
    x = 80 * jax.random.normal(key, (3, 4))
    told = jnp.array([0.0, 1.0, 2.0])

    @jax.jit
    def both(x):
        seen, level = editing.strip(optimal, LEVELS, heun(), key, x, 5, condition=told)
        tenth = LEVELS._replace(num_steps=10)
        return (
            seen,
            level,
            *(solve(optimal, levels, heun(), key, x, condition=told) for levels in (tenth, LEVELS)),
        )

    seen, level, tenth, last = both(x)
    assert seen.shape == (5, 3, 4)
    np.testing.assert_array_equal(seen[0], x)
    np.testing.assert_allclose(seen[1], tenth, rtol=1e-5)
    np.testing.assert_allclose(seen[-1], last, rtol=1e-5)
    np.testing.assert_allclose(level.sigma, LEVELS.level.sigma[jnp.array([0, 10, 20, 30, 40])])


def test_image_to_image_is_the_ode_of_noised_examples(key):
    """Of Gaussian data the ODE draws what is noised back to the mean, by the ratio of deviations;
    the number of steps may be traced."""
    x0 = jax.random.normal(jax.random.fold_in(key, 1), (2, 4))
    run = jax.jit(lambda done: editing.image_to_image(optimal, LEVELS, heun(), key, x0, done))
    for done in (15, 30):
        sigma = LEVELS.level.sigma[done]
        noise = jax.random.normal(jax.random.split(key)[0], (8,)).reshape(2, 4)
        want = MEAN + (x0 + sigma * noise - MEAN) * STD / jnp.sqrt(STD**2 + sigma**2)
        np.testing.assert_allclose(run(done), want, atol=0.02)


def test_inpainting_keeps_what_is_known_and_suits_it(key):
    """The unknown number's mean is RHO times the known one's, nearer with steps repeated."""
    given = jnp.broadcast_to(jnp.array([1.5, 9.0]), (2000, 2))
    known = jnp.broadcast_to(jnp.array([True, False]), (2000, 2))

    @partial(jax.jit, static_argnums=0)
    def run(repeats):
        solver = editing.inpainting(ancestral(), given, known, repeats=repeats)
        return solve(correlated, LEVELS, solver, key, 80 * jax.random.normal(key, (2000, 2)))

    plain, repeated = run(1), run(12)
    np.testing.assert_array_equal(plain[:, 0], 1.5)
    np.testing.assert_array_equal(repeated[:, 0], 1.5)
    off = [abs(float(x[:, 1].mean()) - RHO * 1.5) for x in (plain, repeated)]
    assert off[1] < 0.1 < off[0]
    assert repeated[:, 1].std() == pytest.approx(np.sqrt(1 - RHO**2), abs=0.1)


def test_examples_are_found_again_from_their_noise(key):
    x0 = MEAN + STD * jax.random.normal(key, (2, 6))
    told = jnp.array([0.0, 1.0])

    @jax.jit
    def run(x0):
        noise = editing.invert(optimal, LEVELS, heun(), x0, condition=told)
        way = editing.interpolate(optimal, LEVELS, heun(), x0, x0[::-1], 3, condition=told)
        return noise, way

    noise, way = run(x0)
    mean = MEAN + told[:, None]
    want = mean + (x0 - mean) * jnp.sqrt(STD**2 + 80**2) / STD
    np.testing.assert_allclose(noise, want, rtol=0.03, atol=1.5)
    np.testing.assert_allclose(way[0], x0, atol=0.01)
    np.testing.assert_allclose(way[2], x0[::-1], atol=0.01)


def test_the_middle_of_noise_keeps_its_length(key):
    a, b = jax.random.normal(key, (2, 5, 4, 4, 1))
    way = editing.between(a, b, 3)
    lengths = jnp.linalg.norm(way.reshape(3, 5, -1), axis=-1)
    assert jnp.all(lengths[1] > 0.9 * jnp.minimum(lengths[0], lengths[2]))
    np.testing.assert_allclose(way[0], a, atol=1e-5)


def test_bad_arguments(key):
    x, mask = jnp.zeros((2, 3)), jnp.zeros((2, 3), bool)
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        editing.strip(optimal, LEVELS, ddim(), key, x, 1)
    with pytest.raises(ValueError, match="done must be from 0 to 39, got 40"):
        editing.image_to_image(optimal, LEVELS, ddim(), key, x, 40)
    with pytest.raises(ValueError, match="levels must fall for image_to_image"):
        editing.image_to_image(optimal, reverse(LEVELS), ddim(), key, x, 3)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        editing.inpainting(ddim(), x, mask, repeats=0)
    with pytest.raises(ValueError, match="known"):
        editing.inpainting(ddim(), x, mask[:, :2])
    with pytest.raises(ValueError, match="levels must fall for inpainting"):
        solve(optimal, reverse(LEVELS), editing.inpainting(ddim(), x, mask), key, x)
    with pytest.raises(ValueError, match="levels must fall for ancestral"):
        editing.invert(optimal, LEVELS, ancestral(), x)
    with pytest.raises(ValueError, match="start and end|must have one shape|end"):
        editing.interpolate(optimal, LEVELS, heun(), x, x[:1], 3)
