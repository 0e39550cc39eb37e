"""StyleGAN2's networks: sizes, what a style does, noise, mixing, the mean style, bad input."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.models.blocks.equalized import EqualizedConv, EqualizedDense, leaky
from jaxgen.models.blocks.gan_layers import NOISE
from jaxgen.models.blocks.resample import BINOMIAL
from jaxgen.models.stylegan2 import AVERAGE, Generator, Mapping, modulated_conv, sizes
from jaxgen.models.stylegan2_discriminator import Discriminator

SMALL = {"channel_base": 64, "channel_max": 8}
TINY = Generator(8, 1, **SMALL, latent_dim=4, style_dim=6, mapping_layers=2, average_decay=0.75)
Z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
TOKENS = Condition(None, jnp.zeros((3, 5, 4)))


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def shapes(network, *args):
    return jax.eval_shape(lambda key: network.init(key, *args, train=True), jax.random.key(0))


@pytest.fixture(scope="module")
def tiny():
    """A generator whose noise is as strong as its images."""
    variables = jax.jit(partial(TINY.init, train=True))(jax.random.key(0), Z)

    def louder(path, leaf):
        return leaf + 1.0 if "strength" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(louder, variables)


@pytest.mark.parametrize(
    ("size", "fields", "residual", "expected"),
    [
        (32, {"mapping_layers": 2}, False, (19_947_539, 20_720_641)),
        (256, {"channel_base": 16384}, True, (24_767_458, 24_001_089)),
    ],
)
def test_the_published_sizes(size, fields, residual, expected):
    """CIFAR-10's pair, 19.9 and 20.7 million, and that of 256 pixels, 24.8 and 24.0 million."""
    generator = shapes(Generator(size, **fields), jnp.zeros((2, 512)))
    kept = {k: v for k, v in fields.items() if k == "channel_base"}
    discriminator = Discriminator(residual=residual, **kept)
    judged = shapes(discriminator, jnp.zeros((4, size, size, 3)))
    assert (count(generator), count(judged)) == expected
    assert set(judged) == {"params"}
    assert generator[AVERAGE]["mapping"]["w"].shape == (512,)
    noise = generator[NOISE]["synthesis"][f"block{size}"]["up"]["constant"]
    assert noise.shape == (size, size)


