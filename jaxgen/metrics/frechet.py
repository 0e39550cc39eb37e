"""The Fréchet distance between two Gaussians fitted to features: FID, sFID, FD-lite0 and the rest.

Statistics are float64 on the host and stream over batches; no feature need be kept.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxgen.metrics.checks import check_features, check_results, warn_few

_CHUNK = 4096  # rows that are widened to float64 at once


class Moments(NamedTuple):
    """Sufficient statistics of a Gaussian, which can be merged.

    Attributes:
        num: Number N of samples seen.
        mean: Mean of the samples, f64[D].
        scatter: Sum over the samples of `(x - mean)(x - mean)^T`, f64[D, D].
    """

    num: int
    mean: Float64[np.ndarray, " dim"]
    scatter: Float64[np.ndarray, "dim dim"]

    @property
    def covariance(self) -> Float64[np.ndarray, "dim dim"]:
        """The unbiased covariance, `scatter / (N - 1)`.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.num}")
        return self.scatter / (self.num - 1)


def moments(features: np.ndarray | Iterable[np.ndarray], *, name: str = "features") -> Moments:
    """Mean and scatter of features, in one pass.

    Each chunk is centred on its own mean and merged into the total (`merge`), so nothing cancels
    as it does in `E[x x^T] - E[x] E[x]^T`.

    Args:
        features: Features [N, D], or batches of them.
        name: Name of the features, for errors.

    Returns:
        Their moments.

    Raises:
        TypeError: features that are not floating point.
        ValueError: no features, NaN or infinite ones, or batches of different widths.

    Examples:
        >>> moments(np.asarray([[0.0], [2.0]])).covariance
        array([[2.]])
    """
    total: Moments | None = None
    seen = 0
    for batch in [features] if isinstance(features, np.ndarray) else features:
        batch = check_features(f"{name} (from row {seen})" if seen else name, batch)
        seen += len(batch)
        for begin in range(0, len(batch), _CHUNK):
            part = _chunk_moments(batch[begin : begin + _CHUNK].astype(np.float64))
            total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError(f"{name} must have at least one row, got none")
    return total


def _chunk_moments(x: np.ndarray) -> Moments:
    mean = x.mean(axis=0)
    x = x - mean
    return Moments(len(x), mean, x.T @ x)


def merge(a: Moments, b: Moments) -> Moments:
    r"""The moments of both sets of samples together (Chan et al. 1983).

    $$M = M_a + M_b + \frac{n_a n_b}{n_a + n_b} \delta \delta^\top, \quad
    \delta = \bar x_b - \bar x_a$$

    Args:
        a: Moments of one set.
        b: Moments of the other set, which has no sample in common with it.

    Raises:
        ValueError: widths that differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments to merge must have one width, got {len(a.mean)} and {len(b.mean)}"
        )
    num = a.num + b.num
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter
    scatter += np.outer(delta * (a.num * b.num / num), delta)
    return Moments(num, a.mean + delta * (b.num / num), scatter)


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""The squared 2-Wasserstein distance between Gaussians with the moments of two sets.

    $$\lVert\mu_a - \mu_b\rVert^2 + \mathrm{tr}\left(\Sigma_a + \Sigma_b
    - 2 (\Sigma_a \Sigma_b)^{1/2}\right)$$

    (Dowson and Landau 1982; Heusel et al. 2017, eq. 6, on Inception features: "FID".) With any
    factor $\Sigma_a = F F^\top$ the product $\Sigma_a \Sigma_b$ has the eigenvalues of the
    symmetric $F^\top \Sigma_b F$, so the trace of its root is the sum of their roots: one
    symmetric eigendecomposition, no matrix square root, no complex numbers.

    With no more samples than dimensions a covariance is singular, and the distance, always biased
    upwards by small samples, says little. It is computed, with a `FewSamplesWarning`.

    Args:
        a: Moments of one set.
        b: Moments of the other set; the distance is symmetric.

    Returns:
        The distance, in squared units of the features; 0 for equal moments.

    Raises:
        ValueError: widths that differ, fewer than two samples, or moments that are not finite.
        FloatingPointError: moments so large that the distance overflows.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(1000, 2))
        >>> round(frechet_distance(moments(x), moments(x + np.asarray([3.0, 4.0]))), 6)
        25.0
    """
    _check("a", a)
    _check("b", b)
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            "both sets of features must come from one extractor, but they have "
            f"{len(a.mean)} and {len(b.mean)} dimensions"
        )
    dim = len(a.mean)
    if (fewest := min(a.num, b.num)) <= dim:
        warn_few(
            f"{fewest} samples for {dim} feature dimensions: the covariance is singular and the "
            "Fréchet distance strongly biased; do not compare it with others'"
        )
    narrow, wide = (a, b) if a.num <= b.num else (b, a)
    factor = _factor(narrow)
    product = factor.T @ wide.covariance @ factor
    check_results({"the product of the covariances": product.sum()}, "the features are too large")
    roots = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None))
    delta = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    distance = float(delta @ delta + traces - 2 * roots.sum())
    check_results({"the Fréchet distance": distance}, "the features are too large")
    return max(0.0, distance)  # what rounding leaves of equal moments


def _check(name: str, m: Moments) -> None:
    dim = len(m.mean)
    if m.mean.shape != (dim,) or m.scatter.shape != (dim, dim):
        raise ValueError(
            f"{name} must be moments, a mean [D] and a scatter [D, D], got shapes {m.mean.shape} "
            f"and {m.scatter.shape}"
        )
    for field in ("mean", "scatter"):
        if not np.isfinite(getattr(m, field)).all():
            raise ValueError(
                f"{name} must be finite moments, but its {field} holds NaN or infinity"
            )


def _factor(m: Moments) -> np.ndarray:
    """F with `covariance = F F^T`, as narrow as the covariance's rank allows."""
    covariance = m.covariance
    if m.num > len(m.mean):
        try:
            return np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            pass  # singular all the same: a feature that is constant, or a sum of others
    values, vectors = np.linalg.eigh(covariance)
    # What is left of the null space is rounding, and its square root would be no longer small.
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
