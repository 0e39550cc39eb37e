"""Convolutions that know where the image ends, and learned scales."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.bijectors.coupling import LearnedPrior, ShiftScale
from jaxgen.models.bijectors.edges import Edges, LearnedScale, outside, zero_conv

KEY = jax.random.key(1, impl="rbg")


def test_edges_are_a_channel_that_is_one_outside():
    """The convolution of the padded image with that channel beside it, written out."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(3, 3, 4, 6))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    indicator = np.pad(np.zeros((2, 4, 5, 1)), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    told = np.concatenate([padded, indicator], axis=-1)

    def convolved(x, kernel):
        taps = [x[:, i : i + 4, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3)]
        return np.sum(taps, axis=0)

    params = {"kernel": jnp.asarray(kernel[:, :, 3].reshape(9, 6), jnp.float32)}
    plain = jnp.asarray(convolved(padded, kernel[:, :, :3]), jnp.float32)
    np.testing.assert_allclose(
        Edges().apply({"params": params}, plain), convolved(told, kernel), atol=1e-5
    )
    np.testing.assert_array_equal(outside(1, 1).reshape(3, 3), [[1, 1, 1], [1, 0, 1], [1, 1, 1]])


def test_zero_conv():
    """It starts at 0; biases, edges and all are scaled by e^(3 s)."""

    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            return zero_conv(x, 2, edges=True, log_scale_factor=3.0)

    x = jax.random.normal(KEY, (2, 3, 3, 4), jnp.bfloat16)
    y, variables = Last().init_with_output(KEY, x)
    assert y.dtype == jnp.float32
    assert not y.any()
    params = variables["params"]
    params["out"]["bias"] = jnp.array([0.1, 0.2])
    params["out_edges"]["kernel"] = jnp.full((9, 2), 0.01)
    params["out_scale"]["log_scale"] = jnp.array([0.5, 0.0])
    y = Last().apply(variables, x)
    np.testing.assert_allclose(y[0, 1, 1], [0.1 * np.exp(1.5), 0.2], rtol=1e-6)
    np.testing.assert_allclose(y[0, 0, 0], [0.15 * np.exp(1.5), 0.25], rtol=1e-5)
    np.testing.assert_allclose(
        LearnedScale(2.0).apply({"params": {"log_scale": jnp.ones(1)}}, jnp.ones((1, 1))),
        [[np.exp(2)]],
        rtol=1e-6,
    )


def test_a_prior_with_edges_knows_them():
    """One mean at the corners, one at the sides, one inside."""
    prior = LearnedPrior(ShiftScale(), edges=True)
    x = jnp.zeros((1, 4, 4, 1))
    (_, _), variables = prior.init_with_output(KEY, x)
    variables["params"]["edges"]["kernel"] = jnp.ones((9, 2)) * jnp.array([[1.0, 0.0]])
    y, log_det = prior.apply(variables, x)
    np.testing.assert_array_equal(y[0, :2, :2, 0], [[5, 3], [3, 0]])
    np.testing.assert_array_equal(log_det, 0)
