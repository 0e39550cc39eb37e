"""The convolutional autoencoder: the published counts, and equal to an independent definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgen.models import autoencoder as networks
from jaxgen.models.autoencoder import Decoder, Encoder, Sizes

SMALL = Sizes((1, 2), 3, (2,), channels=8, num_res_blocks=1)


def shapes_of(sizes, moments, size=256):
    """(latents, encoder's parameters, image, decoder's parameters), shapes only."""

    def both(x, z):
        return (
            Encoder(sizes, moments).init_with_output(jax.random.key(0), x),
            Decoder(sizes).init_with_output(jax.random.key(0), z),
        )

    side = size // sizes.factor
    (latents, encoder), (image, decoder) = jax.eval_shape(
        both, jnp.zeros((1, size, size, 3)), jnp.zeros((1, side, side, sizes.latent_channels))
    )
    return latents, encoder["params"], image, decoder["params"]


# The authors' own modules, counted: both networks with the convolutions around the latents.
@pytest.mark.parametrize(
    ("name", "moments", "num_codes", "side", "encoder", "decoder", "with_codes"),
    [
        ("KL_F4", 2, 0, 64, 22_351_280, 32_960_783, 55_312_063),
        ("KL_F8", 2, 0, 32, 34_163_664, 49_490_199, 83_653_863),
        ("VQ_F4", 1, 8192, 64, 22_337_423, 32_960_783, 55_322_782),
        ("VQ_F8", 1, 16_384, 32, 27_397_784, 40_253_975, 67_717_295),
        ("VQGAN_F16", 1, 1024, 16, 29_363_968, 42_515_587, 72_141_699),
    ],
)
def test_published_sizes(name, moments, num_codes, side, encoder, decoder, with_codes):
    sizes = getattr(networks, name)
    latents, of_encoder, image, of_decoder = shapes_of(sizes, moments)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert latents.shape == (1, side, side, moments * sizes.latent_channels)
    assert image.shape == (1, 256, 256, 3)
    assert (count(of_encoder), count(of_decoder)) == (encoder, decoder)
    codes = num_codes * sizes.latent_channels
    assert encoder + decoder + codes == with_codes
    assert {leaf.dtype for leaf in jax.tree.leaves((of_encoder, of_decoder))} == {
        jnp.dtype("float32")
    }


def test_where_there_is_attention():
    _, encoder, _, decoder = shapes_of(networks.VQGAN_F16, 1)
    own = {"mid_attention"}
    assert {k for k in encoder if "attention" in k} == own | {
        f"down4_attention{i}" for i in range(2)
    }
    assert {k for k in decoder["trunk"] if "attention" in k} == own | {
        f"up4_attention{i}" for i in range(3)
    }
    assert decoder["conv_out"]["kernel"].shape == (3, 3, 128, 3)


# What follows is the paper's networks again, from Flax-free primitives, in float64.


def conv(p, x, stride=1, padding=((1, 1), (1, 1))):
    kernel = np.asarray(p["kernel"], np.float64)
    if kernel.shape[0] == 1:
        padding = ((0, 0), (0, 0))
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return np.asarray(y) + np.asarray(p["bias"], np.float64)


def norm(p, x):
    batch, channels = x.shape[0], x.shape[-1]
    groups = channels // 4 if channels < 128 else 32  # four channels a group where it is narrow
    g = np.asarray(x).reshape(batch, -1, groups, channels // groups)
    g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-6)
    return g.reshape(x.shape) * np.asarray(p["scale"]) + np.asarray(p["bias"])


def silu(x):
    return x / (1 + np.exp(-np.asarray(x)))


def block(p, x):
    h = conv(p["conv1"], silu(norm(p["norm1"], x)))
    h = conv(p["conv2"], silu(norm(p["norm2"], h)))
    return (conv(p["shortcut"], x) if "shortcut" in p else x) + h


def attention(p, x):
    batch, channels = x.shape[0], x.shape[-1]
    n = norm(p["norm"], x).reshape(batch, -1, channels)
    q, k, v = (n @ p[name]["kernel"] + p[name]["bias"] for name in ("query", "key", "value"))
    logits = np.einsum("bqc,bkc->bqk", q, k) / np.sqrt(channels)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True)) @ v
    return x + (y @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)


def middle(p, h):
    return block(p["mid_block1"], attention(p["mid_attention"], block(p["mid_block0"], h)))


def encode(p, x):
    """SMALL's encoder: one block a level, attention in the second."""
    h = block(p["down0_block0"], conv(p["conv_in"], x))
    h = conv(p["down0_downsample"]["conv"], h, 2, ((0, 1), (0, 1)))  # right and bottom only
    h = attention(p["down1_attention0"], block(p["down1_block0"], h))
    h = silu(norm(p["norm_out"], middle(p, h)))
    return conv(p["quant_conv"], conv(p["conv_out"], h))


