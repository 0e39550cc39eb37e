import numpy as np
import pytest

from jaxgen.metrics.checks import FewSamplesWarning
from jaxgen.metrics.inception_score import inception_score


def test_sure_and_even_verdicts_give_the_number_of_classes():
    logits = np.eye(4).repeat(25, axis=0) * 200
    assert inception_score(logits, num_splits=1).mean == pytest.approx(4)


def test_one_verdict_for_all_gives_one():
    logits = np.tile(np.asarray([[0.3, 0.1, 2.0]]), (50, 1))
    score = inception_score(logits, num_splits=5)
    assert score == (pytest.approx(1), pytest.approx(0))


def test_two_uncertain_verdicts():
    """Verdicts (p, 1 - p) and (1 - p, p): exp(log 2 - H(p))."""
    p = 0.8
    logits = np.log(np.asarray([[p, 1 - p], [1 - p, p]]).repeat(10, axis=0))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert inception_score(logits, num_splits=1).mean == pytest.approx(2 * np.exp(-entropy))


def test_it_is_that_of_torch_fidelity(two_sets):
    """torch-fidelity 0.4.0: metric_isc.isc_features_to_metric(3 * samples)."""
    score = inception_score(3 * two_sets[0])
    assert score.mean == pytest.approx(1.5481828667339397, rel=1e-12)
    assert score.std == pytest.approx(0.04051366974891199, rel=1e-10)


def test_splits_in_the_given_order():
    logits = np.asarray([[0.0, 0.0], [0.0, 0.0], [90.0, 0.0], [0.0, 90.0]])
    with pytest.warns(FewSamplesWarning, match="2 samples a split for 2 classes"):
        score = inception_score(logits, num_splits=2, seed=None)
    assert score == (pytest.approx(1.5), pytest.approx(0.5))


def test_bad_input(two_sets):
    with pytest.raises(ValueError, match="between 1 and the number of samples, 300, got 301"):
        inception_score(two_sets[0], num_splits=301)
    with pytest.raises(ValueError, match="logits must be finite"):
        inception_score(np.full((20, 2), np.nan))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_score_that_overflows_is_an_error():
    logits = np.tile([1.5e308, -1.5e308], (8, 1))
    with pytest.raises(FloatingPointError, match="mean is nan, std is nan: the logits are too"):
        inception_score(logits, num_splits=1)
