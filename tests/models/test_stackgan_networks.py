"""StackGAN's networks: the authors' sizes, codes of conditions, a stage II through its stage I."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.models.stackgan import FIRST, Discriminator, Generator, Refiner, refinements

KEY = jax.random.key(0)
TOLD = Condition(jnp.array([[1.0, -1.0, 0.5], [-2.0, 1.0, 0.0]]))
TOKENS = Condition(None, jnp.zeros((2, 4, 3)))
SMALL = Generator(8, 3, 4, noise_dim=2, condition_dim=3)


def count(network, x, condition):
    shapes = jax.eval_shape(lambda: network.init(KEY, x, condition, train=True))
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in shapes["params"].items()
    }


def test_the_authors_sizes():
    """Counted by running the networks' definitions in the authors' TensorFlow code on stubs that
    count: embeddings of 1,024 numbers, GF_DIM 128, DF_DIM 64, EMBEDDING_DIM 128, Z_DIM 100."""
    told = Condition(jnp.zeros((2, 1024)))
    first, latents = Generator(), jnp.zeros((2, 228))
    assert sum(count(first, latents, told).values()) == 14_264_192
    second = count(Refiner(first), jnp.zeros((2, 356)), told)
    assert second.pop(FIRST) == 14_264_192
    assert sum(second.values()) == 26_290_080
    for size, parameters in ((64, 4_029_824), (256, 48_603_520)):
        images = jnp.zeros((2, size, size, 3))
        assert sum(count(Discriminator(), images, told).values()) == parameters


def test_the_code_of_a_condition():
    """All that the generator sees of a condition is mu + sigma eps, eps the end of the latents."""
    noise, eps = jnp.array([[0.3, -1.0]] * 2), jnp.array([[0.5, -0.2, 1.5]] * 2)
    latents = jnp.concatenate([noise, eps], axis=1)
    variables = jax.jit(lambda: SMALL.init(KEY, latents, TOLD, train=False))()
    # At the start all codes are nearly N(0, I): spread the layer's weights.
    variables["params"]["code"]["gaussian"]["kernel"] *= 50
    mean, log_sigma = SMALL.apply(variables, TOLD, method="condition_code")
    assert mean.shape == log_sigma.shape == (2, 3)
    gaussian = variables["params"]["code"]["gaussian"]
    both = TOLD.vector @ gaussian["kernel"]  # its bias is 0
    expected = np.where(both > 0, both, 0.2 * both)
    np.testing.assert_allclose(jnp.concatenate([mean, log_sigma], 1), expected, rtol=1e-5)

    @jax.jit
    def images(eps):
        z = jnp.concatenate([noise, eps], axis=1)
        return SMALL.apply(variables, z, TOLD, train=False)

    codes = mean + jnp.exp(log_sigma) * eps
    alike = jnp.stack([eps[0], ((codes[0] - mean[1]) * jnp.exp(-log_sigma[1]))])
    first, second = images(alike)
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert not np.allclose(*images(eps), atol=1e-3)


@pytest.mark.parametrize(("size", "min_size"), [(8, 4), (12, 3)])
def test_other_sizes(size, min_size):
    generator = Generator(size, 1, 2, 2, 2, min_size)
    discriminator = Discriminator(2, 2, min_size)

    def both():
        z = jnp.zeros((2, generator.latent_dim))
        made = generator.init_with_output(KEY, z, TOLD, train=True)[0]
        return made, discriminator.init_with_output(KEY, made, TOLD, train=True)[0].logits

    made, logits = jax.eval_shape(both)
    assert made.shape == (2, size, size, 1)
    assert logits.shape == (2,)


def test_a_discriminator_without_batch_statistics():
    """It judges each pair by itself; biases stand in the place of norms."""
    network = Discriminator(2, 2, batch_norm=False)
    assert not network.mixes_examples
    assert not network.batch_statistics
    x = jax.random.normal(KEY, (2, 16, 16, 3))
    variables = jax.jit(lambda: network.init(KEY, x, TOLD, train=True))()
    assert set(variables) == {"params"}
    assert "bias" in variables["params"]["joint"]["conv"]
    judge = jax.jit(lambda x: network.apply(variables, x, TOLD, train=True).logits)
    other = judge(x.at[1].add(1.0))
    np.testing.assert_allclose(judge(x)[0], other[0], rtol=1e-5)
    assert not np.isclose(judge(x)[1], other[1], rtol=1e-4)


REFINER = Refiner(SMALL, 8, 2, condition_dim=4, blocks=1)


def test_a_refiner_has_the_parts_of_its_first_stage():
    """Parameters as stage I has them, by its name; latents for both codes."""
    assert REFINER.latent_dim == 2 + 3 + 4
    z = jnp.zeros((2, 9))
    variables = jax.eval_shape(lambda: REFINER.init(KEY, z, TOLD, train=True))
    first = jax.eval_shape(lambda: SMALL.init(KEY, z[:, :5], TOLD, train=True))
    shapes = jax.tree.map(jnp.shape, (variables["params"][FIRST], first["params"]))
    assert shapes[0] == shapes[1]
    assert FIRST in variables["batch_stats"]
    assert [refinements(64, 256), refinements(16, 16), refinements(4, 8)] == [4, 2, 3]


@pytest.mark.slow
def test_a_refiner_draws_through_its_first_stage():
    """What stage I draws is what it refines, without a gradient for stage I."""
    z = jax.random.normal(KEY, (2, REFINER.latent_dim))
    variables = jax.jit(lambda: REFINER.init(KEY, z, TOLD, train=True))()

    @jax.jit
    def image_and_gradient(params):
        def loss(params):
            collections = {**variables, "params": params}
            x = REFINER.apply(collections, z, TOLD, train=True, mutable=["batch_stats"])[0]
            return jnp.square(x).sum(), x

        gradient, x = jax.grad(loss, has_aux=True)(params)
        return x, gradient

    params = variables["params"]
    other = {**params, FIRST: jax.tree.map(lambda p: p + 0.1 * jnp.cos(p), params[FIRST])}
    (x, gradient), (of_other, _) = image_and_gradient(params), image_and_gradient(other)
    assert x.shape == (2, 8, 8, 3)
    assert not np.allclose(x, of_other, atol=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[FIRST]))
    assert np.any(gradient["down1"]["conv"]["kernel"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SMALL.init(KEY, jnp.zeros((2, 4)), TOLD, train=True), "z must be [B, 5]"),
        (lambda: SMALL.init(KEY, jnp.zeros((2, 5)), train=True), "condition must be given"),
        (
            lambda: SMALL.init(
                KEY, jnp.zeros((2, 5)), Condition(None, TOLD.vector[:, None]), train=True
            ),
            "no tokens",
        ),
        (
            lambda: Discriminator(2).init(KEY, jnp.zeros((2, 8, 16, 3)), TOLD, train=True),
            "must be square, got 8x16",
        ),
        (
            lambda: Discriminator(2).init(KEY, jnp.zeros((2, 9, 9, 3)), TOLD, train=True),
            "times a power of two, got 9",
        ),
        (lambda: refinements(64, 96), "stage I's (64 pixels, a multiple of 4)"),
        (lambda: refinements(64, 32), "got 32"),
        (lambda: refinements(6, 12), "got 12"),
        (lambda: Refiner(SMALL, 12).init(KEY, jnp.zeros((2, 9)), TOLD, train=True), "got 12"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(call)
