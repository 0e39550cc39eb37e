"""The training image nearest to each sample: the check for memorization."""

from typing import NamedTuple

import numpy as np

from jaxgen.data.pipeline import eval_batches
from jaxgen.metrics.features import Extractor, Images, as_source, extract, feature_batches


class Neighbours(NamedTuple):
    """For each sample its nearest training image.

    Attributes:
        indices: Index of the training image, int64[N].
        distances: Euclidean distance to it, f64[N], in units of the features (of pixels:
            bytes / 255).
    """

    indices: np.ndarray
    distances: np.ndarray


def nearest_images(
    samples: Images,
    training: Images,
    *,
    extractor: Extractor | None = None,
    batch_size: int = 256,
) -> Neighbours:
    """Find the training image nearest to each sample, by pixels or by features.

    Every training image is compared, a batch at a time, in float64. Meant for tens to thousands of
    samples; a set of a million training images need not fit in memory.

    Args:
        samples: Samples, as `jaxgen.metrics.features.as_source` takes them.
        training: Training images, likewise.
        extractor: Network whose features are compared; None compares pixels.
        batch_size: Number of images at once.

    Returns:
        Indices and distances.

    Raises:
        ValueError: pixels of different shapes, or images that the extractor cannot see.
    """
    wanted, known = as_source(samples), as_source(training)
    if extractor is None:
        _check_shapes(wanted.spec["image"][0], known.spec["image"][0])
        queries = _pixels(wanted[np.arange(len(wanted))]["image"])
        batches = (
            _pixels(batch["image"][batch["weight"] > 0])
            for batch in eval_batches(known, batch_size)
        )
    else:
        queries = extract(extractor, wanted, batch_size=batch_size)["features"].astype(np.float64)
        batches = (
            batch["features"].astype(np.float64)
            for batch in feature_batches(extractor, known, batch_size=batch_size)
        )
    norms = np.einsum("nd,nd->n", queries, queries)
    best, indices, seen = np.full(len(queries), np.inf), np.zeros(len(queries), np.int64), 0
    for batch in batches:
        d = norms[:, None] - 2 * queries @ batch.T + np.einsum("nd,nd->n", batch, batch)[None]
        nearest = d.argmin(axis=1)
        squared = np.square(queries - batch[nearest]).sum(axis=1)  # exact: 0 for a copy
        closer = squared < best
        best[closer], indices[closer] = squared[closer], nearest[closer] + seen
        seen += len(batch)
    return Neighbours(indices, np.sqrt(best))


def beside_neighbours(samples: Images, training: Images, neighbours: Neighbours) -> np.ndarray:
    """Each sample followed by its nearest training image.

    For `jaxgen.training.images.grid` with an even number of columns.

    Args:
        samples: Samples that `neighbours` is of.
        training: Training images that `neighbours` is of.
        neighbours: What `nearest_images` returned.

    Returns:
        uint8 [2 N, H, W, C].

    Raises:
        ValueError: samples and training images of different shapes, or another number of samples.
    """
    shown, known = as_source(samples), as_source(training)
    _check_shapes(shown.spec["image"][0], known.spec["image"][0])
    if len(shown) != len(neighbours.indices):
        raise ValueError(
            f"neighbours are of {len(neighbours.indices)} samples, but samples has {len(shown)}"
        )
    pairs = shown[np.arange(len(shown))]["image"], known[neighbours.indices]["image"]
    return np.stack(pairs, axis=1).reshape(-1, *pairs[0].shape[1:])


def _check_shapes(samples: tuple[int, ...], training: tuple[int, ...]) -> None:
    if samples != training:
        raise ValueError(
            "samples and training must be images of one shape (height, width, channels), got "
            f"{samples} and {training}"
        )


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) / 255
