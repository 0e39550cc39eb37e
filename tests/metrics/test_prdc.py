import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from jaxgen.metrics import prdc as module
from jaxgen.metrics.prdc import prdc


def by_definition(y, x, k):
    """The papers' definitions, with scikit-learn's neighbours."""

    def radii(a):
        return NearestNeighbors(n_neighbors=k + 1).fit(a).kneighbors(a)[0][:, -1]

    d = np.linalg.norm(x[:, None] - y[None], axis=2)
    inside_x, inside_y = d <= radii(x)[:, None], d <= radii(y)[None]
    return (
        inside_x.any(0).mean(),
        inside_y.any(1).mean(),
        inside_x.sum(0).mean() / k,
        inside_x.any(1).mean(),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [7, 64, 2048])
def test_it_is_the_definition_in_blocks_of_any_size(two_sets, monkeypatch, k, dtype, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    y, x = (features.astype(dtype) for features in two_sets)
    assert prdc(y, x, k=k) == pytest.approx(by_definition(y, x, k), rel=1e-6)


def test_it_is_that_of_torch_fidelity_and_of_prdc(two_sets):
    """torch-fidelity 0.4.0: prc_features_to_metric; prdc 0.2: compute_prdc; both with k = 3."""
    assert prdc(*two_sets, k=3) == pytest.approx((0.99, 0.468, 2.1288888888888886, 0.936))


def test_points_on_a_line():
    x = np.asarray([[0.0], [1.0], [10.0]])  # radii 1, 1, 9
    y = np.asarray([[0.5], [1.5], [30.0]])  # radii 1, 1, 28.5
    result = prdc(y, x, k=1)
    assert result.precision == pytest.approx(2 / 3)  # 30 lies in no ball
    assert result.recall == 1  # 10 lies within 28.5 of 30
    assert result.density == pytest.approx((2 + 2 + 0) / 3)  # of 0 and 1; of 1 and 10
    assert result.coverage == 1  # 10's ball holds 1.5


def test_collapse_has_precision_without_recall():
    x = np.random.default_rng(0).normal(size=(500, 4))
    y = 0.01 * np.random.default_rng(1).normal(size=(500, 4))
    result = prdc(y, x)
    assert result.precision == 1
    assert result.recall < 0.05
    assert result.coverage < 0.2


def test_an_offset_that_dwarfs_the_distances(two_sets):
    y, x = (features.astype(np.float32) for features in two_sets)
    assert prdc(y + 300, x + 300, k=3) == pytest.approx(prdc(y, x, k=3), abs=0.02)


def test_bad_input(two_sets):
    y, x = two_sets
    for k in (0, 250):
        with pytest.raises(ValueError, match=f"less than the smaller set, 249, got {k}"):
            prdc(y, x, k=k)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        prdc(y[:1], x, k=1)
    with pytest.raises(TypeError, match="reference must be real"):
        prdc(y, x.astype(int))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_distances_that_overflow_are_an_error(two_sets):
    """NaN lies in no ball: precision and coverage of 0."""
    x, y = (1e20 * values.astype(np.float32) for values in two_sets)
    with pytest.raises(FloatingPointError, match="distances of samples and reference overflow flo"):
        prdc(x, y)
    assert prdc(x.astype(np.float64), y.astype(np.float64)).precision > 0
