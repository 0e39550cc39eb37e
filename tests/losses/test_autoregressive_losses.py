"""Autoregressive likelihoods at known values, and companding at the published ones."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxgen.losses.autoregressive import (
    categorical_nll,
    mixture_of_logistics_nll,
    mu_law_decode,
    mu_law_encode,
)


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


def test_mu_law_at_known_values():
    """f(1/2) = log(128.5) / log(256) = 0.8757, so class round(1.8757 * 127.5) = 239."""
    x = jnp.array([-1.0, -0.5, 0.0, 1 / 255, 0.5, 1.0, 3.0])
    np.testing.assert_array_equal(mu_law_encode(x), [0, 16, 128, 143, 239, 255, 255])


def test_mu_law_round_trip():
    classes = jnp.arange(256)
    np.testing.assert_array_equal(mu_law_encode(mu_law_decode(classes)), classes)
    x = jnp.linspace(-1, 1, 1001)
    error = jnp.abs(mu_law_decode(mu_law_encode(x)) - x)
    assert error.max() < 0.025  # loud
    assert error[jnp.abs(x) < 0.01].max() < 6e-4  # quiet
    mirrored = -mu_law_decode(255 - classes)
    np.testing.assert_allclose(mu_law_decode(classes), mirrored, atol=1e-6)


def test_mu_law_equals_torchaudios_formula():
    """Their encoding, written out: floor((f(x) + 1) / 2 mu + 0.5)."""
    torch = pytest.importorskip("torch")
    x = torch.linspace(-1, 1, 999)
    mu = torch.tensor(255.0)
    f = torch.sign(x) * torch.log1p(mu * torch.abs(x)) / torch.log1p(mu)
    expected = ((f + 1) / 2 * mu + 0.5).to(torch.int64)
    np.testing.assert_array_equal(mu_law_encode(jnp.asarray(x.numpy())), expected)


def test_bad_input():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="logits must have"):
            categorical_nll(jnp.zeros((2, 3, 4)), jnp.zeros((2, 2), jnp.int32))
        with pytest.raises(ValueError, match="params must have"):
            mixture_of_logistics_nll(jnp.zeros((2, 3, 3, 5)), jnp.zeros((2, 2, 1)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="num_values must be at least 2, got 1"):
        mu_law_encode(jnp.zeros(3), 1)
