"""Samplers of sequences: with a cache, by rows and naive, all the same values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions.elementwise import NO_CLASS
from jaxgen.distributions.logistic import discretized_logistic_log_prob, least_log_scale
from jaxgen.sampling.autoregressive import (
    ancestral,
    ancestral_by_row,
    draw_categorical,
    draw_mixture_of_logistics,
    naive_ancestral,
)

VALUES, LENGTH, BATCH = 5, 12, 4
TABLE = jax.random.normal(jax.random.key(0), (VALUES * LENGTH, VALUES)) * 2
DRAW = draw_categorical()


def forward(values):
    """Logits by the sum of all values before a position."""
    before = jnp.cumsum(values, axis=1) - values
    return TABLE[before]


def step(total, previous, t):
    total = jnp.where(t > 0, total + previous, total)
    return TABLE[total], total


def run_ancestral(key, given=None, known=None):
    none = jnp.zeros(BATCH, jnp.int32)
    return ancestral(step, none, none, key, LENGTH, DRAW, given=given, known=known)[0]


def run_naive(key, given=None, known=None):
    blank = jnp.full((BATCH, LENGTH), VALUES - 1)
    return naive_ancestral(forward, blank, key, DRAW, given=given, known=known)


def run_by_row(key, given=None, known=None):
    split = [None if x is None else x.reshape(BATCH, 3, 4) for x in (given, known)]

    def begin_row(cache, above, row):
        np.testing.assert_equal(above.shape, (BATCH, 4))
        return step, cache

    values = ancestral_by_row(
        begin_row,
        jnp.zeros(BATCH, jnp.int32),
        jnp.zeros((BATCH, 3, 4), jnp.int32),
        key,
        DRAW,
        given=split[0],
        known=split[1],
    )
    return values.reshape(BATCH, LENGTH)


@pytest.mark.parametrize("completing", [False, True])
def test_all_draw_the_same(key, completing):
    given = known = None
    if completing:
        given = jax.random.randint(key, (BATCH, LENGTH), 0, VALUES)
        known = jax.random.bernoulli(key, 0.5, (BATCH, LENGTH))
    values = jax.jit(run_ancestral)(key, given, known)
    assert len(np.unique(values)) == VALUES
    for run in (run_naive, run_by_row):
        np.testing.assert_array_equal(values, jax.jit(run)(key, given, known))
    if completing:
        np.testing.assert_array_equal(values[known], given[known])
        free = jax.jit(run_ancestral)(key)
        assert not np.array_equal(values[~known], free[~known])  # what is known is heeded


def test_parts_are_the_whole(key):
    none = jnp.zeros(BATCH, jnp.int32)
    whole = run_ancestral(key)
    first, cache = ancestral(step, none, none, key, 5, DRAW)
    second, _ = ancestral(step, cache, first[:, -1], key, 7, DRAW, first=5)
    np.testing.assert_array_equal(whole, jnp.concatenate([first, second], axis=1))


def test_draws_have_the_distribution(key):
    """The joint frequencies of two positions."""
    none = jnp.zeros(40_000, jnp.int32)
    values = np.asarray(ancestral(step, none, none, key, 2, DRAW)[0])
    counts = np.zeros((VALUES, VALUES))
    np.add.at(counts, (values[:, 0], values[:, 1]), 1 / len(values))
    p = np.asarray(jax.nn.softmax(TABLE))
    expected = p[0][:, None] * p[np.arange(VALUES)]
    np.testing.assert_allclose(counts, expected, atol=0.01)


def test_temperature(key):
    logits = jnp.tile(jnp.log(jnp.array([[0.2, 0.8]])), (50_000, 1))
    for temperature, share in ((1.0, 0.8), (0.5, 16 / 17), (2.0, 2 / 3), (0.0, 1.0)):
        drawn = draw_categorical(temperature)(key, logits)
        assert float(drawn.mean()) == pytest.approx(share, abs=0.01)
    logits = jnp.eye(5)[jnp.arange(6) % 5].reshape(2, 3, 5)  # of several axes before the values'
    drawn = draw_categorical(0.0)(key, logits)
    np.testing.assert_array_equal(drawn, [[0, 1, 2], [3, 4, 0]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_nan_draw_no_class(key, temperature):
    logits = jnp.zeros((3, 7)).at[1, 2].set(jnp.nan)
    drawn = jax.jit(draw_categorical(temperature))(key, logits)
    np.testing.assert_array_equal(drawn == NO_CLASS, [False, True, False])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_temperature_of_mixtures(key, temperature):
    """Frequencies against the masses of the mixture with divided logits and multiplied scales."""
    params = jnp.array([[0.0, 1.0], [-0.5, 0.5], [-2.0, -9.0]])
    draw = draw_mixture_of_logistics(temperature, num_bins=8)
    drawn = np.asarray(draw(key, jnp.tile(params[None], (50_000, 1, 1))))[:, 0]
    bins = np.linspace(-1, 1, 8)
    shares = [(np.abs(drawn - x) < 1e-5).mean() for x in bins]
    weights = np.asarray(jax.nn.softmax(params[0] / temperature))
    scales = jnp.maximum(params[2], least_log_scale(8)) + np.log(temperature)
    parts = discretized_logistic_log_prob(
        jnp.asarray(bins)[:, None], params[1][None], scales[None], 8
    )
    np.testing.assert_allclose(shares, np.exp(parts) @ weights, atol=0.01)


def test_a_low_temperature_is_not_undone_at_the_least_scale(key):
    """A mean half a scale above a bin's edge: the bin above has sigmoid(1/2) of the draws, and at
    temperature 1/10 sigmoid(5)."""
    scale = math.exp(-7)
    params = jnp.array([[0.0], [0.5 * scale], [-20.0]])  # the edge of bins 127 and 128 is 0
    for temperature, share in ((1.0, 0.6225), (0.1, 0.9933)):
        drawn = draw_mixture_of_logistics(temperature)(key, jnp.tile(params, (20_000, 1, 1)))
        assert float((drawn > 0).mean()) == pytest.approx(share, abs=0.01)


def test_bad_input(key):
    none = jnp.zeros(BATCH, jnp.int32)
    given, known = jnp.zeros((BATCH, 3), jnp.int32), jnp.zeros((BATCH, 3), bool)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        ancestral(step, none, none, key, 0, DRAW)
    with pytest.raises(ValueError, match="given and known must be given together"):
        ancestral(step, none, none, key, 3, DRAW, given=given)
    with pytest.raises(ValueError, match=r"given must have the shape \(4, 12\), got \(4, 3\)"):
        run_naive(key, given, known)
    with pytest.raises(ValueError, match=r"known must have the shape \(4, 12\), got \(4, 3\)"):
        run_naive(key, jnp.zeros((BATCH, LENGTH), jnp.int32), known)
    with pytest.raises(ValueError, match=r"known must have the shape \(4, 3\), got \(4, 2\)"):
        ancestral(step, none, none, key, 3, DRAW, given=given, known=known[:, :2])
    for make in (draw_categorical, draw_mixture_of_logistics):
        with pytest.raises(ValueError, match="temperature must be at least 0 and finite, got -1"):
            make(-1.0)
    with pytest.raises(ValueError, match="must be positive for a mixture of logistics, got 0"):
        draw_mixture_of_logistics(0.0)
