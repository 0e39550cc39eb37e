"""Change of variables and dequantization at known values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_uint8
from jaxgen.losses import flow as losses

LEVELS = np.arange(256)
IMAGE = jnp.asarray(LEVELS.reshape(4, 8, 8, 1) / 127.5 - 1, jnp.float32)


def test_change_of_variables_of_a_gaussian():
    """z = (x - 3) / 2 has the density of N(3, 4)."""
    x = np.linspace(-5, 9, 12).reshape(4, 3).astype(np.float32)
    nats = losses.negative_log_likelihood(
        jnp.asarray((x - 3) / 2), jnp.full(4, -3 * math.log(2), jnp.float32)
    )
    np.testing.assert_allclose(nats, -stats.norm(3, 2).logpdf(x).sum(1), rtol=1e-5)


def test_latents_may_be_a_tree():
    z = jax.random.normal(jax.random.key(0), (3, 6))
    tree = (z[:, :2], {"rest": z[:, 2:].reshape(3, 2, 2, 1)})
    expected = stats.norm().logpdf(np.asarray(z)).sum(1)
    np.testing.assert_allclose(losses.prior_log_prob(tree), expected, rtol=1e-5)
    assert losses.prior_log_prob(z.astype(jnp.bfloat16)).dtype == jnp.float32


def test_spaces():
    np.testing.assert_array_equal(losses.to_levels(IMAGE).ravel(), LEVELS)
    middle = losses.to_unit(IMAGE)
    np.testing.assert_allclose(middle.ravel(), (LEVELS + 0.5) / 256, atol=1e-6)
    np.testing.assert_allclose(losses.from_unit(middle), IMAGE, atol=1e-6)
    np.testing.assert_allclose(losses.quantize(middle), IMAGE, atol=1e-6)
    np.testing.assert_array_equal(losses.quantize(jnp.array([[-5.0, 1.0, 9.0]])), [[-1, 1, 1]])


def test_spaces_of_fewer_values():
    """Sixteen steps of grey stored as bytes: each value is one byte, there and back."""
    stored = np.unique(digits("train").arrays["image"])
    image = jnp.asarray(stored / 127.5 - 1, jnp.float32)[:, None]
    levels = np.arange(17)
    np.testing.assert_array_equal(losses.to_levels(image, 17).ravel(), levels)
    x, _ = losses.dequantize(jax.random.key(0), jnp.tile(image, (1, 500)), num_values=17)
    assert stats.kstest(np.ravel(x * 17 - levels[:, None]), "uniform").pvalue > 0.01
    for middle in (x, losses.to_unit(image, 17)):
        drawn = losses.quantize(middle, 17)
        np.testing.assert_array_equal(to_uint8(drawn), np.broadcast_to(stored[:, None], x.shape))
        x = x[:, :1]
    np.testing.assert_allclose(losses.from_unit(middle, 17), image, atol=1e-6)


def test_uniform_dequantization_fills_the_bins():
    """x stays in its byte's bin, and is uniform there."""
    x, log_q = losses.dequantize(jax.random.key(0), jnp.tile(IMAGE, (20, 1, 1, 1)))
    noise = np.asarray(x).reshape(20, 256) * 256 - LEVELS[None]
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    np.testing.assert_array_equal(log_q, 0)


@pytest.mark.parametrize("num_values", [256, 17])
def test_bound_of_the_uniform_density(num_values):
    """The flow whose density is 1 on [0, 1]: each value has the probability 1/V, exactly.

    Its latents are Gaussian quantiles of x.
    """

    def flow(x):
        x = jnp.clip(x, 1e-6, 1 - 1e-6)
        z = jax.scipy.special.ndtri(x)
        return z, -jax.scipy.stats.norm.logpdf(z).sum((1, 2, 3))

    nats, terms = losses.dequantized_bound(flow, IMAGE, jax.random.key(0), num_values=num_values)
    np.testing.assert_allclose(nats, 64 * math.log(num_values), rtol=1e-4)
    np.testing.assert_allclose(sum(terms.values()), nats, rtol=1e-6)
    assert set(terms) == {"prior", "volume", "quantization", "dequantization"}
    np.testing.assert_allclose(terms["quantization"], 64 * math.log(num_values), rtol=1e-6)


def test_bound_lies_above_the_exact_value():
    """Bytes of a narrow Gaussian: -log of the bins' masses is below the bound's mean."""
    sigma = 2 / 256  # two levels
    levels = np.array([126, 127, 128, 129, 131])
    image = jnp.asarray(levels / 127.5 - 1, jnp.float32).reshape(5, 1)

    def flow(x):
        return (x - 0.5) / sigma, jnp.full(x.shape[0], -math.log(sigma))

    def mean(dequantizer):
        keys = jax.random.split(jax.random.key(1), 2000)
        draw = jax.vmap(lambda k: losses.dequantized_bound(flow, image, k, dequantizer)[0])
        return np.asarray(jax.jit(draw)(keys)).mean(0)

    law = stats.norm(0.5, sigma)
    exact = -np.log(law.cdf((levels + 1) / 256) - law.cdf(levels / 256))
    uniform = mean(None)
    assert (uniform > exact - 0.01).all()
    np.testing.assert_allclose(uniform, exact, atol=0.1)

    def posterior(key, image):
        """The exact one, by inversion: then the bound is the value itself."""
        low = (losses.to_levels(image) / 256 - 0.5) / sigma
        edges = jax.scipy.stats.norm.cdf(jnp.stack([low, low + 1 / (256 * sigma)]))
        p = edges[0] + jax.random.uniform(key, image.shape) * (edges[1] - edges[0])
        z = jax.scipy.special.ndtri(p)
        log_q = jax.scipy.stats.norm.logpdf(z) - jnp.log((edges[1] - edges[0]) * 256 * sigma)
        return (z - low) * 256 * sigma, log_q[:, 0]

    np.testing.assert_allclose(mean(posterior), exact, atol=2e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="latents must hold at least one array"):
        losses.prior_log_prob(())
    with pytest.raises(ValueError, match=r"dequantizer must return noise \[4, 8, 8, 1\]"):
        losses.dequantize(
            jax.random.key(0), IMAGE, lambda key, image: (image[..., 0], jnp.zeros(4))
        )
