"""Bytes to model space and back, and flips."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.transforms import random_flip, to_model_space, to_uint8


def test_model_space_is_the_equation_and_exact_at_its_ends():
    u = jnp.arange(256, dtype=jnp.uint8)
    x = to_model_space(u)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, 2 * np.arange(256) / 255 - 1, atol=1e-7)
    assert (float(x[0]), float(x[-1])) == (-1, 1)


def test_to_uint8_inverts_also_under_jit_and_in_bfloat16():
    u = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(jax.jit(lambda u: to_uint8(to_model_space(u)))(u), u)
    assert to_uint8(to_model_space(u).astype(jnp.bfloat16)).dtype == jnp.uint8


def test_to_uint8_rounds_and_clips():
    x = jnp.asarray([-3.0, -1.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1.0, 7.0, jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 1, 255, 255, 255, 0])


def test_random_flip_mirrors_half_of_the_images_whole(key):
    image = jax.random.randint(key, (400, 3, 4, 2), 0, 255).astype(jnp.uint8)
    out = np.asarray(jax.jit(random_flip)(key, image))
    assert out.dtype == np.uint8
    same = (out == np.asarray(image)).all((1, 2, 3))
    mirrored = (out == np.asarray(image)[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(same, ~mirrored)
    assert 150 < mirrored.sum() < 250
