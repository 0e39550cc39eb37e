"""Where each image of a picture must be, with a family that shows its latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.core import Family
from jaxgen.training import latent_pictures


def identity():
    """A family whose latents are the images' first two pixels, decoded to two pixels."""

    def encode(params, model_state, batch, key):
        return batch["image"][:, 0, :, 0]

    def decode(params, model_state, latents, key, *, condition=None):
        told = 0.0 if condition is None else condition.reshape(-1, 1, 1, 1)
        return latents.reshape(-1, 1, 2, 1) + told

    return Family(None, (), None, None, encode=encode, decode=decode)


def draw(picture, x, rows, columns, **entries):
    data = {"image": jnp.asarray(x).reshape(-1, 1, 2, 1), **entries}
    return np.asarray(picture({}, {}, data, jax.random.key(0), rows, columns)).reshape(-1, 2)


def test_pictures():
    """Where each image of a grid must be, with a family that shows its latents."""
    family = identity()
    many = np.arange(30, dtype=np.float32).reshape(15, 2)
    found = draw(latent_pictures.reconstructions(family), many, 5, 3)
    np.testing.assert_array_equal(found, [*many[:3], *many[:3], *many[3:6], *many[3:6]])
    found = draw(latent_pictures.reconstructions(family), many, 1, 3)
    np.testing.assert_array_equal(found, [*many[:3], *many[:3]])

    found = draw(latent_pictures.between_examples(family, path="linear"), many, 5, 3)
    x = many[:5]
    rows = found.reshape(5, 3, 2)
    np.testing.assert_allclose(rows[:, 0], x, rtol=1e-5)
    np.testing.assert_allclose(rows[:, 2], np.roll(x, -1, axis=0), rtol=1e-5)
    np.testing.assert_allclose(rows[0, 1], (x[0] + x[1]) / 2, rtol=1e-5)

    varied = np.array([[0.5, 1.0], [0.6, 9.0]], np.float32)  # the second varies more
    rows = draw(latent_pictures.traversal(family, 2), varied, 2, 3).reshape(2, 3, 2)
    np.testing.assert_allclose(rows[0], [[0.5, -3], [0.5, 0], [0.5, 3]], atol=1e-6)
    np.testing.assert_allclose(rows[1], [[-3, 1], [0, 1], [3, 1]], atol=1e-6)

    groups = [
        lambda v=v: {"image": jnp.asarray(v, jnp.float32).reshape(-1, 1, 2, 1)}
        for v in ([[0, 0], [2, 0]], [[1, 3], [1, 5]])
    ]
    picture = latent_pictures.attribute_direction(family, *groups, strength=2.0)
    rows = draw(picture, x, 2, 3).reshape(2, 3, 2)
    np.testing.assert_allclose(rows[1], [[2, 0], [2, 4], [2, 8]], atol=1e-6)

    rows = draw(latent_pictures.latent_plane(family), x, 3, 5).reshape(3, 5, 2)
    side, top = 1.2815516, 0.9674216  # the normal distribution's quantiles of 9/10 and 5/6
    np.testing.assert_allclose(rows[0, 0], [-side, top], rtol=1e-5)
    np.testing.assert_allclose(rows[2, 4], [side, -top], rtol=1e-5)
    np.testing.assert_allclose(rows[1, 2], [0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="limit must be positive"):
        latent_pictures.traversal(family, 2, limit=0.0)


def test_pictures_tell_the_condition():
    """Each image is decoded under its own example's condition."""
    family, x = identity(), np.zeros((2, 2), np.float32)
    told = jnp.array([10.0, 20.0])
    options = {"condition_key": "label"}
    found = draw(latent_pictures.reconstructions(family, **options), x, 2, 2, label=told)
    np.testing.assert_array_equal(found[2:], [[10, 10], [20, 20]])
    picture = latent_pictures.between_examples(family, path="linear", **options)
    found = draw(picture, x, 2, 2, label=told)
    np.testing.assert_array_equal(found[:, 0], [10, 10, 20, 20])
    found = draw(latent_pictures.latent_plane(family, condition=10.0), x, 1, 1)
    assert found.tolist() == [[10, 10]]
