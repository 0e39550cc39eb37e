"""Masked means and units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.reduce import bits_per_dim, weighted_mean, weighted_sum

VALUES = jnp.array([1.0, -2.0, 4.0, 8.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, bool])
def test_weight_equals_slicing(dtype):
    weight = jnp.array([1, 0, 1, 0], dtype)
    assert weighted_mean(VALUES, weight) == jnp.mean(VALUES[::2]) == 2.5
    assert weighted_sum(VALUES, weight) == (5.0, 2.0)


def test_no_weight_keeps_all():
    assert weighted_mean(VALUES) == weighted_mean(VALUES, jnp.ones(4)) == 2.75
    assert weighted_sum(VALUES) == weighted_sum(VALUES, jnp.ones(4)) == (11.0, 4.0)


def test_an_empty_weight_gives_zero():
    assert weighted_mean(VALUES, jnp.zeros(4)) == 0


def test_weights():
    assert weighted_mean(VALUES, jnp.array([2.0, 0, 0, 1])) == pytest.approx(10 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weighted_values_do_no_harm(bad):
    values, weight = VALUES.at[1].set(bad), jnp.array([1.0, 0.0, 1.0, 1.0])
    value, gradient = jax.value_and_grad(weighted_mean)(values, weight)
    assert value == pytest.approx(13 / 3)
    np.testing.assert_allclose(gradient, [1 / 3, 0, 1 / 3, 1 / 3], rtol=1e-6)


def test_bits_per_dim():
    # A uniform model of 8-bit images costs 8 bits per dimension.
    nats = jnp.full(3, 32 * 32 * 3 * np.log(256.0))
    np.testing.assert_allclose(bits_per_dim(nats, 32 * 32 * 3), 8, rtol=1e-6)
    assert bits_per_dim(np.log(2.0) * 10, 5) == pytest.approx(2)
    with pytest.raises(ValueError, match="num_dims must be at least 1, got 0"):
        bits_per_dim(nats, 0)
