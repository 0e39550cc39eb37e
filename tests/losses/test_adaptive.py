"""The adaptive weight of an adversarial term, and games on maps of logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.adaptive import adaptive_weight, over_patches
from jaxgen.losses.gan import hinge, non_saturating

X = jnp.array([[1.0, 2.0], [3.0, -1.0]])
W = jnp.array([0.5, -0.25])


def reconstruction(w):  # per example; the mean's gradient is that of the two squares
    return jnp.square(X @ w - 1.0)


def adversarial(w):
    return 3.0 * X @ w


def test_known_value():
    """Ratio of the norms of the means' gradients, worked out by hand."""
    errors = np.asarray(X) @ np.asarray(W) - 1
    first = np.linalg.norm((2 * errors[:, None] * np.asarray(X)).mean(0))
    second = np.linalg.norm(3 * np.asarray(X).mean(0))
    found = adaptive_weight(reconstruction, adversarial, W)
    np.testing.assert_allclose(found, first / (second + 1e-4), rtol=1e-6)
    assert found.shape == ()
    # Of a pytree of parameters all count.
    apart = adaptive_weight(lambda w: reconstruction(jnp.stack(w)),
                            lambda w: adversarial(jnp.stack(w)), tuple(W))  # fmt: skip
    np.testing.assert_allclose(apart, found, rtol=1e-6)


def test_weights_of_examples():
    """An example of weight 0 has no part in it, one of weight 2 that of two."""
    alone = adaptive_weight(lambda w: reconstruction(w)[:1], lambda w: adversarial(w)[:1], W)
    masked = adaptive_weight(reconstruction, adversarial, W, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(masked, alone, rtol=1e-6)
    twice = adaptive_weight(
        lambda w: jnp.append(reconstruction(w), reconstruction(w)[1]),
        lambda w: jnp.append(adversarial(w), adversarial(w)[1]),
        W,
    )
    weighted = adaptive_weight(reconstruction, adversarial, W, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(weighted, twice, rtol=1e-6)


def test_limits():
    """Where nothing is judged it is the ceiling, where nothing is to be gained 0."""
    nothing = lambda w: 0.0 * X @ w  # noqa: E731
    assert adaptive_weight(lambda w: 10 * reconstruction(w), nothing, W) == 1e4
    assert adaptive_weight(lambda w: 10 * reconstruction(w), nothing, W, ceiling=7.0) == 7
    assert adaptive_weight(nothing, adversarial, W) == 0
    assert adaptive_weight(nothing, nothing, W) == 0


def test_no_gradient_flows():
    def loss(w):
        return adaptive_weight(lambda v: w.sum() * reconstruction(v), adversarial, w)

    np.testing.assert_array_equal(jax.grad(loss)(W), jnp.zeros(2))


def test_the_same_over_mapped_devices():
    """The batch's, whichever parts of it lie together."""
    x, weight = jnp.stack([X[:1], X[1:]]), jnp.array([[1.0], [3.0]])

    @partial(jax.vmap, axis_name="devices")
    def mapped(x, weight):
        return adaptive_weight(
            lambda w: jnp.square(x @ w - 1.0), lambda w: 3.0 * x @ w, W, weight, axis_name="devices"
        )

    whole = adaptive_weight(reconstruction, adversarial, W, weight.ravel())
    np.testing.assert_allclose(mapped(x, weight), [whole, whole], rtol=1e-6)


def test_patches_are_averaged():
    real, fake = jnp.array([[[2.0, 0.0]], [[0.5, -1.0]]]), jnp.array([[[-2.0, 1.0]], [[0.0, 3.0]]])
    game = over_patches(hinge)
    np.testing.assert_allclose(
        game.discriminator(real, fake), [((0 + 0) + (1 + 2)) / 2, ((0.5 + 1) + (2 + 4)) / 2]
    )
    np.testing.assert_allclose(game.generator(fake, real), [0.5, -1.5])
    single = over_patches(non_saturating).generator(fake[:, 0, :1], real[:, 0, :1])
    np.testing.assert_allclose(
        single, non_saturating.generator(fake[:, 0, 0], real[:, 0, 0]), rtol=1e-6
    )


def test_bad_input():
    with pytest.raises(ValueError, match="ceiling must be positive, got 0"):
        adaptive_weight(reconstruction, adversarial, W, ceiling=0.0)
    with pytest.raises(ValueError, match="parameters must hold at least one array"):
        adaptive_weight(reconstruction, adversarial, {})
    with pytest.raises(ValueError, match=r"logits must be of one shape \[B, ...\], got"):
        over_patches(hinge).generator(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
