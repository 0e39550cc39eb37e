"""Distances and weights of consistency losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.losses.consistency import (
    alike,
    consistency_loss,
    inverse_width,
    mean_squared,
    pseudo_huber,
)


def test_distances():
    a, b = jnp.zeros((2, 4)), jnp.array([[0.0] * 4, [3.0, 0.0, 4.0, 0.0]])
    c = 0.00054 * 2
    np.testing.assert_allclose(pseudo_huber(a, b), [0, np.sqrt(25 + c**2) - c], rtol=1e-6)
    np.testing.assert_allclose(mean_squared(a, b), [0, 25 / 4])
    assert np.isfinite(jax.grad(lambda a: pseudo_huber(a, b).sum())(a)).all()


def test_the_loss_and_its_gradient():
    """Weighted by the interval's width; what is said at the cleaner level has no gradient."""
    low, high = jnp.array([0.1, 1.0]), jnp.array([0.2, 3.0])
    a, b = jnp.ones((2, 4)), jnp.zeros((2, 4))
    values = consistency_loss(a, b, low, high, mean_squared, inverse_width)
    np.testing.assert_allclose(values, [10, 0.5], rtol=1e-5)
    np.testing.assert_allclose(consistency_loss(a, b, low, high, mean_squared, alike), [1, 1])
    slopes = jax.grad(lambda a, b: consistency_loss(a, b, low, high).sum(), argnums=(0, 1))(a, b)
    assert (slopes[0] > 0).all()
    assert not slopes[1].any()
