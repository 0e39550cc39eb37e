"""Conditions become vectors, alike for classes, attributes and embeddings; bad ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import conditioning


def test_labels_are_one_hot():
    classes = conditioning.labels(3)
    np.testing.assert_array_equal(classes.encode(jnp.array([2, 0])), [[0, 0, 1], [1, 0, 0]])
    assert (classes.key, classes.width, classes.shape) == ("label", 3, ())
    np.testing.assert_array_equal(classes.sweep, [0, 1, 2])


def test_attributes_are_signs():
    two = conditioning.attributes(2)
    np.testing.assert_array_equal(two.encode(jnp.array([[1, 0]])), [[1, -1]])
    np.testing.assert_array_equal(two.sweep, [[0, 0], [1, 0], [0, 1]])


def test_embeddings_pass():
    x = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
    encoded = conditioning.embeddings(3).encode(x)
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, x.astype(jnp.float32))


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        (conditioning.labels(3), [0, 3]),
        (conditioning.labels(3), [-1, 0]),
        (conditioning.attributes(2), [[0, 1], [2, 0]]),
    ],
)
def test_values_out_of_range(kind, condition):
    """Known values raise; traced ones give NaN for that example alone."""
    with pytest.raises(ValueError, match="must lie in"):
        kind.encode(jnp.array(condition))
    encoded = jax.jit(kind.encode)(jnp.array(condition))
    bad = np.isnan(encoded).any(axis=1)
    assert bad.sum() == 1


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        (conditioning.labels(3), jnp.zeros((2, 3), jnp.int32), "must be integers"),
        (conditioning.labels(3), jnp.zeros(2), "must be integers"),
        (conditioning.attributes(2), jnp.zeros((4, 3)), r"shape \[B, 2\], got \[4, 3\]"),
        (conditioning.embeddings(5), jnp.zeros((4, 3)), r"shape \[B, 5\], got \[4, 3\]"),
        (None, jnp.zeros(2), "must be None"),
        (conditioning.labels(3), None, "must be given"),
    ],
)
def test_bad_conditions(kind, condition, message):
    with pytest.raises(ValueError, match=message):
        conditioning.encode(kind, condition)


@pytest.mark.parametrize(
    "make", [conditioning.labels, conditioning.attributes, conditioning.embeddings]
)
def test_bad_sizes(make):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make(0)
