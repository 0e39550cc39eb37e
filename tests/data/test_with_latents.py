"""Examples beside their latents."""

import numpy as np
import pytest

from jaxgen.data.latents import LATENTS, WithLatents, cache_latents
from jaxgen.data.sources import ArraySource, digits


def means(raw, number):
    """A first stage of one number a column."""
    assert set(raw) == {"image", "label"}
    return raw["image"].mean(axis=1, dtype=np.float32)


def test_examples_and_their_latents(tmp_path):
    """Both, by index; what identifies them is the first stage and not the latents' last bits."""
    source, path = digits("test"), tmp_path / "latents.npz"
    options = {"batch_size": 100, "replaces": ("image", "label")}
    latents = cache_latents(means, source, path, first_stage="one", **options)
    both = WithLatents(source, latents, "one")
    rows = np.array([5, 2])
    batch = both[rows]
    assert set(batch) == {"image", "label", LATENTS}
    np.testing.assert_array_equal(batch["image"], source[rows]["image"])
    np.testing.assert_allclose(batch[LATENTS], source[rows]["image"].mean(axis=1))
    assert both.num_classes == 10
    noisy = ArraySource({LATENTS: latents.arrays[LATENTS] * np.float32(1 + 1e-6)})
    assert WithLatents(source, noisy, "one").digest == both.digest
    assert "with latents by one" in both.protocol
    assert both.digest not in {source.digest, WithLatents(source, latents, "two").digest}
    with pytest.raises(ValueError, match="needed are latents of"):
        cache_latents(means, source, path, first_stage="two", **options)
    with pytest.raises(ValueError, match="arrays must have 1500 rows"):
        WithLatents(digits("train"), latents, "one")
