"""Features that a seed makes, and a classifier trained once for all tests."""

import numpy as np
import pytest

from jaxgen.data.sources import digits
from jaxgen.metrics.classifier import train_classifier


@pytest.fixture
def two_sets():
    """300 and 250 skewed features of 16 dimensions, float64, on which no metric is trivial.

    RandomState's stream is promised never to change, so numbers of other programs on these
    features can be written down.
    """
    rng = np.random.RandomState(7)
    mix = rng.randn(16, 16) / 4
    samples = rng.gamma(2.0, 0.3, (300, 16)) @ mix
    reference = rng.gamma(1.5, 0.5, (250, 16)) @ mix + 0.1 * rng.randn(250, 16)
    return samples, reference


@pytest.fixture(scope="session")
def extractor():
    return train_classifier(digits("train"), digits("test"), steps=200)
