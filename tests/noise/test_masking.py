"""Masks: their schedules, the number of places, which places."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.noise.masking import cosine, draw_masks, lowest, num_masked, power

SCHEDULES = {
    "cosine": (cosine, lambda r: math.cos(math.pi * r / 2)),
    "linear": (power(1.0), lambda r: 1 - r),
    "cubic": (power(3.0), lambda r: 1 - r**3),
    "square root": (power(0.5), lambda r: 1 - math.sqrt(r)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule, expected = SCHEDULES[name]
    r = np.linspace(0, 1, 9)
    share = schedule(jnp.asarray(r, jnp.float32))
    np.testing.assert_allclose(share, [expected(each) for each in r], atol=1e-6)
    assert (np.diff(share) < 0).all()


def test_masks_of_training(key):
    """As many places as the paper says; which ones, is uniform and independent of the number."""
    num, length = 4000, 7
    masks = np.asarray(jax.jit(draw_masks, static_argnums=(1, 2))(key, num, length))
    # ceil(7 cos(pi r / 2)) is k where r lies between arccos(k / 7) and arccos((k - 1) / 7).
    edges = 2 / math.pi * np.arccos(np.arange(length + 1) / length)
    counts = np.bincount(masks.sum(axis=1), minlength=length + 1)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], num * -np.diff(edges)).pvalue > 1e-3
    few = masks[masks.sum(axis=1) == 6]
    assert stats.chisquare((~few).sum(axis=0)).pvalue > 1e-3


def test_lowest_are_exactly_so_many():
    """Of equal values too, and where there are NaN."""
    values = jnp.array([[3.0, 1.0, 1.0, 1.0], [0.0, jnp.nan, -1.0, jnp.inf], [0.0] * 4])
    chosen = lowest(values, jnp.array([2, 3, 0]))
    expected = [[False, True, True, False], [True, False, True, True], [False] * 4]
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 3, 8, 12, 16])
def test_numbers_of_a_sampler(name, num_steps):
    """The schedule's whole part; at least one more is known after each step, and all at the end."""
    schedule, share = SCHEDULES[name]
    unknown = np.array([0, 1, 2, 5, 12, 16, 64, 1024])
    masked = unknown
    for step in range(1, num_steps + 1):
        got = np.asarray(
            jax.jit(num_masked, static_argnums=(0, 2))(
                schedule, step, num_steps, jnp.asarray(unknown), jnp.asarray(masked)
            )
        )
        left = num_steps - step
        by_schedule = [math.floor(n * share(step / num_steps) + 1e-6) for n in unknown]
        expected = np.minimum(np.maximum(by_schedule, left), masked - 1)
        np.testing.assert_array_equal(got, np.maximum(expected, 0))
        enough = unknown >= num_steps
        assert (got[enough] >= left).all()
        masked = got
    assert not masked.any()


def test_bad_exponents():
    for exponent in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="exponent must be positive and finite, got"):
            power(exponent)
