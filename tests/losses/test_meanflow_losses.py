"""MeanFlow's identity where the average velocity is known: Gaussian data on straight lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.meanflow import adaptive, guided_velocity, identity_error
from jaxgen.sampling.meanflow import jump

MEAN, STD = 0.7, 0.4


def moments(t):
    """Mean and deviation of `(1 - t) x0 + t eps`, x0 of N(MEAN, STD^2)."""
    return (1 - t) * MEAN, jnp.sqrt(jnp.square((1 - t) * STD) + jnp.square(t))


def exact(z, r, t):
    """`(z_t - z_r) / (t - r)`, the path through z being `mean + std n` of one n."""
    (mean_r, std_r), (mean_t, std_t) = moments(r), moments(t)
    n = (z - mean_t[:, None]) / std_t[:, None]
    apart = jnp.where(t > r, t - r, 1.0)[:, None]
    return (z - mean_r[:, None] - std_r[:, None] * n) / apart


def field(z, t):
    """The velocity: the slopes of mean and deviation."""
    mean, std = moments(t)
    slope = (t - (1 - t) * STD**2) / std
    return -MEAN + (slope / std)[:, None] * (z - mean[:, None])


def times(num, key):
    both = jax.random.uniform(key, (2, num), minval=0.05)
    return both.min(0), both.max(0)


def test_the_exact_average_leaves_nothing(key):
    r, t = times(64, key)
    z = 2 * jax.random.normal(key, (64, 3))
    error = identity_error(exact, z, field(z, t), r, t)
    np.testing.assert_allclose(error, 0, atol=2e-4)
    wrong = identity_error(lambda z, r, t: exact(z, r, t) * 1.1, z, field(z, t), r, t)
    assert jnp.abs(wrong).mean() > 0.02


def test_the_examples_own_velocity_is_right_on_average(key):
    """Given z it is the field's but for noise: what is left has no mean and no slope in z."""
    num = 200_000
    key_x, key_eps = jax.random.split(key)
    x0 = MEAN + STD * jax.random.normal(key_x, (num, 1))
    eps = jax.random.normal(key_eps, (num, 1))
    r, t = jnp.full(num, 0.2), jnp.full(num, 0.7)
    z = 0.3 * x0 + 0.7 * eps
    error = identity_error(exact, z, eps - x0, r, t)
    assert jnp.abs(error.mean()) < 0.01
    assert jnp.abs((error * (z - z.mean())).mean()) < 0.01


def test_the_target_has_no_gradient(key):
    r, t = times(8, key)
    z = jax.random.normal(key, (8, 3))
    v = field(z, t)

    def loss(scale):
        error = identity_error(lambda z, r, t: scale * exact(z, r, t), z, v, r, t)
        return 0.5 * jnp.sum(jnp.square(error))

    error = identity_error(lambda z, r, t: 1.3 * exact(z, r, t), z, v, r, t)
    want = jnp.sum(error * exact(z, r, t))
    np.testing.assert_allclose(jax.grad(loss)(1.3), want, rtol=1e-4)


@pytest.mark.parametrize("points", [2, 4])
def test_jumps_are_exact(points, key):
    """From noise to data in one step as in three: to the deviation's share of each."""
    z = jax.random.normal(key, (16, 3))
    got = jax.jit(lambda z: jump(exact, jnp.linspace(1.0, 0.0, points), z))(z)
    np.testing.assert_allclose(got, MEAN + STD * z, atol=2e-6)


def test_adaptive_weights():
    squared = jnp.array([0.0, 1.0, 100.0])
    np.testing.assert_allclose(adaptive(squared, 0.0), squared)
    np.testing.assert_allclose(adaptive(squared, 1.0, 0.5), squared / (squared + 0.5), rtol=1e-6)
    slopes = jax.grad(lambda s: adaptive(s, 0.75, 0.5).sum())(squared)
    np.testing.assert_allclose(slopes, (squared + 0.5) ** -0.75, rtol=1e-6)


def test_guided_velocities():
    v, c, u = (jnp.full((2, 3), value) for value in (1.0, 10.0, 100.0))
    np.testing.assert_allclose(guided_velocity(v, c, u, 1.0), v)
    np.testing.assert_allclose(guided_velocity(v, c, u, 2.0), 2 * v - u)
    np.testing.assert_allclose(guided_velocity(v, c, u, 1.0, 0.5), v + 0.5 * c - 0.5 * u)
    # at the fixed point c = v_g, where v is c's own field on average, the scale is w / (1 - k)
    w, k = 1.5, 0.25
    fixed = (w * v + (1 - w - k) * u) / (1 - k)
    np.testing.assert_allclose(guided_velocity(v, fixed, u, w, k), fixed, rtol=1e-6)


def test_bad_arguments():
    z, one = jnp.ones((2, 3)), jnp.ones(2)
    with pytest.raises(ValueError, match="power must be at least 0, got -1"):
        adaptive(one, -1.0)
    with pytest.raises(ValueError, match="offset must be positive, got 0"):
        adaptive(one, 1.0, 0.0)
    with pytest.raises(ValueError, match="times must be two or more, got 1"):
        jump(exact, jnp.ones(1), z)
