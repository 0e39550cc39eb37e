"""The generative classifier, p(y | x) by Bayes' rule from p(x | y), and how good it is."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

# (params, model_state, batch, key) -> nats f32[B]: `Family.log_prob`
LogProb = Callable[..., Array]


class ClassificationReport(NamedTuple):
    """How good probabilities of classes are.

    Attributes:
        accuracy: the share whose most probable class is the right one.
        nll: mean negative log-probability of the right class, nats.
        ece: expected calibration error, in [0, 1].
        num: examples.
    """

    accuracy: float
    nll: float
    ece: float
    num: int


def class_log_likelihoods(
    log_prob: LogProb,
    params: Any,
    model_state: Any,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    num_classes: int,
    *,
    label_key: str = "label",
) -> Float[Array, "batch classes"]:
    """log p(x | y) of each example under each class, nats; a pure function that compiles.

    The noise of a likelihood that has some (dequantization, a sampled bound) is the same for all
    classes, so that it does not decide between them.

    Args:
        log_prob: of a family conditional on the class.
        params: its parameters.
        model_state: its state.
        batch: examples; whatever label they have is ignored.
        key: of the noise.
        num_classes: classes 0, ..., num_classes - 1.
        label_key: the entry of the batch by which the family is told the class.

    Returns:
        One row an example, one column a class.

    Raises:
        ValueError: fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    size = len(jax.tree.leaves(dict(batch))[0])

    def one(label: Array) -> Array:
        labels = jnp.broadcast_to(label.reshape(1), (size,))
        return log_prob(params, model_state, {**batch, label_key: labels}, key)

    return jax.lax.map(one, jnp.arange(num_classes, dtype=jnp.int32)).T


def posterior(
    log_likelihoods: Float[Array, "batch classes"], priors: Sequence[float] | None = None
) -> Float[Array, "batch classes"]:
    r"""log p(y | x) by Bayes' rule.

    $$\log p(y | x) = \log p(x | y) + \log p(y) - \log \sum_{y'} p(x | y') p(y')$$

    Args:
        log_likelihoods: log p(x | y), nats.
        priors: p(y), which sum to one; None for equal ones.

    Returns:
        Log-probabilities; their exponentials sum to one in each row.

    Raises:
        ValueError: priors that are not one probability for each class.

    Example:
        >>> jnp.exp(posterior(jnp.log(jnp.asarray([[0.2, 0.6]])), [0.75, 0.25]))
        Array([[0.5, 0.5]], dtype=float32)
    """
    classes = log_likelihoods.shape[1]
    p = np.full(classes, 1 / classes) if priors is None else np.asarray(priors, np.float64)
    if p.shape != (classes,) or not (p >= 0).all() or not math.isclose(p.sum(), 1, abs_tol=1e-6):
        raise ValueError(f"priors must be {classes} probabilities that sum to 1, got {priors}")
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log(p), log_likelihoods.dtype)
    return jax.nn.log_softmax(log_likelihoods + log_p[None], axis=1)


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
        log_probs: log p(y | x), nats, such as `posterior` or a log-softmax returns.
        labels: the right classes.
        num_bins: of the calibration error.

    Returns:
        The report.

    Raises:
        ValueError: no examples, NaN, rows that are no distributions, labels out of range, or fewer
            bins than one.

    Example:
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