def decode(p, z):
    t = p["trunk"]
    h = middle(t, conv(t["conv_in"], conv(t["post_quant_conv"], z)))
    for i in range(2):
        h = attention(t[f"up1_attention{i}"], block(t[f"up1_block{i}"], h))
    h = conv(t["up1_upsample"]["conv"], np.asarray(h).repeat(2, 1).repeat(2, 2))
    for i in range(2):
        h = block(t[f"up0_block{i}"], h)
    return conv(p["conv_out"], silu(norm(t["norm_out"], h)))


def randomized(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("moments", [1, 2])
def test_equal_to_an_independent_definition(moments):
    rng = np.random.default_rng(0)
    _, encoder, _, decoder = map(randomized, shapes_of(SMALL, moments, 8))
    x, z = rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(2, 4, 4, 3))

    @jax.jit
    def call(encoder, decoder, x, z):
        apply = partial(Decoder(SMALL).apply, {"params": decoder})
        in_two = apply(apply(z, method="features"), method="pixels")
        return Encoder(SMALL, moments).apply({"params": encoder}, x), apply(z), in_two

    latents, image, in_two = call(encoder, decoder, x.astype(np.float32), z.astype(np.float32))
    with jax.enable_x64(True):
        expected = np.asarray(encode(encoder, x)), np.asarray(decode(decoder, z))
    assert latents.shape == (2, 4, 4, 3 * moments)
    np.testing.assert_allclose(latents, expected[0], rtol=2e-4, atol=2e-4 * expected[0].std())
    np.testing.assert_allclose(image, expected[1], rtol=2e-4, atol=2e-4 * expected[1].std())
    np.testing.assert_array_equal(image, in_two)


@pytest.mark.slow
def test_less_memory_is_the_same_function():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)), jnp.float32)
    params = randomized(shapes_of(SMALL, 1, 8)[1])

    def gradient(remat):
        encoder = Encoder(SMALL, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.square(encoder.apply({"params": p}, x)).mean()))

    plain, again = gradient(False), gradient(True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), plain(params),
        again(params),
    )  # fmt: skip
    assert "remat" in str(jax.make_jaxpr(again)(params))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_channels": 0}, "latent_channels must be positive, got 0"),
        ({"channels": 7}, "channels must be even and at least 4, got 7"),
        ({"multipliers": ()}, "multipliers must be one or more positives"),
        ({"attention_factors": (4,)}, r"attention_factors must be among \[1, 2\]"),
    ],
)
def test_sizes_that_there_are_not(fields, message):
    for network in (Encoder, Decoder):
        with pytest.raises(ValueError, match=message):
            network(SMALL._replace(**fields))


def test_bad_input(key):
    with pytest.raises(ValueError, match=r"multiples of 2, to be halved 1 times, got 8x7"):
        jax.eval_shape(Encoder(SMALL).init, key, jnp.zeros((1, 8, 7, 3)))
    with pytest.raises(ValueError, match="z must have 3 channels, latent_channels, got 4"):
        jax.eval_shape(Decoder(SMALL).init, key, jnp.zeros((1, 4, 4, 4)))
    with pytest.raises(ValueError, match="moments must be 1 or 2, got 3"):
        Encoder(SMALL, moments=3)
    with pytest.raises(ValueError, match="image_channels must be positive, got 0"):
        Decoder(SMALL, image_channels=0)
