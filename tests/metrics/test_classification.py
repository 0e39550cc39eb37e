"""The report of a classifier, by hand."""

import numpy as np
import pytest

from jaxgen.metrics.classification import classification_report


def test_report_by_hand():
    p = np.asarray([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.25, 0.75]])
    report = classification_report(np.log(p), np.asarray([0, 1, 1, 0]), num_bins=10)
    assert report.accuracy == 0.5
    assert report.num == 4
    assert report.nll == pytest.approx(-np.log([0.95, 0.05, 0.65, 0.25]).mean())
    assert report.ece == pytest.approx((2 * 0.45 + 0.35 + 0.75) / 4)  # bins of .95, .65 and .75


def test_a_calibrated_forecast_has_no_error():
    p = np.tile([[0.7, 0.3]], (10, 1))
    labels = np.asarray([0] * 7 + [1] * 3)
    assert classification_report(np.log(p), labels).ece == pytest.approx(0, abs=1e-12)


def test_bad_input():
    log_probs = np.log(np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="row 0 sums to 2"):
        classification_report(np.zeros((3, 2)), np.zeros(3, int))
    with pytest.raises(ValueError, match="row 2 sums to 0.5"):  # the farthest from 1
        classification_report(log_probs + np.log([[1], [1.2], [0.5]]), np.zeros(3, int))
    with pytest.raises(ValueError, match="row 1 sums to nan"):
        classification_report(log_probs * np.asarray([[1], [np.nan], [1]]), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 0 to 2"):
        classification_report(log_probs, np.asarray([0, 1, 2]))
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        classification_report(log_probs, np.zeros(3, int), num_bins=0)
    with pytest.raises(ValueError, match="at least one row, got none"):
        classification_report(log_probs[:0], np.zeros(0, int))
