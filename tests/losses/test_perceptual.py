"""The feature loss and LPIPS at known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.core import Variables
from jaxgen.losses.perceptual import by_features, by_lpips, fixed, lpips, perceptual_loss

POINTS, PIXELS = jnp.zeros((3, 2)), jnp.zeros((3, 2, 2, 2))


def test_perceptual_loss_sums_positions_channels_and_layers():
    x = {"one": jnp.zeros((2, 3, 3, 2)), "two": jnp.zeros((2, 5))}
    y = {"one": jnp.full((2, 3, 3, 2), 0.5), "two": jnp.array([[2.0] * 5, [0.0] * 5])}
    np.testing.assert_allclose(perceptual_loss(x, y), [18 * 0.25 + 5 * 4, 18 * 0.25])
    np.testing.assert_allclose(perceptual_loss(x["one"], y["one"]), [4.5, 4.5])
    np.testing.assert_array_equal(perceptual_loss(x, x), [0, 0])


def pixel(*channels):
    """One layer of one pixel of one image."""
    return jnp.asarray(channels, jnp.float32).reshape(1, 1, 1, -1)


def test_lpips_compares_directions():
    """Unit vectors at a right angle differ by 1 in two channels; lengths do not matter."""
    x, y = [pixel(3, 0), pixel(1, 1, 0)], [pixel(0, 5), pixel(2, 2, 0)]
    weights = [jnp.array([0.25, 0.5]), jnp.array([1.0, 1.0, 1.0])]
    np.testing.assert_allclose(lpips(x, y, weights), [0.75], rtol=1e-6)
    np.testing.assert_allclose(lpips(x[:1], [pixel(0, 0)], weights[:1]), [0.25], rtol=1e-6)
    # A mean over positions: a quarter of the pixels differ.
    x = jnp.ones((2, 2, 2, 1)).at[0, 0, 0].set(0)
    np.testing.assert_allclose(lpips([x], [jnp.ones_like(x)], [jnp.ones(1)]), [0.25, 0], rtol=1e-6)


def test_lpips_is_a_distance():
    layers = [jax.random.normal(jax.random.key(i), (2, 3, 4, 4, 5)) for i in range(2)]
    layers = [jax.nn.relu(layer) for layer in layers]
    x, y = ([layer[i] for layer in layers] for i in range(2))
    weights = [jnp.linspace(0, 1, 5)] * 2
    np.testing.assert_array_equal(lpips(x, x, weights), 0)
    np.testing.assert_allclose(lpips(x, y, weights), lpips(y, x, weights), rtol=1e-6)
    assert np.all(lpips(x, y, weights) > 0.1)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-15, 1.0])
def test_gradients_are_finite(scale):
    """Where images are equal, and where no channel is active, or hardly."""
    x = scale * jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]).reshape(1, 3, 1, 2)
    gradient = jax.grad(lambda x, y: lpips([x], [y], [jnp.ones(2)]).sum())
    np.testing.assert_array_equal(gradient(x, x), 0)
    assert np.isfinite(gradient(x, x[:, ::-1])).all()


def test_a_distance_with_its_arrays():
    """What a family takes: a function of its arrays and two batches of images."""

    def network(params, x):
        return [params * x]

    x, y = jnp.full((2, 4, 4, 3), 0.5), jnp.zeros((2, 4, 4, 3)).at[..., 0].set(1.0)
    by_squares = by_features(network, jnp.float32(2))
    np.testing.assert_allclose(by_squares.distance(by_squares.fixed, x, y), 16 * 4 * 0.75)
    learned = by_lpips(network, jnp.float32(2), [jnp.ones(3)])
    expected = 2 - 2 / np.sqrt(3)
    np.testing.assert_allclose(learned.distance(learned.fixed, x, y), expected, rtol=1e-6)
    variables = Variables({}, {}, fixed(learned))
    assert variables.fixed["perceptual"] is learned.fixed
    assert fixed(None) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perceptual_loss({}, {}), "at least one"),
        (lambda: perceptual_loss([POINTS], [POINTS.T]), r"\(3, 2\).* and .*\(2, 3\)"),
        (lambda: perceptual_loss([POINTS], {"a": POINTS}), "the same layers"),
        (lambda: lpips([], [], []), "at least one"),
        (lambda: lpips([PIXELS], [PIXELS], [jnp.ones(3)]), r"\[\(2,\)\].* got \[\(3,\)\]"),
        (lambda: lpips([PIXELS], [PIXELS], []), r"weights must have the shapes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
