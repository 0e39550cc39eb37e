"""The dual encoder learns which caption is of which picture."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.conditioning.labels import labels
from jaxgen.conditioning.text import Encoder, text
from jaxgen.families.dual_encoder import dual_encoder
from jaxgen.models.image_encoder import ImageEncoder
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.training.fit import fit

NETWORK = TextEncoder(6, width=8, num_layers=1, num_heads=2)


def conditioning():
    def init(key):
        ids = jnp.zeros((1, 2), jnp.int32)
        return NETWORK.init(key, ids, ids == 0)["params"]

    def apply(params, ids, mask):
        return NETWORK.apply({"params": params}, ids, mask)

    return text(Encoder(apply, 8, 6, init), 2)


def test_it_learns_what_belongs_together():
    """Five places of a line, five words: after some steps a picture is nearest to its word."""
    rng = np.random.default_rng(0)
    word = rng.integers(0, 5, 200)
    image = np.repeat(np.eye(8)[word][:, :, None, None], 8, axis=2)
    image = (image + 0.05 * rng.normal(size=image.shape)).astype(np.float32)
    data = {"image": image, "text": np.stack([word + 1, 0 * word], axis=1).astype(np.int32)}
    family = dual_encoder(ImageEncoder(4, 4), conditioning(), optax.adam(1e-2), width=4)
    fitted = fit(family, data, 60, batch_size=20)
    some = {k: v[:50] for k, v in data.items()}
    vectors = jax.jit(family.encode)(fitted.variables, some, jax.random.key(0))
    image, caption = (
        np.asarray(v) / np.linalg.norm(v, axis=1, keepdims=True)
        for v in (vectors["image"], vectors["text"])
    )
    nearest = (image @ caption.T).argmax(axis=1)
    assert np.mean(word[:50][nearest] == word[:50]) > 0.95
    assert fitted.metrics["scale"] != pytest.approx(1 / 0.07, rel=1e-3)  # it is learned


def test_bad_input():
    with pytest.raises(ValueError, match="conditioning must be by a text, got 'label'"):
        dual_encoder(ImageEncoder(), labels(3), optax.adam(1e-3), width=4)
