"""Maps of codes as colours, beside their reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import Family, Variables
from jaxgen.training import pictures
from jaxgen.training.code_pictures import code_colours


def test_each_code_has_a_colour():
    """Of thousands of codes no two are alike, and the first ones are far apart."""
    colours = np.asarray(code_colours(jnp.arange(4096)))
    assert colours.shape == (4096, 3)
    assert np.abs(colours).max() <= 1
    assert len(np.unique(np.round(colours, 4), axis=0)) == 4096
    first = colours[:16]
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1) + 9 * np.eye(16)
    assert distances.min() > 0.3


def test_code_maps():
    """Examples, reconstructions, codes: a code covers its part of the image, in its colour."""

    def encode(variables, batch, key):
        return batch["image"][:, ::2, ::2, 0].astype(jnp.int32)

    def decode(variables, latents, key, *, condition=None):
        return -jnp.repeat(jnp.repeat(latents, 2, 1), 2, 2)[..., None].astype(jnp.float32)

    family = Family(None, {}, (), None, encode=encode, decode=decode, num_codes=100)
    drawn = pictures.of(family)
    assert set(drawn) == {"reconstructions", "codes"}
    x = jnp.arange(96.0).reshape(6, 4, 4, 1)
    images = drawn["codes"](Variables({}), {"image": x}, jax.random.key(0), 7, 3)
    cells = np.asarray(images).reshape(2, 3, 3, 4, 4, 3)  # triples of rows, of three images
    np.testing.assert_array_equal(cells[:, 0, ..., 2].reshape(6, 4, 4), x[..., 0])
    np.testing.assert_array_equal(cells[:, 1, :, 1, 3, 0], -x[:, 0, 2, 0].reshape(2, 3))
    expected = np.asarray(code_colours(x[:, 2, 0, 0].astype(int)))
    np.testing.assert_allclose(cells[:, 2, :, 3, 1].reshape(6, 3), expected, rtol=1e-6)