def kernels_of_each_example(x, kernel, style, demodulate, doubles):
    """The equations, each example by its own kernel, doubled by a convolution and a filter."""
    results = []
    taps = np.outer(BINOMIAL, BINOMIAL) / 16  # the sum 4: three of four pixels are zeros
    for image, scales in zip(x, style, strict=True):
        w = kernel * scales[None, None, :, None]
        if demodulate:
            w = w / np.sqrt((w**2).sum(axis=(0, 1, 2), keepdims=True) + 1e-8)
        side = len(kernel)
        if not doubles:
            padded = np.pad(image, [(side // 2, side // 2)] * 2 + [(0, 0)])
            results.append(correlated(padded, w))
            continue
        height, width = image.shape[:2]
        spread = np.zeros((2 * height + 1, 2 * width + 1, w.shape[-1]))
        for i in range(height):  # each pixel is a stamp of the kernel, turned
            for j in range(width):
                stamp = w[::-1, ::-1].transpose(0, 1, 3, 2) @ image[i, j]
                spread[2 * i : 2 * i + side, 2 * j : 2 * j + side] += stamp
        each = [
            correlated(np.pad(spread[..., [c]], [(1, 1), (1, 1), (0, 0)]), taps[..., None, None])
            for c in range(w.shape[-1])
        ]
        results.append(np.concatenate(each, axis=-1))
    return np.stack(results)


def correlated(x, w):
    side = len(w)
    height, width = x.shape[0] - side + 1, x.shape[1] - side + 1
    return sum(x[i : i + height, j : j + width] @ w[i, j] for i in range(side) for j in range(side))


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("doubles", [True, False])
def test_modulated_convolutions(demodulate, doubles):
    rng = np.random.default_rng(1)
    x, kernel, style = (rng.normal(size=s) for s in ((2, 4, 6, 3), (3, 3, 3, 5), (2, 3)))
    expected = kernels_of_each_example(x, kernel, style, demodulate, doubles)
    call = partial(modulated_conv, demodulate=demodulate, doubles=doubles)
    y = jax.jit(call)(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, style)))
    assert y.shape == ((2, 8, 12, 5) if doubles else (2, 4, 6, 5))
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_second_derivatives_of_modulated_convolutions():
    """Those of path lengths: against differences of first derivatives, in float64."""
    with jax.enable_x64():
        rng = np.random.default_rng(2)
        shapes = (1, 4, 4, 2), (3, 3, 2, 3), (1, 2)
        x, kernel, style = (jnp.asarray(rng.normal(size=s)) for s in shapes)

        def slope(style):
            def value(style):
                return jnp.sum(jnp.sin(modulated_conv(x, kernel, style, doubles=True)))

            return jnp.sum(jax.grad(value)(style) ** 2)

        step = 1e-5 * jnp.eye(2)[:, None]
        compute = jax.jit(jax.grad(slope))
        differences = [(slope(style + d) - slope(style - d)) / 2e-5 for d in step]
        np.testing.assert_allclose(compute(style)[0], np.stack(differences), rtol=1e-5)


def test_equalized_layers_scale_at_use():
    """Weights are N(0, 1) / rate; what is computed with has a deviation of 1 / sqrt(fan_in)."""
    x = jnp.asarray(np.random.default_rng(3).normal(size=(64, 256)), jnp.float32)
    layer = EqualizedDense(128, rate=0.01, bias_init=2.0)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    assert abs(np.std(variables["params"]["kernel"]) - 100) < 2
    assert abs(np.std(y) - 1) < 0.05
    assert abs(np.mean(y) - 0.02) < 0.02
    x = x.reshape(4, 16, 16, 16)
    conv = EqualizedConv(32, active=False, use_bias=False)
    y, variables = jax.jit(conv.init_with_output)(jax.random.key(0), x)
    assert set(variables["params"]) == {"kernel"}
    assert abs(np.std(y[:, 1:-1, 1:-1]) - 1) < 0.1


def test_halved_convolutions_see_a_filtered_image():
    x = np.random.default_rng(4).normal(size=(1, 6, 6, 1)).astype(np.float32)
    taps = np.outer(BINOMIAL, BINOMIAL) / 64
    for side, reach in ((1, 1), (3, 2)):
        conv = EqualizedConv(1, side, halves=True, use_bias=False, active=False)
        y, variables = jax.jit(conv.init_with_output)(jax.random.key(0), jnp.asarray(x))
        padded = np.pad(x[0], [(reach, reach)] * 2 + [(0, 0)])
        kernel = variables["params"]["kernel"] / side
        expected = correlated(correlated(padded, taps[..., None, None]), kernel)[::2, ::2]
        np.testing.assert_allclose(y[0], expected, atol=1e-5)


def test_activations_keep_the_scale_and_are_cut():
    x = jnp.array([-10.0, -1.0, 0.0, 2.0, 1000.0])
    np.testing.assert_allclose(leaky(x)[:4], np.sqrt(2) * np.array([-2, -0.2, 0, 2]), rtol=1e-6)
    half = leaky(x, np.sqrt(0.5), 256.0)
    np.testing.assert_allclose(half[3:], [2.0, 256 * np.sqrt(0.5)], rtol=1e-6)


def test_latents_and_conditions_are_scaled_alike(key):
    """Only the directions of latents count, and an unconditional map has no embedding."""
    mapping = Mapping(6, 2)
    variables = jax.jit(mapping.init)(key, Z, Z)
    call = jax.jit(mapping.apply)
    w = call(variables, Z, Z)
    np.testing.assert_allclose(w, call(variables, 3 * Z, Z), rtol=1e-4)
    assert not np.allclose(w, call(variables, Z, -Z))
    assert variables["params"]["layer0"]["kernel"].shape == (4 + 6, 6)
    assert "embed" not in jax.eval_shape(mapping.init, key, Z)["params"]


def test_noise_is_constant_or_drawn(tiny, key):
    call = jax.jit(partial(TINY.apply, train=False))
    images = call(tiny, Z)
    np.testing.assert_array_equal(images, call(tiny, Z))
    drawn = [call(tiny, Z, rngs={NOISE: jax.random.key(i)}) for i in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2], atol=0.1)
    same = call(tiny, jnp.repeat(Z[:1], 3, axis=0), rngs={NOISE: key})
    assert not np.allclose(same[0], same[1], atol=0.1)  # each image has noise of its own
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == jnp.float32


