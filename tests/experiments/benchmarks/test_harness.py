"""How functions are timed: in turns, and quick ones by the last call of theirs."""

import time

import pytest

from experiments.benchmarks.harness import interleaved


def test_turns():
    """A quick function's first calls are not counted; a slow one is called once a turn."""
    calls = []

    def quick():
        first = not calls or calls[-1] != "quick"
        calls.append("quick")
        time.sleep(0.05 if first else 0.01)

    def slow():
        calls.append("slow")
        time.sleep(0.12)

    seconds = interleaved({"quick": quick, "slow": slow}, repeats=3, warmup=1)
    assert calls.count("slow") == 4
    assert calls[: calls.index("slow")].count("quick") > 2
    assert 0.01 <= seconds["quick"] < 0.05
    assert seconds["slow"] >= 0.12


def test_repeats_must_be_positive():
    """There is no median of nothing."""
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        interleaved({}, repeats=0)
