"""All metrics of two sets of images, each beside the protocol that it is true for."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.files import open_atomically
from jaxgen.metrics.checks import FewSamplesWarning
from jaxgen.metrics.features import Extractor, Images
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.inception_score import InceptionScore, inception_score
from jaxgen.metrics.kernel import KernelDistance, kernel_distance
from jaxgen.metrics.prdc import prdc
from jaxgen.metrics.statistics import Statistics, extractor_differences, image_statistics


class Result(NamedTuple):
    """Numbers and what they are of.

    Attributes:
        metrics: Name -> number.
        protocol: Data, counts, extractor, checksum, resizer, seed, and warnings.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write both as JSON, replacing the file at once."""
        with open_atomically(path) as file:
            file.write((json.dumps(self._asdict(), indent=2, allow_nan=False) + "\n").encode())


def compare_images(
    samples: Images | Statistics,
    reference: Images | Statistics,
    extractor: Extractor,
    *,
    k: int = 5,
    max_prdc: int = 10_000,
    num_subsets: int = 100,
    subset_size: int = 1000,
    num_splits: int = 10,
    seed: int = 2020,
    batch_size: int = 64,
) -> Result:
    """Every metric that an extractor allows, of samples against a reference.

    The names are those of the literature for the Inception network of FID alone (`FID`, `sFID`,
    `KID`, `IS`, `precision`); for another extractor `FD-<its suffix>`, `KD-<its suffix>`,
    `precision-<its suffix>` and so on: such numbers compare with nothing but themselves.

    Args:
        samples: Images (see `as_source`), or their `image_statistics`.
        reference: Images to compare them with, or their statistics.
        extractor: The network. Of statistics it must be the one that they were made by, its
            resizer and the rest of its protocol included.
        k: Number of neighbours of precision, recall, density and coverage (`prdc`).
        max_prdc: Greatest number of features of each set for those, the first of a random order.
        num_subsets: Number of subsets of the kernel distance.
        subset_size: Number of images in a subset of the kernel distance; the size of the smaller
            set where that is less.
        num_splits: Number of parts of the Inception score.
        seed: Seed of subsets and parts.
        batch_size: Number of images at once.

    Returns:
        The numbers and their protocol. Warnings of too few samples are given, and kept in it.

    Raises:
        ValueError: fewer than two images in a set, statistics of another extractor, k as large as a
            set, images or numbers that other functions here refuse.
        FloatingPointError: a number that is not finite: features that are too large.

    Examples:
        >>> from jaxgen.data.sources import digits
        >>> from jaxgen.metrics.classifier import train_classifier
        >>> extractor = train_classifier(digits("train"), steps=100)
        >>> result = compare_images(digits("test"), digits("train"), extractor)
        >>> sorted(result.metrics)[0]
        'FD-classifier'
    """
    a = _statistics("samples", samples, extractor, batch_size)
    b = _statistics("reference", reference, extractor, batch_size)
    subset_size = min(subset_size, len(a.features), len(b.features))
    if max_prdc < 1:
        raise ValueError(f"max_prdc must be at least 1, got {max_prdc}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = frechet_distances(a, b, extractor.suffix)
        kernel = kernel_distance(
            a.features, b.features, num_subsets=num_subsets, subset_size=subset_size, seed=seed
        )
        metrics |= _mean_and_std(named("KID", "KD", extractor.suffix), kernel)
        metrics |= neighbour_shares(
            a.features, b.features, extractor.suffix, k=k, most=max_prdc, seed=seed
        )
        if a.logits is not None:
            score = inception_score(a.logits, num_splits=num_splits, seed=seed)
            metrics |= _mean_and_std(named("IS", "IS", extractor.suffix), score)
    for one in caught:
        warnings.warn(one.message, one.category, stacklevel=2)
    protocol = {
        "samples": dict(a.protocol),
        "reference": dict(b.protocol),
        "neighbours": {
            "k": k,
            "samples": min(len(a.features), max_prdc),
            "reference": min(len(b.features), max_prdc),
        },
        "kernel distance": {"subsets": num_subsets, "subset size": subset_size, "degree": 3},
        "score splits": num_splits if a.logits is not None else None,
        "seed": seed,
        "warnings": [
            str(one.message) for one in caught if issubclass(one.category, FewSamplesWarning)
        ],
    }
    return Result(metrics, protocol)


def _statistics(
    name: str, images: Images | Statistics, extractor: Extractor, batch_size: int
) -> Statistics:
    if not isinstance(images, Statistics):
        images = image_statistics(extractor, images, batch_size=batch_size)
    differing = extractor_differences(images, extractor)
    if differing:
        raise ValueError(
            f"{name} are statistics by another protocol, not of {extractor.name!r}:\n  "
            + "\n  ".join(differing)
        )
    if images.moments.num < 2:
        raise ValueError(f"{name} must be at least 2 images, got {images.moments.num}")
    return images


def frechet_distances(a: Statistics, b: Statistics, suffix: str) -> dict[str, float]:
    """The Fréchet distance by name, and that of spatial features where both sets have some.

    Args:
        a: Statistics of one set.
        b: Statistics of the other set, by the same extractor.
        suffix: The extractor's suffix.
    """
    distances = {named("FID", "FD", suffix): frechet_distance(a.moments, b.moments)}
    if a.spatial is not None and b.spatial is not None:
        distances[named("sFID", "sFD", suffix)] = frechet_distance(a.spatial, b.spatial)
    return distances


def neighbour_shares(
    samples: np.ndarray,
    reference: np.ndarray,
    suffix: str,
    *,
    k: int = 5,
    most: int = 10_000,
    seed: int = 2020,
) -> dict[str, float]:
    """Precision, recall, density and coverage by name (`prdc`).

    Args:
        samples: Features of the samples, [M, D].
        reference: Features of real images, [N, D].
        suffix: The extractor's suffix.
        k: Number of neighbours.
        most: Greatest number of features of each set, the first of a random order.
        seed: Seed of that order.
    """
    few = (x[np.random.RandomState(seed).permutation(len(x))[:most]] for x in (samples, reference))
    return {named(n, n, suffix): value for n, value in prdc(*few, k=k)._asdict().items()}


def named(known: str, short: str, suffix: str) -> str:
    """The name of a number: the literature's for the network of FID, else one with the suffix.

    Args:
        known: Name in the literature, such as "FID".
        short: Name of such a number by any network, such as "FD".
        suffix: The extractor's suffix; empty for the network of FID.
    """
    return f"{short}-{suffix}" if suffix else known


def _mean_and_std(name: str, estimate: KernelDistance | InceptionScore) -> dict[str, float]:
    return {f"{name} mean": estimate.mean, f"{name} std": estimate.std}
