"""Lengths of a generator's steps, where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.path_length import path_length_penalty, path_lengths

LAYERS, SIDE = 3, 32


def test_lengths_of_a_linear_generator():
    """Images c w, shown by each of three layers: |J^T y| is c |y|, about c at any size."""
    width = SIDE * SIDE

    def synthesize(styles):
        scale = jnp.array([1.0, 2.0, 3.0])[:, None, None, None, None]
        return jnp.sum(scale * styles.reshape(3, LAYERS, SIDE, SIDE, 1).swapaxes(0, 1), axis=0)

    lengths = path_lengths(synthesize, jnp.ones((3, LAYERS, width)), jax.random.key(0))
    assert lengths.dtype == jnp.float32
    # The mean over layers of c^2, and |y|^2 = 1 to a few per cent for 1024 pixels.
    np.testing.assert_allclose(lengths, np.sqrt((1 + 4 + 9) / 3), rtol=0.1)
    assert len(set(np.asarray(lengths).tolist())) == 3  # each example has a y of its own


def test_a_length_is_that_of_the_jacobian():
    """Against the Jacobian of one example, written out."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 12)), jnp.float32)

    def synthesize(styles):
        return jnp.sin(jnp.einsum("blw,lwp->bp", styles, weights)).reshape(-1, 2, 2, 3)

    styles = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 4)), jnp.float32)
    key = jax.random.key(3)
    y = jax.random.normal(key, (12,)).reshape(1, 2, 2, 3) / 2
    jacobian = jax.jacobian(synthesize)(styles)[0, ..., 0, :, :]
    pulled = jnp.einsum("hwc,hwclk->lk", y[0], jacobian)
    expected = np.sqrt(np.mean(np.sum(np.square(pulled), axis=1)))
    np.testing.assert_allclose(path_lengths(synthesize, styles, key)[0], expected, rtol=1e-5)


def test_a_generator_that_ignores_its_styles():
    """Length 0, and a gradient that is finite."""

    def loss(scale):
        lengths = path_lengths(
            lambda w: scale * w.reshape(2, 1, 1, 3), jnp.ones((2, 1, 3)), jax.random.key(0)
        )
        return path_length_penalty(lengths, jnp.float32(1.0)).sum()

    value, slope = jax.value_and_grad(loss)(0.0)
    assert value == 2
    assert np.isfinite(slope)


def test_the_penalty():
    lengths, mean = jnp.array([1.0, 3.0]), jnp.float32(2.5)
    np.testing.assert_array_equal(path_length_penalty(lengths, mean), [2.25, 0.25])


def test_bad_input():
    with pytest.raises(ValueError, match=r"styles must be \[B, L, W\], got \[2, 3\]"):
        path_lengths(lambda w: w, jnp.ones((2, 3)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"must return images \[2, H, W, C\], got \[2, 1, 3\]"):
        path_lengths(lambda w: w, jnp.ones((2, 1, 3)), jax.random.key(0))
