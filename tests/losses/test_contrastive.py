"""The contrastive loss: by hand, at its extremes, without those that say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.contrastive import contrastive


def test_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    s = 7 * unit[0] @ unit[1].T
    p = np.exp(s)
    expected = -np.diag(s) + (np.log(p.sum(axis=1)) + np.log(p.sum(axis=0))) / 2
    ours = contrastive(jnp.float32(a), jnp.float32(b), 7.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    # The two kinds may be exchanged, and the vectors' lengths do not count.
    np.testing.assert_allclose(
        contrastive(jnp.float32(b), jnp.float32(3 * a), 7.0), ours, rtol=1e-5
    )


def test_chance_is_the_log_of_the_batch():
    x = jnp.ones((8, 4))
    np.testing.assert_allclose(contrastive(x, x, 100.0), np.log(8), rtol=1e-5)


def test_what_says_the_same_is_left_out():
    a, b = jax.random.normal(jax.random.key(0), (2, 4, 3))
    alike = jnp.eye(4, dtype=bool).at[0, 3].set(True).at[3, 0].set(True)
    nats = contrastive(a, b, 5.0, alike)
    rows = np.array([0, 1, 2])
    s = (
        5
        * np.asarray(a / jnp.linalg.norm(a, axis=1, keepdims=True))
        @ np.asarray(b / jnp.linalg.norm(b, axis=1, keepdims=True)).T
    )
    across, down = np.exp(s[0, rows]).sum(), np.exp(s[rows, 0]).sum()
    assert nats[0] == pytest.approx(np.log(across) / 2 + np.log(down) / 2 - s[0, 0], rel=1e-4)
    assert (contrastive(a, b, 5.0, jnp.ones((4, 4), bool)) == 0).all()


def test_gradients_are_finite_at_the_extremes():
    x = jnp.zeros((3, 2)).at[0, 0].set(1e-20).at[1].set(1e15)
    gradients = jax.grad(lambda x: contrastive(x, x, 100.0).sum())(x)
    assert np.isfinite(gradients).all()
