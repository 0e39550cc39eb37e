import numpy as np
import pytest

from jaxgen.data.sources import digits
from jaxgen.metrics.features import extract
from jaxgen.metrics.neighbours import beside_neighbours, nearest_images

TRAIN, TEST = (digits(split).arrays["image"] for split in ("train", "test"))


def test_by_pixels():
    neighbours = nearest_images(TEST[:20], TRAIN, batch_size=128)
    d = np.linalg.norm((TEST[:20, None] / 255 - TRAIN[None] / 255).reshape(20, 1500, -1), axis=2)
    np.testing.assert_array_equal(neighbours.indices, d.argmin(1))
    np.testing.assert_allclose(neighbours.distances, d.min(1), rtol=1e-9)


def test_a_copy_is_found_at_distance_zero():
    neighbours = nearest_images(TRAIN[[700, 3]], TRAIN)
    np.testing.assert_array_equal(TRAIN[neighbours.indices], TRAIN[[700, 3]])
    np.testing.assert_array_equal(neighbours.distances, 0)


def test_by_features(extractor):
    neighbours = nearest_images(TEST[:20], TRAIN, extractor=extractor)
    a, b = (extract(extractor, x)["features"] for x in (TEST[:20], TRAIN))
    d = np.linalg.norm(a[:, None] - b[None], axis=2)
    np.testing.assert_allclose(neighbours.distances, d.min(1), rtol=1e-4)


def test_pairs_side_by_side():
    neighbours = nearest_images(TEST[:3], TRAIN)
    pairs = beside_neighbours(TEST[:3], TRAIN, neighbours)
    np.testing.assert_array_equal(pairs[::2], TEST[:3])
    np.testing.assert_array_equal(pairs[1::2], TRAIN[neighbours.indices])


def test_bad_input():
    with pytest.raises(ValueError, match=r"one shape .* got \(8, 8, 1\) and \(4, 4, 1\)"):
        nearest_images(TEST, TRAIN[:, :4, :4])
    neighbours = nearest_images(TEST[:3], TRAIN)
    with pytest.raises(ValueError, match="neighbours are of 3 samples, but samples has 4"):
        beside_neighbours(TEST[:4], TRAIN, neighbours)
