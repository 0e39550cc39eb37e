"""Palettes: found from (data, seed), to codes and back, and what does not fit."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data import palette
from jaxgen.data.sources import ArraySource, digits
from jaxgen.data.transforms import to_model_space, to_uint8

RNG = np.random.default_rng(0)
CENTRES = np.array([[20, 30, 200], [200, 40, 30], [90, 180, 90], [240, 240, 240]])


def clusters():
    """Images whose pixels lie about four colours."""
    which = RNG.integers(0, 4, (40, 6, 5))
    return (CENTRES[which] + RNG.integers(-5, 6, (40, 6, 5, 3))).astype(np.uint8), which


def source_of(image):
    return ArraySource({"image": image}, name="toy")


def test_finds_the_colours_of_clusters():
    image, which = clusters()
    colours = palette.find(source_of(image), 4, seed=0)
    order = np.argsort(CENTRES.sum(1))
    np.testing.assert_allclose((colours + 1) * 127.5, CENTRES[order], atol=1.0)
    values = palette.values_of(colours, to_model_space(jnp.asarray(image)))
    codes = np.round((np.asarray(values)[..., 0] + 1) / 2 * 3)
    np.testing.assert_array_equal(codes, np.argsort(order)[which])
    painted = palette.images_of(colours, values)
    np.testing.assert_array_equal(painted, colours[codes.astype(int)])
    np.testing.assert_array_equal(palette.values_of(colours, painted), values)


def test_is_a_function_of_examples_and_seed():
    source = source_of(RNG.integers(0, 256, (30, 8, 8, 3), np.uint8))
    one, two, other = (palette.find(source, 16, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.any(one != other)
    assert (np.diff(one.sum(axis=1)) >= 0).all()  # from dark to bright


def test_k_means_lessens_the_distance():
    """Lloyd's rounds improve on the first centres, and each centre is its points' mean."""
    points, weights = np.unique(RNG.integers(0, 60, (500, 2)), axis=0).astype(float), None
    weights = RNG.integers(1, 9, len(points))

    def centres(rounds):
        return palette.k_means(points, weights, 12, np.random.default_rng(0), rounds)

    def error(centres):
        return (weights * np.square(points[:, None] - centres[None]).sum(-1).min(1)).sum()

    assert error(centres(100)) < 0.95 * error(centres(0))
    last = centres(100)
    nearest = np.square(points[:, None] - last[None]).sum(-1).argmin(1)
    for k in range(12):
        mine = nearest == k
        np.testing.assert_allclose(last[k], np.average(points[mine], axis=0, weights=weights[mine]))


def test_as_many_colours_as_there_are_lose_nothing():
    """The digits have 17 grey values."""
    source = digits("train")
    colours = palette.find(source, 17, seed=3)
    image = jnp.asarray(source[np.arange(50)]["image"])
    back = palette.images_of(colours, palette.values_of(colours, to_model_space(image)))
    np.testing.assert_array_equal(to_uint8(back), image)
    with pytest.raises(
        ValueError, match="num_colours must be at most 17, as many as digits has, got 18"
    ):
        palette.find(source, 18, seed=3)


def test_nan_stays():
    colours = np.array([[-1.0], [0.0], [1.0]], np.float32)
    values = palette.values_of(colours, jnp.array([0.1, jnp.nan, 0.9]).reshape(1, 3, 1, 1))
    np.testing.assert_array_equal(values.reshape(-1), [0.0, np.nan, 1.0])
    back = palette.images_of(colours, values)
    np.testing.assert_array_equal(back.reshape(-1), [0.0, np.nan, 1.0])


def test_files(tmp_path):
    colours = RNG.uniform(-1, 1, (5, 3)).astype(np.float32)
    path = tmp_path / "palette.npy"
    path.write_bytes(palette.content_of(colours))
    np.testing.assert_array_equal(palette.read(path, 5, 3), colours)
    with pytest.raises(ValueError, match=r"must hold float32 \[5, 1\], a palette, got float32"):
        palette.read(path, 5, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"palette.npy cannot be read"):
        palette.read(path, 5, 3)
    np.save(path, 2 * np.ones((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"must hold colours in \[-1, 1\]"):
        palette.read(path, 5, 3)
    assert palette.content_of(colours) == palette.content_of(
        np.load(io.BytesIO(palette.content_of(colours)))
    )


def test_bad_input():
    with pytest.raises(ValueError, match="colours have 3 channels, the images 1"):
        palette.values_of(np.zeros((4, 3), np.float32), jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="num_colours must be at least 2, got 1"):
        palette.find(digits("train"), 1, seed=0)
