"""How far samples are from real images, and what both are measured against."""

import warnings
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.sources import Source
from jaxgen.metrics.classifier import train_classifier
from jaxgen.metrics.features import Extractor
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.neighbours import nearest_images
from jaxgen.metrics.prdc import prdc
from jaxgen.metrics.statistics import Statistics, image_statistics

MOST_NEIGHBOURS = 10_000  # training images, at random, of precision and recall
Results = dict[str, Any]


class Reference(NamedTuple):
    """The real images that all are measured against.

    Attributes:
        train: The training images.
        held_out: The held-out images.
        extractor: A classifier trained on the training images.
        statistics: Statistics of the training images.
        num_samples: Number of samples of each family, and the most held-out images of the floor.
        num_evaluated: Most held-out images that likelihoods are measured on.
        seed: Seed of samples and noise.
    """

    train: Source
    held_out: Source
    extractor: Extractor
    statistics: Statistics
    num_samples: int
    num_evaluated: int
    seed: int


def make_reference(
    train: Source,
    held_out: Source,
    *,
    num_samples: int,
    num_evaluated: int,
    seed: int,
    classifier_steps: int = 600,
) -> Reference:
    """Train the extractor and take the training images' statistics.

    Args:
        train: The training images.
        held_out: The held-out images.
        num_samples: Number of samples of each family.
        num_evaluated: Most held-out images that likelihoods are measured on.
        seed: Seed of the extractor, of samples and noise.
        classifier_steps: Number of training steps of the extractor.

    Raises:
        ValueError: for images that the classifier cannot see, or without labels.
    """
    extractor = train_classifier(train, held_out, steps=classifier_steps, seed=seed)
    statistics = image_statistics(extractor, train, max_features=MOST_NEIGHBOURS)
    return Reference(train, held_out, extractor, statistics, num_samples, num_evaluated, seed)


def quality(extractor: Extractor, images: np.ndarray, against: Statistics) -> Results:
    """Frechet distance, precision, recall and so on of images, with warnings of too few.

    Args:
        extractor: What looks at the images.
        images: Images, uint8 [N, H, W, C].
        against: Statistics of the real ones by the same extractor.
    """
    statistics = image_statistics(extractor, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distance = frechet_distance(statistics.moments, against.moments)
    return {
        distance_name(extractor): distance,
        **prdc(statistics.features, against.features)._asdict(),
        "count": len(images),
        "reference_count": against.moments.num,
        "warnings": [str(one.message) for one in caught],
    }


def distance_name(extractor: Extractor) -> str:
    """What the Frechet distance by an extractor is called."""
    return f"FD-{extractor.suffix}" if extractor.suffix else "FID"


def nearest(images: np.ndarray, training: Any) -> Results:
    """The median distance, in pixels of [0, 1], to the nearest training image."""
    distances = nearest_images(images, training).distances
    return {"nearest": float(np.median(distances)), "copies": int(np.sum(distances == 0))}
