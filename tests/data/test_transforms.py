"""Bytes to model space and back, flips and shifts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxgen.data.transforms import (
    prepare_images,
    random_flip,
    random_shift,
    to_model_space,
    to_uint8,
)


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


def test_nan_is_no_byte():
    with pytest.raises(FloatingPointError, match="x has 2 NaN"):
        to_uint8(jnp.array([0.0, jnp.nan, jnp.nan]))


def test_random_flip_mirrors_half_of_the_images_whole(key):
    image = jax.random.randint(key, (400, 3, 4, 2), 0, 255).astype(jnp.uint8)
    out = np.asarray(jax.jit(random_flip)(key, image))
    assert out.dtype == np.uint8
    same = (out == np.asarray(image)).all((1, 2, 3))
    mirrored = (out == np.asarray(image)[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(same, ~mirrored)
    assert 150 < mirrored.sum() < 250


def test_random_shift_interpolates_and_repeats_the_edges(key):
    """As SciPy moves images by the same fractions of a side, rounded down to bytes."""
    image = jax.random.randint(key, (20, 8, 10, 2), 0, 256).astype(jnp.uint8)
    out = jax.jit(random_shift, static_argnums=2)(key, image, 0.25)
    assert out.dtype == jnp.uint8
    shifts = np.asarray(jax.random.uniform(key, (20, 2), minval=-0.25, maxval=0.25))
    assert np.abs(shifts).max() > 0.2
    for x, y, (down, right) in zip(np.asarray(image), np.asarray(out), shifts, strict=True):
        offset = (-8 * down, -10 * right, 0)
        moved = ndimage.shift(x.astype(np.float64), offset, order=1, mode="nearest")
        assert (np.abs(moved - (y + 0.5)) <= 0.5 + 1e-3).all()
    flat = jnp.full((4, 8, 8, 1), 77, jnp.uint8)
    np.testing.assert_array_equal(random_shift(key, flat, 0.1), flat)


def test_training_images_alone_are_shifted(key):
    image = jax.random.randint(key, (4, 8, 8, 1), 0, 256).astype(jnp.uint8)
    prepare = prepare_images(flip=False, shift=0.5)
    plain = to_model_space(image)
    np.testing.assert_array_equal(prepare(key, {"image": image}, False)["image"], plain)
    assert not np.array_equal(prepare(key, {"image": image}, True)["image"], plain)
    with pytest.raises(ValueError, match=r"shift must be in \[0, 1\), got 1.5"):
        prepare_images(flip=False, shift=1.5)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\), got -0.1"):
        random_shift(key, image, -0.1)


def test_one_caption_is_drawn():
    """Of each example's own, each equally often; the first one of held-out examples."""
    text = np.zeros((3, 3, 2), np.uint8)
    text[0, :3, 0], text[1, :2, 0], text[2, :1, 0] = [1, 2, 3], [4, 5], [6]
    raw = {"image": np.zeros((3, 4, 4, 1), np.uint8), "text": text}
    prepare = jax.jit(prepare_images(flip=False), static_argnums=2)
    np.testing.assert_array_equal(
        prepare(jax.random.key(0), raw, False)["text"], [[1, 0], [4, 0], [6, 0]]
    )
    drawn = np.stack([prepare(jax.random.key(i), raw, True)["text"][:, 0] for i in range(300)])
    for column, captions in enumerate(([1, 2, 3], [4, 5], [6])):
        values, counts = np.unique(drawn[:, column], return_counts=True)
        np.testing.assert_array_equal(values, captions)
        assert counts.min() > 0.7 * 300 / len(captions)
