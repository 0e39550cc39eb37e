"""How good probabilities of classes are: accuracy, log-loss and calibration.

`jaxgen.families.classify` has such probabilities of any conditional family with a likelihood.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int


class ClassificationReport(NamedTuple):
    """How good probabilities of classes are.

    Attributes:
        accuracy: Share of examples whose most probable class is the right one.
        nll: Mean negative log-probability of the right class, nats.
        ece: Expected calibration error, in [0, 1].
        num: Number of examples.
    """

    accuracy: float
    nll: float
    ece: float
    num: int


def classification_report(
    log_probs: Float[np.ndarray | Array, "batch classes"],
    labels: Int[np.ndarray | Array, " batch"],
    *,
    num_bins: int = 15,
) -> ClassificationReport:
    r"""Accuracy, log-loss and calibration of probabilities of classes.

    $$ECE = \sum_b \frac{|B_b|}{N} \left|acc(B_b) - conf(B_b)\right|$$

    over bins of equal width of the most probable class's probability (Guo et al. 2017, eq. 3).

    Args:
        log_probs: Log-probabilities log p(y | x), nats, such as a log-softmax or
            `jaxgen.families.classify.posterior` returns.
        labels: Right classes.
        num_bins: Number of bins of the calibration error.

    Returns:
        The report.

    Raises:
        ValueError: No examples, NaN, rows that are no distributions, labels out of range, or fewer
            bins than one.

    Examples:
        >>> log_probs = np.log(np.asarray([[0.8, 0.2], [0.8, 0.2]]))
        >>> report = classification_report(log_probs, np.asarray([0, 1]))
        >>> report.accuracy, round(report.ece, 6)
        (0.5, 0.3)
    """
    p = np.asarray(log_probs, np.float64)
    y = np.asarray(labels)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if not len(p):
        raise ValueError("log_probs must have at least one row, got none")
    sums = np.exp(p).sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-3):
        worst = int(np.argmax(np.where(np.isnan(sums), np.inf, np.abs(sums - 1))))
        raise ValueError(
            "log_probs must be logarithms of probabilities that sum to 1 in each row; row "
            f"{worst} sums to {sums[worst]}"
        )
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be in [0, {p.shape[1]}), got {y.min()} to {y.max()}")
    right = p.argmax(axis=1) == y
    confidence = np.exp(p.max(axis=1))
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, right.astype(np.float64) - confidence, num_bins)
    return ClassificationReport(
        accuracy=float(right.mean()),
        nll=float(-p[np.arange(len(y)), y].mean()),
        ece=float(np.abs(gaps).sum() / len(y)),
        num=len(y),
    )
