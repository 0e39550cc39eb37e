"""The sums behind rows: functions of the steps, however these were dispatched or stopped."""

import json

import numpy as np
import pytest

from jaxgen.training.strategies import Report
from jaxgen.training.tally import Tally

RNG = np.random.default_rng(0)
TOTALS = (RNG.normal(size=60) * 10.0 ** RNG.integers(-6, 6, 60)).astype(np.float32)
WEIGHTS = RNG.integers(0, 3, 60).astype(np.float32)
BAD = np.full(60, -1)
BAD[[3, 4, 5, 9, 20, 21, 22, 23, 30]] = 2


def report(begin, end, most=70):
    """Steps as a dispatch gives them, zeros behind them."""

    def padded(values):
        return np.concatenate([values[begin:end], np.zeros(most - (end - begin), values.dtype)])

    return Report(padded(BAD), {"loss": (padded(TOTALS), padded(WEIGHTS))})


def added(*cuts, tally=None):
    tally, begin, all_added = tally or Tally(), 0, []
    for end in cuts:
        all_added.append(tally.add(report(begin, end), begin, end - begin))
        tally = Tally.from_json(json.loads(json.dumps(tally.to_json())))  # as a checkpoint does
        begin = end
    return tally, all_added


def test_sums_do_not_depend_on_the_dispatches():
    """Nor on where they were stored: to the last bit."""
    whole, _ = added(60)
    assert whole.means()["loss"] == pytest.approx(TOTALS.astype(float).sum() / WEIGHTS.sum())
    for cuts in (range(1, 61), (7, 8, 31, 60), (59, 60)):
        again, _ = added(*cuts)
        assert again.to_json() == whole.to_json()


def test_a_row_of_skipped_steps_ends_with_a_good_one():
    _, found = added(4, 10, 22, 60)
    assert [a.skipped for a in found] == [1, 3, 2, 3]
    assert [a.first_bad for a in found] == [(3, 2), (4, 2), (20, 2), (22, 2)]
    assert [a.worst_streak for a in found] == [1, 3, 2, 4]
    tally, found = added(6, 8)
    assert (tally.streak, tally.skipped) == (0, 3)
    assert found[-1] == (0, None, 0)  # the row before does not reach into it


def test_nothing_stored_is_a_new_tally():
    """As of checkpoints that kept none."""
    assert Tally.from_json({}).to_json() == Tally().to_json()
    assert Tally().means() == {}
