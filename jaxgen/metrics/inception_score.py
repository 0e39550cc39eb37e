"""The Inception score: how sure a classifier is of each sample, and how varied its verdicts."""

import itertools
from typing import NamedTuple

import numpy as np

from jaxgen.metrics.checks import check_features, check_results, warn_few


class InceptionScore(NamedTuple):
    """The score over the parts of the samples.

    Attributes:
        mean: Mean over the parts.
        std: Standard deviation over the parts (dividing by their number).
    """

    mean: float
    std: float


def inception_score(
    logits: np.ndarray, *, num_splits: int = 10, seed: int | None = 2020
) -> InceptionScore:
    r"""The exponential of the mean KL divergence from each verdict to their average.

    $$IS = \exp E_x\left[KL(p(y | x) \,\Vert\, p(y))\right], \quad p(y) = E_x[p(y | x)]$$

    (Salimans et al. 2016, section 4.) Between 1 and the number of classes. It knows no reference:
    it does not see that samples lack variety within a class, nor what they should look like.

    Args:
        logits: Logits [N, classes]; of the Inception network, 1008 without their bias.
        num_splits: Number of parts of the samples, over which the score is the mean.
        seed: Seed of the order in which samples fall into the parts; None for the order given.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: another shape, values that are not finite, or fewer samples than parts.
        FloatingPointError: logits so large that their difference overflows.

    Examples:
        >>> sure = np.eye(5).repeat(20, 0) * 100  # of five classes, each as often
        >>> round(inception_score(sure, num_splits=1).mean, 6)
        5.0
    """
    logits = check_features("logits", logits)
    if not 1 <= num_splits <= len(logits):
        raise ValueError(
            f"num_splits must be between 1 and the number of samples, {len(logits)}, "
            f"got {num_splits}"
        )
    if len(logits) // num_splits <= logits.shape[1]:
        warn_few(
            f"{len(logits) // num_splits} samples a split for {logits.shape[1]} classes: the "
            "Inception score is biased downwards; do not compare it with others'"
        )
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    bounds = [i * len(logits) // num_splits for i in range(num_splits + 1)]
    scores = [_score(logits[a:b]) for a, b in itertools.pairwise(bounds)]
    result = InceptionScore(float(np.mean(scores)), float(np.std(scores)))
    check_results(result._asdict(), "the logits are too large for the Inception score")
    return result


def _score(logits: np.ndarray) -> float:
    log_p = logits.astype(np.float64)
    log_p = log_p - log_p.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    q = p.mean(axis=0)
    cross = q[q > 0] @ np.log(q[q > 0])  # the mean over x of sum_y p(y|x) log q(y)
    return float(np.exp((p * log_p).sum(axis=1).mean() - cross))
