"""The feature loss at known values."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.perceptual import perceptual_loss

POINTS = jnp.zeros((3, 2))


def test_perceptual_loss_sums_positions_channels_and_layers():
    x = {"one": jnp.zeros((2, 3, 3, 2)), "two": jnp.zeros((2, 5))}
    y = {"one": jnp.full((2, 3, 3, 2), 0.5), "two": jnp.array([[2.0] * 5, [0.0] * 5])}
    np.testing.assert_allclose(perceptual_loss(x, y), [18 * 0.25 + 5 * 4, 18 * 0.25])
    np.testing.assert_allclose(perceptual_loss(x["one"], y["one"]), [4.5, 4.5])
    np.testing.assert_array_equal(perceptual_loss(x, x), [0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perceptual_loss({}, {}), "at least one"),
        (lambda: perceptual_loss([POINTS], [POINTS.T]), r"\(3, 2\).* and .*\(2, 3\)"),
        (lambda: perceptual_loss([POINTS], {"a": POINTS}), "the same layers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
