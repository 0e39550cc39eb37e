"""Autoregressive likelihoods at known values."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxgen.losses.autoregressive import categorical_nll, mixture_of_logistics_nll


def test_uniform_logits():
    nll = categorical_nll(jnp.full((2, 3, 5, 4), 7.0), jnp.zeros((2, 3, 5), jnp.int32))
    np.testing.assert_allclose(nll, [15 * np.log(4)] * 2, rtol=1e-6)


def test_equals_torch(key):
    torch = pytest.importorskip("torch")
    logits = 5 * jax.random.normal(key, (3, 6, 7))
    targets = jax.random.randint(jax.random.key(1), (3, 6), 0, 7)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(np.array(logits)).movedim(-1, 1),
        torch.from_numpy(np.array(targets)).long(),
        reduction="none",
    ).sum(1)
    np.testing.assert_allclose(categorical_nll(logits, targets), expected, rtol=1e-5)


def test_extreme_logits():
    logits = jnp.array([[[1e4, -1e4]]])
    value, gradient = jax.value_and_grad(
        lambda x: categorical_nll(x, jnp.ones((1, 1), jnp.int32)).sum()
    )(logits)
    assert value == 2e4
    np.testing.assert_allclose(gradient, [[[1.0, -1.0]]])


def test_a_value_outside_the_alphabet_is_nan():
    nll = categorical_nll(jnp.zeros((2, 2, 3)), jnp.array([[0, 3], [2, 1]]))
    assert np.isnan(nll[0])
    np.testing.assert_allclose(nll[1], 2 * np.log(3), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mass_of_all_pixels_is_one(channels, key):
    """Over all values of one pixel of 4 levels a channel."""
    rows = {1: 3, 3: 10}[channels]
    params = jax.random.normal(key, (1, 1, 1, rows, 2))
    levels = np.stack(np.meshgrid(*[np.arange(4)] * channels), axis=-1).reshape(-1, channels)
    x = jnp.asarray(2 * levels / 3 - 1, jnp.float32)[:, None, None]
    params = jnp.broadcast_to(params, (len(levels), *params.shape[1:]))
    nll = mixture_of_logistics_nll(params, x, num_bins=4)
    np.testing.assert_allclose(jnp.sum(jnp.exp(-nll)), 1.0, rtol=1e-5)


def test_sums_over_the_example(key):
    params, x = jax.random.normal(key, (2, 3, 4, 10, 5)), jnp.zeros((2, 3, 4, 3)) + 1 / 255
    whole = mixture_of_logistics_nll(params, x)
    parts = [mixture_of_logistics_nll(params[:, i : i + 1], x[:, i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


@pytest.mark.parametrize(
    ("num_values", "dtype"), [(256, "uint8"), (200, "int8"), (300, "uint8"), (256, "uint32")]
)
def test_targets_of_few_bits(num_values, dtype):
    """Compared as they are, 256 is 0 and 200 negative."""
    nats = categorical_nll(jnp.zeros((1, 2, num_values)), jnp.array([[0, 100]], dtype))
    np.testing.assert_allclose(nats, [2 * np.log(num_values)], rtol=1e-6)


def test_bad_input():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="logits must have"):
            categorical_nll(jnp.zeros((2, 3, 4)), jnp.zeros((2, 2), jnp.int32))
        with pytest.raises(ValueError, match="params must have"):
            mixture_of_logistics_nll(jnp.zeros((2, 3, 3, 5)), jnp.zeros((2, 2, 1)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
