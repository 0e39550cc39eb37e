import numpy as np
import pytest

from jaxgen.metrics.kernel import kernel_distance


def test_one_subset_is_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(0.5, 1, (6, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(k(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j) / 30
    expected = within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 36
    distance = kernel_distance(x, y, num_subsets=3, subset_size=6)
    assert distance.mean == pytest.approx(expected)
    assert distance.std == pytest.approx(0, abs=1e-12)


def test_it_is_that_of_torch_fidelity(two_sets):
    """torch-fidelity 0.4.0: metric_kid.kid_features_to_metric, 20 subsets of 100, rng_seed 2020."""
    distance = kernel_distance(*two_sets, num_subsets=20, subset_size=100, seed=2020)
    assert distance.mean == pytest.approx(0.06009006739189313, rel=1e-10)
    assert distance.std == pytest.approx(0.011699037092959035, rel=1e-10)


def test_it_is_unbiased():
    """Between samples of one distribution it is 0 on average, and not above."""
    x = np.random.default_rng(0).normal(size=(4000, 2))
    distances = [
        kernel_distance(*np.split(x[i * 200 : i * 200 + 200], 2), num_subsets=1, subset_size=100)
        for i in range(20)
    ]
    means = [one.mean for one in distances]
    assert abs(np.mean(means)) < 3 * np.std(means) / np.sqrt(20)


def test_seed(two_sets):
    one, again, other = (
        kernel_distance(*two_sets, num_subsets=3, subset_size=50, seed=s) for s in (0, 0, 1)
    )
    assert one == again != other


def test_bad_input(two_sets):
    x, y = two_sets
    with pytest.raises(ValueError, match="between 2 and .* smaller set, 250, got 1000"):
        kernel_distance(x, y)
    with pytest.raises(ValueError, match="num_subsets must be at least 1, got 0"):
        kernel_distance(x, y, num_subsets=0)
    with pytest.raises(ValueError, match="they have 16 and 15 features"):
        kernel_distance(x, y[:, 1:])
    with pytest.raises(ValueError, match="reference must have at least 2 rows, got 1"):
        kernel_distance(x, y[:1])
    with pytest.raises(ValueError, match="samples must be finite"):
        kernel_distance(x * np.inf, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_distance_that_overflows_is_an_error(two_sets):
    x, y = (1e60 * values for values in two_sets)
    with pytest.raises(FloatingPointError, match="mean is nan, std is nan: the features are too"):
        kernel_distance(x, y, num_subsets=2, subset_size=100)
