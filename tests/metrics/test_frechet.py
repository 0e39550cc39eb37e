import warnings

import numpy as np
import pytest
import scipy.linalg

from jaxgen.metrics.checks import FewSamplesWarning
from jaxgen.metrics.frechet import Moments, frechet_distance, merge, moments


def by_definition(a, b):
    """Heusel et al.'s formula with SciPy's root of a matrix."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)


def test_moments_are_numpys():
    x = np.random.default_rng(0).normal(3, 2, (500, 7))
    result = moments(x)
    assert result.num == 500
    np.testing.assert_allclose(result.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(x, rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("sizes", [[500], [1, 499], [100, 1, 399], [250, 250]])
def test_moments_of_batches_are_those_of_all(sizes):
    x = np.random.default_rng(0).normal(3, 2, (500, 7)).astype(np.float32)
    whole, streamed = moments(x), moments(iter(np.split(x, np.cumsum(sizes)[:-1])))
    assert streamed.num == whole.num
    np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(streamed.scatter, whole.scatter, rtol=1e-10, atol=1e-10)


def test_nothing_cancels_far_from_zero():
    x = np.random.default_rng(0).normal(size=(9000, 2))
    far = moments(x + 1e8)  # sums of squares would lose all of the variance
    np.testing.assert_allclose(far.covariance, np.cov(x, rowvar=False), rtol=1e-6, atol=1e-6)


def test_merge_is_symmetric_and_refuses_other_widths():
    x = np.random.default_rng(0).normal(size=(20, 3))
    a, b = moments(x[:5]), moments(x[5:])
    for one, other in zip(merge(a, b), merge(b, a), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="one width, got 3 and 2"):
        merge(a, moments(x[:, :2]))


def test_distance_of_diagonal_gaussians():
    """Along each axis (m1 - m2)^2 + (s1 - s2)^2."""
    a = Moments(1000, np.asarray([0.0, 1.0]), np.diag([1.0, 4.0]) * 999)
    b = Moments(1000, np.asarray([3.0, 1.0]), np.diag([9.0, 4.0]) * 999)
    assert frechet_distance(a, b) == pytest.approx(9 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_distance_is_that_of_scipy_and_symmetric(two_sets):
    a, b = (moments(x) for x in two_sets)
    assert frechet_distance(a, b) == pytest.approx(by_definition(*two_sets), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_distance_is_that_of_torch_fidelity(two_sets):
    """torch-fidelity 0.4.0: metric_fid.fid_statistics_to_metric on fid_features_to_statistics."""
    a, b = (moments(x) for x in two_sets)
    assert frechet_distance(a, b) == pytest.approx(0.7389468253373499, rel=1e-10)


def test_few_samples_are_computed_exactly_and_flagged():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 20)), rng.normal(size=(12, 20))
    with pytest.warns(FewSamplesWarning, match="8 samples for 20 feature dimensions"):
        distance = frechet_distance(moments(a), moments(b))
    # The nuclear norm of the product of both factors, with no root of a singular matrix.
    factors = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    trace = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() - 2 * trace
    expected += sum(np.square(f).sum() for f in factors)
    assert distance == pytest.approx(expected, rel=1e-9)


def test_constant_features_need_no_warning():
    x = np.random.default_rng(0).normal(size=(100, 4))
    x[:, 2] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(moments(x), moments(x + 1)) == pytest.approx(4)


def test_bad_input():
    x = np.ones((4, 3))
    with pytest.raises(TypeError, match="features must be real floating-point features, got int"):
        moments(np.ones((4, 3), int))
    with pytest.raises(ValueError, match=r"features must be features \[N, D\], got shape \(4,\)"):
        moments(np.ones(4))
    with pytest.raises(ValueError, match="1 of 4 rows hold NaN or infinity, the first .* row 2"):
        moments(np.where(np.arange(4)[:, None] == 2, np.nan, x))
    with pytest.raises(ValueError, match="got none"):
        moments([])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"), pytest.warns():
        frechet_distance(moments(x[:1]), moments(x))
    with pytest.raises(ValueError, match="one extractor, but they have 3 and 2 dimensions"):
        frechet_distance(moments(x), moments(x[:, :2]))


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused(two_sets, lost):
    """Python's max(0.0, nan) is 0.0: a perfect distance."""
    a, b = (moments(x) for x in two_sets)
    mean, scatter = a.mean.copy(), a.scatter.copy()
    mean[3] = scatter[3, 3] = lost
    with pytest.raises(ValueError, match="a must be finite moments, but its mean holds NaN"):
        frechet_distance(a._replace(mean=mean), b)
    with pytest.raises(ValueError, match="b must be finite moments, but its scatter holds NaN"):
        frechet_distance(b, a._replace(scatter=scatter))
    with pytest.raises(
        ValueError, match=r"a must be moments, .* got shapes \(16,\) and \(15, 16\)"
    ):
        frechet_distance(a._replace(scatter=scatter[1:]), b)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_distance_that_overflows_is_an_error(two_sets):
    a, b = (moments(x) for x in two_sets)
    with pytest.raises(FloatingPointError, match="the Fréchet distance is inf"):
        frechet_distance(a._replace(mean=a.mean + 1e200), b)
    wide = a._replace(scatter=a.scatter * 1e200)
    with pytest.raises(FloatingPointError, match="the product of the covariances is"):
        frechet_distance(wide, wide)
