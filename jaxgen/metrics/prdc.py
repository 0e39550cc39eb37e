"""Precision, recall, density and coverage: how far two sets of features lie within each other."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxgen.metrics.checks import check_pair

_BLOCK = 2048  # squared distances are held for so many pairs a side


class PRDC(NamedTuple):
    """How far two sets lie within each other.

    Attributes:
        precision: Share of samples near a reference, in [0, 1].
        recall: Share of references near a sample, in [0, 1].
        density: Mean number of references that a sample is near, over k; from 0 to above 1.
        coverage: Share of references that have a sample near them, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(samples: np.ndarray, reference: np.ndarray, *, k: int = 5) -> PRDC:
    r"""Fidelity and variety of samples by balls around each point that reach its k-th neighbour.

    With $B_k(x)$ the closed ball around x whose radius is the distance to its k-th nearest
    neighbour within its own set (x not counted), samples y and references x:

    - precision: the share of y in any $B_k(x)$; recall: the share of x in any $B_k(y)$
      (Kynkäänniemi et al. 2019, eq. 1 and 2; k = 3 there);
    - density: $\frac{1}{k M} \sum_{x, y} 1[y \in B_k(x)]$, M the number of y; coverage: the share
      of x whose $B_k(x)$ holds any y (Naeem et al. 2020, section 3; k = 5 there).

    Memory is bounded: distances live a block at a time. The arithmetic is in the features' own
    precision (float32 or float64), on features centred so that little cancels.

    Args:
        samples: Features [M, D].
        reference: Features [N, D].
        k: Number of the neighbour that the balls reach.

    Returns:
        The four numbers. All depend on M, N and k: compare like with like.

    Raises:
        TypeError: features that are not floating point.
        ValueError: shapes that do not fit, values that are not finite, or k that is not from 1 to
            one less than the size of the smaller set.
        FloatingPointError: features so large that squared distances overflow.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> prdc(x, x)[:2]
        (1.0, 1.0)
    """
    y, x = check_pair(samples, reference, at_least=2)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k must be between 1 and one less than the smaller set, {min(len(x), len(y)) - 1}, "
            f"got {k}"
        )
    center = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    x, y = x - center, y - center
    for features in (x, y):
        if not np.isfinite(4 * np.einsum("nd,nd->n", features, features)).all():
            raise FloatingPointError(
                f"squared distances of samples and reference overflow {features.dtype}: the "
                "features are too large"
            )
    x_radii, y_radii = _squared_radii(x, k), _squared_radii(y, k)
    in_x_balls = np.zeros(len(y), np.int64)  # of each sample: how many balls it lies in
    covered, recalled = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for rows in _blocks(len(x)):
        for columns in _blocks(len(y)):
            d = _squared_distances(x[rows], y[columns])
            inside = d <= x_radii[rows, None]
            in_x_balls[columns] += np.count_nonzero(inside, axis=0)
            covered[rows] |= inside.any(axis=1)
            recalled[rows] |= (d <= y_radii[None, columns]).any(axis=1)
    return PRDC(
        precision=float(np.mean(in_x_balls > 0)),
        recall=float(recalled.mean()),
        density=float(in_x_balls.mean() / k),
        coverage=float(covered.mean()),
    )


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest other point; each pair is met once."""
    nearest = np.full((len(x), k), np.inf, x.dtype)
    blocks = list(_blocks(len(x)))
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            d = _squared_distances(x[rows], x[columns])
            if rows == columns:
                np.fill_diagonal(d, np.inf)
            else:
                nearest[columns] = _smallest(nearest[columns], np.ascontiguousarray(d.T), k)
            nearest[rows] = _smallest(nearest[rows], d, k)
    return nearest.max(axis=1)


def _smallest(kept: np.ndarray, more: np.ndarray, k: int) -> np.ndarray:
    """The k smallest of each row of both."""
    if more.shape[1] > k:
        more = np.partition(more, k - 1, axis=1)[:, :k]
    return np.partition(np.concatenate([kept, more], axis=1), k - 1, axis=1)[:, :k]


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    d = a @ b.T
    d *= -2
    d += np.einsum("nd,nd->n", a, a)[:, None]
    d += np.einsum("nd,nd->n", b, b)[None]
    return np.maximum(d, 0, out=d)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(begin, min(begin + _BLOCK, count)) for begin in range(0, count, _BLOCK))
