"""Companding at the published values."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.mu_law import mu_law_decode, mu_law_encode


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
    for function in (mu_law_encode, lambda x, n: mu_law_decode(x.astype(jnp.int32), n)):
        with pytest.raises(ValueError, match="num_values must be at least 2, got 1"):
            function(jnp.zeros(3), 1)
