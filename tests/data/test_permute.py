"""The keyed permutation: a bijection, random enough, the same bits in NumPy and JAX."""

import collections
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.data.permute import MAX_SIZE, permute

SIZES = (1, 2, 3, 4, 5, 7, 8, 64, 97, 1000, 1797, 50_000, 60_000)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("key", [(0,), (1, 2), (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)])
def test_is_a_bijection_without_overflow_warnings(n, key):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = permute(np.arange(n), key, n)
    assert image.dtype == np.uint32
    np.testing.assert_array_equal(np.sort(image), np.arange(n))


def test_is_injective_at_the_largest_size():
    index = np.concatenate([np.arange(1000), MAX_SIZE - 1 - np.arange(1000)])
    image = permute(index, (3, 4), MAX_SIZE)
    assert len(np.unique(image)) == 2000
    assert image.max() < MAX_SIZE


@pytest.mark.parametrize("n", [1, 3, 1797, 50_000, MAX_SIZE])
def test_jax_gives_the_same_bits(n):
    index = np.arange(100) * 7919 % n
    epoch = np.arange(100, dtype=np.uint32) // 30 + np.uint32(2**32 - 2)
    compiled = jax.jit(lambda i, e: permute(i, (5, 0xDEADBEEF, e), n, jnp))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = permute(index, (5, 0xDEADBEEF, epoch), n)
    np.testing.assert_array_equal(compiled(jnp.asarray(index), jnp.asarray(epoch)), expected)


def test_a_scalar_is_permuted_as_in_an_array():
    expected = permute(np.arange(10), (1, 2), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [int(permute(i, (1, 2), 10)) for i in range(10)] == expected.tolist()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_small_permutations_are_all_equally_frequent(n):
    num_keys = 12_000
    keys = np.arange(num_keys, dtype=np.uint32)
    images = [permute(np.full(num_keys, i), (keys, 7), n) for i in range(n)]
    counts = collections.Counter(zip(*(image.tolist() for image in images), strict=True))
    observed = [counts[p] for p in itertools.permutations(range(n))]
    assert stats.chisquare(observed).pvalue > 1e-3


@pytest.mark.parametrize("n", [7, 30, 97, 1797, 50_000])
@pytest.mark.parametrize("word", [0, 1])  # consecutive seeds, and consecutive epochs
def test_positions_and_differences_are_uniform_over_keys(n, word):
    num_keys, pvalues = 20_000, []
    count = np.arange(num_keys, dtype=np.uint32)
    for first, second in [(0, 1), (n // 2, n // 2 + 1), (0, n - 1)]:
        key = (count, 0) if word == 0 else (0, count)
        x = permute(np.full(num_keys, first), key, n).astype(int)
        y = permute(np.full(num_keys, second), key, n).astype(int)
        for values, size in [(x, n), (y, n), ((y - x) % n - 1, n - 1)]:
            bins = min(size, 40)
            expected = np.bincount(np.arange(size) * bins // size, minlength=bins) / size
            observed = np.bincount(values * bins // size, minlength=bins)
            pvalues.append(stats.chisquare(observed, num_keys * expected).pvalue)
    assert min(pvalues) > 1e-4


def test_neighbours_epochs_and_seeds_are_uncorrelated():
    n = 1797
    for seed in range(20):
        image = permute(np.arange(n), (seed, 0), n).astype(float)
        next_epoch = permute(np.arange(n), (seed, 1), n).astype(float)
        next_seed = permute(np.arange(n), (seed + 1, 0), n).astype(float)
        for a, b in [(image[1:], image[:-1]), (image, next_epoch), (image, next_seed)]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(n)


def test_both_words_of_a_key_count():
    base = permute(np.arange(1000), (1, 2), 1000)
    for key in [(2, 1), (1, 3), (0, 2), (1, 2, 0), (1,)]:
        assert (permute(np.arange(1000), key, 1000) == base).mean() < 0.02


def test_the_bits_are_fixed_so_that_runs_resume_under_later_versions():
    small, large = (
        permute(np.arange(8), (1, 2), 1797),
        permute(np.arange(4), (0xFFFFFFFF, 3, 5), MAX_SIZE),
    )
    assert small.tolist() == [1373, 1539, 185, 703, 490, 179, 655, 1631]
    assert large.tolist() == [1009989527, 280889211, 763958984, 1047290240]


@pytest.mark.parametrize("n", [0, -1, MAX_SIZE + 1])
def test_refuses_a_size_out_of_range(n):
    with pytest.raises(ValueError, match=r"n must be between 1 and 2\*\*30"):
        permute(np.arange(1), (0,), n)
