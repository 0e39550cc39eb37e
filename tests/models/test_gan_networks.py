"""DCGAN and the residual pair: sizes, parameters counted by the papers' tables, bad input."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.models import dcgan, resnet_gan, srresnet_gan

IMAGES = jnp.zeros((2, 32, 32, 3))
TOKENS = Condition(None, jnp.zeros((2, 5, 4)))


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def shapes(network, *args):
    return jax.eval_shape(lambda key: network.init(key, *args, train=True), jax.random.key(0))


def test_dcgan_at_the_papers_size():
    """64 pixels: 4x4x1024 up to 64x64x3, and 128 to 1024 down; bias only where there is no norm."""
    z, x = jnp.zeros((2, 100)), jnp.zeros((2, 64, 64, 3))
    up = [1024, 512, 256, 128, 3]
    weights = 100 * 16 * 1024 + sum(16 * a * b for a, b in itertools.pairwise(up))
    assert count(shapes(dcgan.Generator(), z)) == weights + 2 * sum(up[:-1]) + 3
    down = [3, 128, 256, 512, 1024]
    weights = 16 * 1024 + sum(16 * a * b for a, b in itertools.pairwise(down))
    assert count(shapes(dcgan.Discriminator(), x)) == weights + 128 + 2 * sum(down[2:]) + 1


def test_resnets_at_the_papers_size():
    """SNGAN on CIFAR-10: 256 channels up, 128 down (Miyato et al. 2018, table 4)."""
    z, x = jnp.zeros((2, 128)), jnp.zeros((2, 32, 32, 3))
    block = 2 * (9 * 256 * 256 + 256) + (256 * 256 + 256) + 4 * 256
    out = 2 * 256 + 9 * 256 * 3 + 3
    assert count(shapes(resnet_gan.Generator(), z)) == 128 * 4096 + 4096 + 3 * block + out
    conv3, conv1 = 9 * 128 * 128 + 128, 128 * 128 + 128
    first = 9 * 3 * 128 + 128 + conv3 + 3 * 128 + 128
    expected = first + (2 * conv3 + conv1) + 2 * 2 * conv3 + 129
    assert count(shapes(resnet_gan.Discriminator(), x)) == expected


def test_discriminators_of_larger_images_at_the_papers_size():
    """A block's first layer keeps the width, as in the authors' code: 64 pixels, 10,141,441."""
    x = jnp.zeros((2, 64, 64, 3))
    assert count(shapes(resnet_gan.Discriminator(64), x)) == 10_141_441

    def block(a, b):
        return 9 * a * a + a + 9 * a * b + b + (a * b + b)

    first = 9 * 3 * 64 + 64 + 9 * 64 * 64 + 64 + 3 * 64 + 64
    widths = [64, 128, 256, 512, 1024]
    blocks = first + sum(block(a, b) for a, b in itertools.pairwise(widths))
    last = 2 * (9 * 1024 * 1024 + 1024)  # at 128 pixels one more, which neither widens nor halves
    x = jnp.zeros((2, 128, 128, 3))
    assert count(shapes(resnet_gan.Discriminator(64), x)) == blocks + last + 1025


def test_srresnets_at_the_papers_size():
    """128 pixels, 34 attributes (Jin et al. 2017, figures 4 and 5): 4.3 and 23.9 million."""
    told = Condition(jnp.zeros((2, 34)))
    generator = shapes(srresnet_gan.Generator(), jnp.zeros((2, 128)), told)
    conv, norm = 9 * 64 * 64, 2 * 64
    stack = 16 * 16 * 64 * (128 + 34) + norm + 16 * 2 * (conv + norm) + norm
    ups = 3 * (4 * conv + 4 * 64 + norm)
    assert count(generator) == stack + ups + 81 * 64 * 3 + 3 == 4_297_283
    discriminator = shapes(srresnet_gan.Discriminator(num_classes=34), jnp.zeros((2, 128, 128, 3)))
    stages = sum(4 * (9 * n * n + n) + 16 * n * 2 * n + 2 * n for n in (32, 64, 128, 256, 512))
    assert count(discriminator) == 16 * 3 * 32 + 32 + stages + (4096 + 1) * 35 == 23_895_427


@pytest.mark.parametrize("size", [16, 64, 256])
def test_srresnet_sizes(size):
    z, x = jnp.zeros((2, 8)), jnp.zeros((2, size, size, 1))
    generator = srresnet_gan.Generator(size, 1, 4, 8, blocks=1, kernel_size=3)
    init = partial(generator.init_with_output, train=True)
    images, _ = jax.eval_shape(init, jax.random.key(0), z)
    assert images.shape == x.shape
    discriminator = srresnet_gan.Discriminator(2, 1, num_classes=3)
    variables = shapes(discriminator, x)
    assert variables["params"]["head"]["out"]["kernel"].shape == (2 * 2 * size // 2, 1)
    verdict = jax.eval_shape(lambda v: discriminator.apply(v, x, train=True), variables)
    assert (verdict.logits.shape, verdict.class_logits.shape) == ((2,), (2, 3))


def test_srresnet_starts_at_unit_scale(key):
    """At any width, a narrow one too: images are not grey, verdicts differ, conditions are seen."""
    z, told = jax.random.normal(key, (2, 8)), Condition(jnp.tile(jnp.eye(2), (2, 1)))
    generator = srresnet_gan.Generator(32, 1, 4, 8, blocks=1, kernel_size=3)
    init = jax.jit(partial(generator.init_with_output, train=True))
    images, _ = init(key, jnp.repeat(z, 2, axis=0), told)
    assert 0.3 < float(images.std()) < 0.9
    assert not np.allclose(images[0], images[1])
    discriminator = srresnet_gan.Discriminator(4, 1)
    verdict, _ = jax.jit(partial(discriminator.init_with_output, train=True))(key, images)
    # Kernels of N(0, 0.02) give 1e-5 here, these 0.04 to 0.3 by their seed.
    assert 0.01 < float(jnp.abs(verdict.logits).max()) < 10


@pytest.mark.parametrize("size", [32, 64, 128])
def test_resnet_sizes(size):
    z, x = jnp.zeros((2, 16)), jnp.zeros((2, size, size, 3))
    generator = resnet_gan.Generator(size, channels=8, latent_dim=16, attention_size=16)
    variables = shapes(generator, z)
    images = jax.eval_shape(lambda v: generator.apply(v, z, train=False), variables)
    assert images.shape == x.shape
    assert "attention" in variables["params"]
    discriminator = resnet_gan.Discriminator(8, attention_size=16, stddev_group=2, num_classes=4)
    variables = shapes(discriminator, x)
    verdict = jax.eval_shape(lambda v: discriminator.apply(v, x, train=False), variables)
    assert (verdict.logits.shape, verdict.class_logits.shape) == ((2,), (2, 4))
    assert discriminator.mixes_examples


@pytest.mark.parametrize(("size", "min_size"), [(8, 2), (28, 4), (32, 4), (64, 4), (128, 4)])
def test_dcgan_sizes(size, min_size):
    z, x = jnp.zeros((2, 16)), jnp.zeros((2, size, size, 1))
    generator = dcgan.Generator(size, 1, 4, 16, min_size)
    init = partial(generator.init_with_output, train=True)
    images, _ = jax.eval_shape(init, jax.random.key(0), z)
    assert images.shape == x.shape
    verdict = shapes(dcgan.Discriminator(4, min_size=min_size), x)
    assert "head" in verdict["params"]


@pytest.mark.slow
def test_verdicts_apart_and_batch_statistics(key):
    """DCGAN's verdict depends on the batch, as `mixes_examples` says; the residual one does not."""
    x = jax.random.normal(key, (4, 32, 32, 3))
    for discriminator in (dcgan.Discriminator(4), resnet_gan.Discriminator(4)):
        variables = jax.jit(partial(discriminator.init, train=True))(key, x)
        state = [k for k in variables if k != "params"]
        run = jax.jit(partial(discriminator.apply, train=True, mutable=state))
        whole, part = (run(variables, images)[0].logits for images in (x, x[:2]))
        assert np.allclose(whole[:2], part, atol=1e-5) != discriminator.mixes_examples


