"""Checked choices, flat noise, and the sigmoid's logarithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.primitives import check_choice, log_sigmoid, standard_normal


def test_log_sigmoid_and_its_gradient():
    x = np.array([-1e30, -1e4, -90.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 90.0, 1e4])
    found = log_sigmoid(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, scipy.special.log_expit(x), rtol=2e-6, atol=1e-30)
    slope = jax.vmap(jax.grad(log_sigmoid))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(slope, scipy.special.expit(-x), rtol=2e-6, atol=1e-7)
    curve = jax.vmap(jax.grad(jax.grad(log_sigmoid)))(jnp.array([-2.0, 3.0]))
    s = scipy.special.expit(np.array([-2.0, 3.0]))
    np.testing.assert_allclose(curve, -s * (1 - s), rtol=1e-5)
    assert float(log_sigmoid(jnp.inf * jnp.ones(()))) == 0.0
    assert float(log_sigmoid(-jnp.inf * jnp.ones(()))) == -np.inf


def test_flat_noise_is_the_same_noise(key):
    np.testing.assert_array_equal(standard_normal(key, (2, 3)), jax.random.normal(key, (2, 3)))


def test_check_choice():
    check_choice("mode", "a", ("a", "b"))
    with pytest.raises(ValueError, match="mode must be one of a, b, got 'c'"):
        check_choice("mode", "c", ("a", "b"))
