"""What is observed of a GAN's two players, at values known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.families import gan_balance as balance


@pytest.mark.parametrize(
    ("loss", "right_real", "right_fake"),
    [
        ("hinge", [1, 1, 0], [0, 0, 1]),  # undecided at 0
        ("least_squares", [1, 0, 0], [0, 1, 1]),  # at 1/2
        ("wasserstein", [1, 0, 0], [0, 0, 1]),  # at 1.1 / 2, between the means 0.3 and 0.8
    ],
)
def test_observe(loss, right_real, right_fake):
    real, fake = jnp.array([2.0, 0.4, -1.5]), jnp.array([2.6, 0.3, -0.5])
    if loss == "wasserstein":
        fake = jnp.array([2.6, 0.6, -0.8])
    metrics = balance.observe(loss, real, fake)
    np.testing.assert_array_equal(metrics["real_logit"], real)
    np.testing.assert_array_equal(metrics["fake_logit"], fake)
    np.testing.assert_array_equal(metrics["real_accuracy"], right_real)
    np.testing.assert_array_equal(metrics["fake_accuracy"], right_fake)


def test_diversity(key):
    real = jax.random.normal(key, (8, 4, 4, 1))
    np.testing.assert_allclose(balance.diversity(0.5 * real + 1, real), np.full(8, 0.5), rtol=1e-5)
    alike = jnp.broadcast_to(real[:1], real.shape)
    np.testing.assert_allclose(balance.diversity(alike, real), np.zeros(8), atol=1e-6)
    assert np.isfinite(balance.diversity(real, alike)).all()
    gradient = jax.grad(lambda x: balance.diversity(x, real).sum())(0.5 * real)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(real))


def test_no_warning_without_metrics():
    assert balance.warnings("hinge", "discriminator", {"discriminator/loss": 1.0}) == []
