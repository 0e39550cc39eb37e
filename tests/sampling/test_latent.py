"""Latents: truncated draws stay inside, paths keep their ends and their lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.sampling.latent import interpolate, normal_hierarchy, normal_latents


def test_truncation(key):
    z = normal_latents(key, 2000, 8, truncation=0.7)
    assert np.abs(z).max() < 0.7
    expected = stats.truncnorm(-0.7, 0.7).std()
    np.testing.assert_allclose(np.std(z), expected, rtol=0.02)
    np.testing.assert_allclose(np.std(normal_latents(key, 2000, 8)), 1.0, rtol=0.02)


def test_spherical_paths_keep_the_length(key):
    a, b = (
        z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in jax.random.normal(key, (2, 5, 16))
    )
    path = interpolate(3 * a, 3 * b, 7)
    assert path.shape == (7, 5, 16)
    np.testing.assert_allclose(path[0], 3 * a, atol=1e-6)
    np.testing.assert_allclose(path[-1], 3 * b, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(path, axis=-1), 3.0, rtol=1e-5)
    steps = jnp.linalg.norm(jnp.diff(path, axis=0), axis=-1)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), rtol=1e-4)


def test_linear_paths_are_even():
    path = interpolate(jnp.zeros((1, 2)), jnp.ones((1, 2)), 5, "linear")
    np.testing.assert_allclose(path[:, 0, 0], [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("scale", [1.0, -1.0, 2.0])
def test_parallel_latents(scale):
    """0/0 in the formula: linear, and with finite gradients."""
    a = jnp.array([[1.0, 2.0]])
    path = interpolate(a, scale * a, 3)
    np.testing.assert_allclose(path[1], 0.5 * (1 + scale) * a, atol=1e-3)
    gradient = jax.grad(lambda a: jnp.sum(interpolate(a, scale * a, 3)))(a + 0.1)
    assert np.isfinite(gradient).all()


def test_bad_input(key):
    z = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="path must be"):
        interpolate(z, z, 3, "straight")
    with pytest.raises(ValueError, match="num must be at least 2"):
        interpolate(z, z, 1)
    with pytest.raises(ValueError, match="one shape"):
        interpolate(z, z[:1], 3)
    with pytest.raises(ValueError, match="truncation must be positive"):
        normal_latents(key, 2, 3, truncation=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        normal_latents(key, 0, 3)


def test_a_hierarchy(key):
    """Every array under N(0, I), each of its own draws; paths keep the length of each."""
    space = normal_hierarchy({1: (16,), 4: (4, 4, 16)})
    drawn = space.draw(key, 500)
    assert {name: z.shape for name, z in drawn.items()} == {1: (500, 16), 4: (500, 4, 4, 16)}
    for z in drawn.values():
        np.testing.assert_allclose(np.std(z), 1.0, rtol=0.02)
    assert abs(np.corrcoef(drawn[1].ravel(), drawn[4][:, 0, 0].ravel())[0, 1]) < 0.05
    start, end = (jax.tree.map(lambda z, i=i: z[i : i + 2], drawn) for i in (0, 2))
    path = space.interpolate(start, end, 5)
    for name, z in path.items():
        np.testing.assert_allclose(z[0], start[name], atol=1e-5)
        np.testing.assert_allclose(z[-1], end[name], atol=1e-5)
        norms = np.linalg.norm(z.reshape(5, 2, -1), axis=-1)
        assert (norms > 0.7 * norms[[0, -1]].min()).all()
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        space.draw(key, 0)
