"""The measured rate and the number of steps that follows from it."""

import pytest

from jaxgen.training import pace


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def run(clock, made, dispatches):
    step = made.step
    for count, seconds in dispatches:
        clock[0] += seconds
        step += count
        made.finished(step)


def test_a_short_dispatch_changes_neither_the_rate_nor_the_next_ones_length(clock):
    """Before an event a step or two are left; alone they say 7 or 90 steps/s of 50."""
    made = pace.Pace(1000)
    made.start(0)
    made.finished(0)
    run(clock, made, [(12, 0.24)] * 40)
    assert made.rate == pytest.approx(50)
    assert made.num_steps == 12
    run(clock, made, [(1, 0.14)])
    assert made.rate == pytest.approx(50, rel=0.05)
    assert made.num_steps >= 11
    run(clock, made, [(1, 0.01)])
    assert made.rate == pytest.approx(50, rel=0.05)


def test_a_lasting_change_is_followed(clock):
    made = pace.Pace(1000)
    made.start(0)
    made.finished(0)
    run(clock, made, [(12, 0.24)] * 40)
    run(clock, made, [(12, 1.2)] * 20)
    assert made.rate == pytest.approx(10, rel=0.1)


def test_events_do_not_count(clock):
    made = pace.Pace(1000)
    made.start(0)
    made.finished(0)
    run(clock, made, [(10, 0.2)] * 3)
    clock[0] += 60.0
    made.start(30)
    made.finished(30)
    run(clock, made, [(10, 0.2)])
    assert made.rate == pytest.approx(50)
    assert made.average() == pytest.approx(50)


def test_the_rate_is_unknown_before_the_second_reading(clock):
    made = pace.Pace(1000)
    made.start(0)
    assert made.finished(1) == 0.0
    assert made.average() == 0.0
    assert made.num_steps == 1
