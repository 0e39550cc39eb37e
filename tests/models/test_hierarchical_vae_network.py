"""The very deep VAE's network: the authors' sizes, its blocks, and latents that lead back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.models.blocks.vdvae_stages import encoder_stages
from jaxgen.models.hierarchical_vae import VDVAE

# The authors' table, and the millions of parameters that they say.
SIZES = {
    "cifar10": (
        384,
        "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
        "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
        39,
    ),
    "imagenet32": (
        512,
        "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6",
        "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40",
        119,
    ),
    "imagenet64": (
        512,
        "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
        "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
        125,
    ),
    "ffhq256": (
        512,
        "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
        "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
        115,
    ),
}
SMALL = VDVAE("8x2,8d2,4x1,4d4,1x1", "1x1,4m1,4x1,8m4", width=8, num_params=2, latent_dim=3)


def count(network, size, channels=3):
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def randomized(network, x):
    """Parameters of which none is zero, nor any latent without effect."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def seen():
    """Images, parameters and noise, and what the network makes of them."""
    x = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    params = randomized(SMALL, x)
    noise = {
        r: jnp.asarray(np.random.default_rng(r).normal(size=(2, *shape)), jnp.float32)
        for r, shape in SMALL.latent_shapes.items()
    }
    return x, params, noise, jit(SMALL.apply)(params, x, noise)


@pytest.mark.parametrize("name", SIZES)
def test_the_authors_networks(name):
    width, encoder, decoder, millions = SIZES[name]
    size = encoder_stages(encoder)[0].resolution
    assert round(count(VDVAE(encoder, decoder, width, 100), size) / 1e6) == millions


def test_the_paper_has_43_layers_and_39_million_parameters():
    """Counted by hand too: blocks of four convolutions, images to begin with, first and last."""
    width, encoder, decoder, *_ = SIZES["cifar10"]
    assert sum(shape[0] for shape in VDVAE(encoder, decoder, 384, 100).latent_shapes.values()) == 43

    def block(inputs, outputs, kernel):
        inside = 2 * (96 * 96 * kernel**2 + 96)
        return inputs * 96 + 96 + inside + 96 * outputs + outputs

    def layer(kernel):
        parts = block(768, 32, kernel) + block(384, 32 + 384, kernel) + block(384, 384, kernel)
        return parts + 16 * 384 + 384

    encoder_parameters = (3 * 9 * 384 + 384) + 30 * block(384, 384, 3) + 3 * block(384, 384, 1)
    images = sum(r * r * 384 for r in (1, 4, 8, 16, 32))
    decoder_parameters = layer(1) + 42 * layer(3) + images + 2 * 384 + 384 * 100 + 100
    expected = encoder_parameters + decoder_parameters
    assert count(VDVAE(encoder, decoder, width, 100), 32) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_blocks": "1x1,4m1"}, "must end where encoder_blocks begin, at 8x8 pixels"),
        ({"decoder_blocks": "2x1,4m2,8m4"}, r"encoder_blocks must reach .* lack \[2\]"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
        ({"mean": math.nan}, "mean must be finite, got nan"),
        ({"std": 0.0}, "std must be positive"),
        ({"std": math.inf}, "std must be positive and finite, got inf"),
        ({"bottleneck": math.nan}, "bottleneck must leave at least one channel of 8, got nan"),
        ({"bottleneck": 0.1}, "bottleneck must leave at least one channel of 8, got 0.1"),
        ({"widths": {8: 16}}, r"widths must not be more .* got \[8, 8, 16\] at \[1, 4, 8\]"),
    ],
)
def test_networks_that_do_not_fit(changes, message):
    network = SMALL.clone(**changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_images_and_noise_that_do_not_fit(seen):
    x, params, noise, _ = seen
    with pytest.raises(ValueError, match="must be of 8x8 pixels, .* got 8x4"):
        SMALL.apply(params, x[:, :, :4])
    less = {**noise, 4: noise[4][:, :1]}
    with pytest.raises(ValueError, match="noise must be of the latents' shapes"):
        SMALL.apply(params, less, method="generate")


def test_latents_lead_back_to_the_image(seen):
    """What the posterior drew, given as the prior's noise, is decoded alike."""
    _, params, _, inferred = seen
    again = jit(lambda p, z: SMALL.apply(p, z, method="generate"))(params, inferred.latents)
    np.testing.assert_allclose(again, inferred.params, rtol=1e-4, atol=1e-5)
    assert jax.tree.map(lambda kl: kl.shape, inferred.kl) == {1: (2, 1), 4: (2, 2), 8: (2, 1)}
    assert all((kl > 0).all() for kl in inferred.kl.values())


def test_every_latent_reaches_the_image_and_the_coarse_ones_the_fine(seen):
    x, params, noise, inferred = seen
    generate = jit(lambda p, z: SMALL.apply(p, z, method="generate"))
    before = generate(params, noise)
    for r, each in noise.items():
        for block in range(each.shape[1]):
            after = generate(params, {**noise, r: each.at[:, block].add(1.0)})
            assert (np.abs(after - before).max(axis=(1, 2, 3)) > 1e-6).all()
    moved = jit(SMALL.apply)(params, x, {**noise, 1: noise[1] + 1.0})
    np.testing.assert_array_equal(moved.kl[1], inferred.kl[1])
    assert (moved.kl[4] != inferred.kl[4]).all()


def test_the_beginning():
    """The prior is N(0, I); what joins an image is smaller the more blocks there are."""
    network = SMALL.clone(width=64)
    x = jnp.zeros((1, 8, 8, 1))
    params = jit(network.init)(jax.random.key(0), x)["params"]
    decoder, encoder = params["decoder"], params["encoder"]
    assert not np.any(decoder["blocks4"]["prior"]["conv4"]["kernel"])
    for leaf, bound in (
        (encoder["conv_in"]["kernel"], 1 / 3),
        (encoder["blocks8"]["residual"]["conv1"]["kernel"], 1 / 8),
        (encoder["blocks8"]["residual"]["conv4"]["kernel"], 1 / 4 / np.sqrt(6)),
        (encoder["down8"]["residual"]["conv4"]["kernel"], 1 / 4 / np.sqrt(6)),
        (decoder["blocks4"]["posterior"]["conv4"]["kernel"], 1 / 4),
        (decoder["blocks4"]["residual"]["conv4"]["kernel"], 1 / 4 / 2),
        (decoder["blocks4"]["latents"]["kernel"], 1 / np.sqrt(3) / 2),
        (decoder["conv_out"]["kernel"], 1 / 8),
    ):
        assert 0.9 < np.abs(leaf).max() / bound <= 1.0001
    first, second = encoder["blocks8"]["residual"]["conv1"]["kernel"]
    assert not np.array_equal(first, second)


def test_what_the_encoder_is_given(seen):
    """Its images less their mean, in units of their standard deviation."""
    x, params, noise, inferred = seen
    shifted = jit(SMALL.clone(mean=0.3, std=0.5).apply)(params, 0.5 * x + 0.3, noise)
    np.testing.assert_allclose(shifted.params, inferred.params, rtol=1e-4, atol=1e-5)