def test_the_mean_style_follows_and_truncates(tiny):
    """A step of 1/4 towards the batch's mean; psi goes from that mean to each style."""
    styles = partial(TINY.apply, method="styles")

    @jax.jit
    def compute(variables):
        moved, state = styles(variables, Z, train=True, mutable=[AVERAGE])
        after = {**variables, **state}
        truncated = [styles(after, Z, truncation=psi) for psi in (0.5, 0.0)]
        return styles(variables, Z), moved, state[AVERAGE]["mapping"]["w"], *truncated

    w, moved, mean, half, none = compute(tiny)
    assert w.shape == (3, TINY.num_styles, 6) == (3, 4, 6)
    np.testing.assert_array_equal(w, np.repeat(w[:, :1], 4, axis=1))
    np.testing.assert_allclose(moved, w, rtol=1e-6)
    np.testing.assert_allclose(mean, 0.25 * w[:, 0].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(half, 0.5 * (w + mean[None, None]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(none[1, 2], mean, rtol=1e-6)


def test_styles_are_mixed_in_training(tiny):
    """The layers from a random one on, at least the last, have another style; with probability."""
    z = jnp.repeat(Z[:1], 400, axis=0)
    own = TINY.apply(tiny, z, method="styles")
    rngs = {NOISE: jax.random.key(5)}
    mixed = TINY.apply(tiny, z, method="styles", train=True, rngs=rngs)
    same = np.all(np.asarray(mixed == own), axis=2)
    assert same[:, 0].all()
    first = same.sum(axis=1)  # the number of layers that keep their style
    shares = [np.mean(first == layers) for layers in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares, [0.3, 0.3, 0.3, 0.1], atol=0.08)
    assert (np.diff(same.astype(int), axis=1) <= 0).all()
    np.testing.assert_array_equal(TINY.apply(tiny, z, method="styles", train=True), own)
    plain = TINY.clone(mixing=0.0).apply(tiny, z, method="styles", train=True, rngs=rngs)
    np.testing.assert_array_equal(plain, own)


def test_a_discriminator_with_a_condition(key):
    """Other conditions, other verdicts; a group is never larger than the batch."""
    network = Discriminator(**SMALL, stddev_group=16, mapping_layers=1)
    assert network.mixes_examples
    x = jax.random.normal(key, (2, 8, 8, 1))
    told = Condition(jnp.eye(2))
    init = partial(network.init_with_output, train=True)
    verdict, variables = jax.jit(init)(key, x, told)
    assert verdict.logits.shape == (2,)
    assert verdict.logits.dtype == jnp.float32
    judge = jax.jit(partial(network.apply, train=True))
    other = judge(variables, x, Condition(jnp.eye(2)[::-1]))
    assert not np.allclose(verdict.logits, other.logits, atol=1e-3)
    plain = Discriminator(**SMALL, residual=False, stddev_group=0)
    assert not plain.mixes_examples
    params = shapes(plain, x)["params"]
    assert set(params["block8"]) == {"conv", "down"}
    assert params["conv"]["kernel"].shape == (3, 3, 8, 8)


def test_bad_input(key):
    for size in (4, 12, 48):
        with pytest.raises(ValueError, match=f"power of two of at least 8, got {size}"):
            sizes(size)
    with pytest.raises(ValueError, match=r"z must be \[B, 4\], got \[3, 5\]"):
        shapes(TINY, jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match="network takes no tokens"):
        shapes(TINY, Z, TOKENS)
    with pytest.raises(ValueError, match=r"mixing must be in \[0, 1\], got 2"):
        shapes(TINY.clone(mixing=2.0), Z)
    with pytest.raises(ValueError, match="mapping_layers must be at least 1, got -1"):
        shapes(TINY.clone(mapping_layers=-1), Z)
    for clamp in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"clamp must be positive or None, got {clamp}"):
            shapes(TINY.clone(clamp=clamp), Z)
    with pytest.raises(ValueError, match=r"styles must be \[B, 4, 6\], got \[3, 2, 6\]"):
        TINY.init(key, jnp.zeros((3, 2, 6)), method="synthesize")
    with pytest.raises(ValueError, match="channel_base must be at least the image's size, 8"):
        shapes(TINY.clone(channel_base=4), Z)
    network = Discriminator(**SMALL, stddev_group=2)
    with pytest.raises(ValueError, match="must be square, got 8x16"):
        shapes(network, jnp.zeros((2, 8, 16, 1)))
    with pytest.raises(ValueError, match="divide the batch of 3"):
        shapes(network, jnp.zeros((3, 8, 8, 1)))