@pytest.mark.slow
def test_condition_reaches_every_network(key):
    z, condition = jnp.ones((2, 8)), Condition(jnp.eye(2))
    x = jnp.broadcast_to(jax.random.normal(key, (1, 32, 32, 3)), (2, 32, 32, 3))
    for module in (dcgan, resnet_gan):
        generator = module.Generator(32, channels=4, latent_dim=8)
        variables = jax.jit(partial(generator.init, train=True))(key, z, condition)
        # Gains and biases start at zero: move them.
        params = jax.tree.map(
            lambda p: p + 0.1 * jnp.arange(p.size).reshape(p.shape) / p.size, variables["params"]
        )
        draw = jax.jit(partial(generator.apply, train=False))
        images = draw({**variables, "params": params}, z, condition)
        assert not np.allclose(images[0], images[1])
        discriminator = module.Discriminator(4)
        variables = jax.jit(partial(discriminator.init, train=True))(key, x, condition)
        logits = jax.jit(partial(discriminator.apply, train=False))(variables, x, condition).logits
        assert not np.allclose(logits[0], logits[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dcgan.levels(30), "4, 5, 6, 7 times a power of two, got 30"),
        (lambda: dcgan.levels(4), "got 4"),
        (lambda: dcgan.levels(8, 0), "min_size must be at least 1"),
        (lambda: srresnet_gan.doublings(8), "16 times a power of two, got 8"),
        (lambda: srresnet_gan.doublings(96), "16 times a power of two, got 96"),
        (lambda: shapes(srresnet_gan.Generator(64), jnp.zeros((2, 3))), "z must be [B, 128]"),
        (
            lambda: shapes(srresnet_gan.Discriminator(4), jnp.zeros((2, 32, 64, 3))),
            "must be square",
        ),
        (lambda: shapes(srresnet_gan.Discriminator(4), IMAGES, TOKENS), "takes no tokens"),
        (lambda: resnet_gan.generator_channels(48, 8), "one of (32, 64, 128), got 48"),
        (lambda: resnet_gan.discriminator_channels(48, 8), "one of (32, 64, 128), got 48"),
        (lambda: shapes(dcgan.Generator(32), jnp.zeros((2, 3))), "z must be [B, 100]"),
        (lambda: shapes(resnet_gan.Generator(), jnp.zeros((2, 3))), "z must be [B, 128]"),
        (lambda: shapes(dcgan.Discriminator(4), jnp.zeros((2, 32, 64, 3))), "must be square"),
        (lambda: shapes(resnet_gan.Discriminator(4), jnp.zeros((2, 32, 64, 3))), "must be square"),
        (
            lambda: shapes(resnet_gan.Discriminator(4, pool="max"), jnp.zeros((2, 32, 32, 3))),
            "'sum' or 'mean', got 'max'",
        ),
        (
            lambda: shapes(dcgan.Generator(latent_dim=3), jnp.zeros((2, 3)), TOKENS),
            "takes no tokens",
        ),
        (
            lambda: shapes(resnet_gan.Generator(latent_dim=3), jnp.zeros((2, 3)), TOKENS),
            "takes no tokens",
        ),
        (lambda: shapes(dcgan.Discriminator(4), IMAGES, TOKENS), "takes no tokens"),
        (lambda: shapes(resnet_gan.Discriminator(4), IMAGES, TOKENS), "takes no tokens"),
        (
            lambda: shapes(resnet_gan.Discriminator(4, stddev_group=4), jnp.zeros((2, 32, 32, 3))),
            "divide the batch of 2",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_dcgan_without_batch_norm():
    """A bias in every layer, no statistics, and verdicts that do not depend on the batch."""
    discriminator = dcgan.Discriminator(4, batch_norm=False)
    assert not discriminator.mixes_examples
    assert dcgan.Discriminator(4, batch_norm=False, stddev_group=2).mixes_examples
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    variables = jax.jit(partial(discriminator.init, train=True))(jax.random.key(1), x)
    assert set(variables) == {"params", "spectral"} or set(variables) == {"params"}
    assert all("bias" in variables["params"][f"down{level}"] for level in (1, 2))
    whole = discriminator.apply(variables, x, train=False).logits
    part = discriminator.apply(variables, x[:2], train=False).logits
    np.testing.assert_allclose(whole[:2], part, atol=1e-5)
