"""The kernel distance between two sets of features: KID on Inception features."""

from typing import NamedTuple

import numpy as np

from jaxgen.metrics.checks import check_pair, check_results


class KernelDistance(NamedTuple):
    """An estimate over subsets.

    Attributes:
        mean: Mean of the subsets' unbiased estimates; slightly below 0 where the sets are alike.
        std: Standard deviation of those estimates (dividing by their number).
    """

    mean: float
    std: float


def kernel_distance(
    samples: np.ndarray,
    reference: np.ndarray,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    seed: int = 2020,
) -> KernelDistance:
    r"""The unbiased squared maximum mean discrepancy with a polynomial kernel, over subsets.

    $$k(x, y) = \left(\frac{x^\top y}{D} + 1\right)^3$$

    $$\widehat{MMD}^2 = \frac{\sum_{i \ne j} k(x_i, x_j) + \sum_{i \ne j} k(y_i, y_j)}{m (m - 1)}
    - \frac{2}{m^2} \sum_{i, j} k(x_i, y_j)$$

    (Bińkowski et al. 2018, section 4; Gretton et al. 2012, eq. 3). In float64. The subsets are
    those that torch-fidelity draws for the same seed, so the numbers are the same too.

    Args:
        samples: Features [N, D].
        reference: Features [M, D].
        num_subsets: Number of pairs of subsets, each drawn without replacement.
        subset_size: Number m of features in a subset.
        degree: Degree of the polynomial, 3 in the paper.
        seed: Seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        TypeError: features that are not floating point.
        ValueError: shapes that do not fit, values that are not finite, a number out of range, or
            subsets larger than a set.
        FloatingPointError: features so large that the kernel overflows.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(200, 4))
        >>> kernel_distance(x, x + 1, num_subsets=10, subset_size=100).mean > 1
        True
    """
    x, y = check_pair(samples, reference, at_least=2)
    for name, value in (("num_subsets", num_subsets), ("degree", degree)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size must be between 2 and the size of the smaller set, "
            f"{min(len(x), len(y))}, got {subset_size}"
        )
    # The stream of RandomState, unlike that of newer generators, is promised never to change.
    rng = np.random.RandomState(seed)
    estimates = []
    for _ in range(num_subsets):
        some_x = x[rng.choice(len(x), subset_size, replace=False)].astype(np.float64)
        some_y = y[rng.choice(len(y), subset_size, replace=False)].astype(np.float64)
        estimates.append(_mmd2(some_x, some_y, degree))
    result = KernelDistance(float(np.mean(estimates)), float(np.std(estimates)))
    check_results(result._asdict(), "the features are too large for the kernel distance")
    return result


def _mmd2(x: np.ndarray, y: np.ndarray, degree: int) -> float:
    m, dim = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / dim + 1) ** degree

    def off_diagonal(a: np.ndarray) -> float:
        k = kernel(a, a)
        return k.sum() - np.trace(k)

    within = (off_diagonal(x) + off_diagonal(y)) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()
