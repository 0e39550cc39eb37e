"""Encoders and decoders: shapes, conditions, bounds, gradients, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.models import vae

LATENT, WIDTH = 3, 2


def networks(kind, *, size=8, num_params=2, **options):
    if kind == "dense":
        return (
            vae.DenseEncoder(LATENT, (16, 8), **options),
            vae.DenseDecoder((size, size + 1), num_params, (8, 16)),
        )
    return (
        vae.ConvEncoder(LATENT, 4, 16, **options),
        vae.ConvDecoder(size, num_params, 4, 16),
    )


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_shapes_and_conditions(kind, key):
    """Every image and every condition changes the posterior; every latent changes the pixels."""
    encoder, decoder = networks(kind)
    width = 9 if kind == "dense" else 8
    x = jax.random.uniform(key, (4, 8, width, 1), minval=-1.0)
    condition = Condition(jax.random.normal(jax.random.key(1), (4, WIDTH)))
    encoded = jax.jit(encoder.init)(jax.random.key(2), x, condition)
    encode, decode = jax.jit(encoder.apply), jax.jit(decoder.apply)
    mean, log_variance = encode(encoded, x, condition)
    assert mean.shape == log_variance.shape == (4, LATENT)
    decoded = jax.jit(decoder.init)(jax.random.key(3), mean, condition)
    pixels = decode(decoded, mean, condition)
    assert pixels.shape == (4, 8, width, 2)
    assert pixels.dtype == jnp.float32
    # Each image is its own latent's alone.
    other = decode(decoded, mean.at[0].add(1.0), condition)
    assert not np.array_equal(other[0], pixels[0])
    np.testing.assert_array_equal(other[1:], pixels[1:])
    shifted = jax.tree.map(lambda e: e + 1, condition)
    assert not np.allclose(encode(encoded, x, shifted)[0], mean)
    assert not np.allclose(decode(decoded, mean, shifted), pixels)
    tokens = Condition(tokens=jnp.zeros((4, 5, WIDTH)))
    for network, inputs in ((encoder, x), (decoder, mean)):
        with pytest.raises(ValueError, match="takes no tokens"):
            network.init(key, inputs, tokens)


@pytest.mark.parametrize("size", [7, 14, 28])
def test_conv_sizes(size, key):
    """28 = 7 * 2 * 2 and the like; the decoder makes what the encoder takes."""
    if size == 7:
        with pytest.raises(ValueError, match="image_size must be one of"):
            vae.ConvDecoder(7, 1).init(key, jnp.zeros((1, LATENT)))
        return
    encoder, decoder = vae.ConvEncoder(LATENT, 2, 4), vae.ConvDecoder(size, 1, 2, 4)
    x = jnp.zeros((1, size, size, 1))
    variables = jax.eval_shape(encoder.init, key, x)
    assert jax.eval_shape(encoder.apply, variables, x)[0].shape == (1, LATENT)
    z = jnp.zeros((1, LATENT))
    variables = jax.eval_shape(decoder.init, key, z)
    assert jax.eval_shape(decoder.apply, variables, z).shape == (1, size, size, 1)


def test_log_variance_stays_in_bounds(key):
    """However wild the features: nothing overflows, and small values pass almost unchanged."""
    encoder = vae.DenseEncoder(LATENT, ())
    x = jnp.ones((1, 2, 2, 1))
    variables = encoder.init(key, x)
    for scale in (1e6, -1e6):
        log_variance = encoder.apply(variables, scale * x)[1]
        assert np.isfinite(np.exp(0.5 * log_variance)).all()
        assert np.abs(log_variance).max() <= 15
    params = variables["params"]["posterior"]["log_variance"]
    raw = x.reshape(1, -1) @ params["kernel"]
    np.testing.assert_allclose(encoder.apply(variables, x)[1], raw, rtol=0.02)


def test_without_variance(key):
    encoder = vae.DenseEncoder(LATENT, (8,), stochastic=False)
    x = jnp.zeros((2, 4, 4, 1))
    variables = encoder.init(key, x)
    assert encoder.apply(variables, x)[1] is None
    assert "log_variance" not in variables["params"]["posterior"]


def test_bfloat16_computes_in_it_and_keeps_float32(key):
    encoder = vae.DenseEncoder(LATENT, (8,), dtype=jnp.bfloat16)
    x = jax.random.normal(key, (2, 8, 8, 1))
    variables = jax.jit(encoder.init)(key, x)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    mean, log_variance = jax.jit(encoder.apply)(variables, x)
    assert mean.dtype == log_variance.dtype == jnp.float32
    exact = jax.jit(encoder.clone(dtype=jnp.float32).apply)(variables, x)[0]
    np.testing.assert_allclose(mean, exact, atol=0.05)
    assert not np.array_equal(mean, exact)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_bad_latents(kind, key):
    encoder = networks(kind)[0].clone(latent_dim=0)
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        encoder.init(key, jnp.zeros((1, 8, 8, 1)))


def test_bad_images(key):
    encoder = networks("conv")[0]
    with pytest.raises(ValueError, match="images must be square, got 8x4"):
        encoder.init(key, jnp.zeros((1, 8, 4, 1)))
    with pytest.raises(ValueError, match="image_size must be one of 4, 5, 6, 7 times"):
        vae.ConvEncoder(LATENT).init(key, jnp.zeros((1, 9, 9, 1)))
