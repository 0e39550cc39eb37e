"""A trace of some steps, which compute what they would without it."""

import jax
import numpy as np
import pytest
from toys import experiment

from jaxgen.training import loop, profile
from jaxgen.training.config import RunConfig


def run(run_dir, **changes):
    flags = RunConfig(
        **{
            "run_dir": str(run_dir),
            "steps": 30,
            "batch_size": 32,
            "log_every": 10,
            "sample_every": 0,
            **changes,
        }
    )
    return loop.train(experiment(flags), flags, jax.devices()[:1])


@pytest.fixture
def traced(monkeypatch):
    """The calls of the profiler, which is slow and not the question."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda place: calls.append(place))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def test_a_trace_is_written_and_nothing_else_changes(tmp_path, capsys, monkeypatch):
    plain = run(tmp_path / "plain")
    dispatches = []
    finished = loop.Pace.finished
    monkeypatch.setattr(
        loop.Pace, "finished", lambda self, step: dispatches.append(step) or finished(self, step)
    )
    state = run(tmp_path / "run", profile=(7, 12))
    assert {7, 12} <= set(dispatches)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(plain))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert (
        f"steps 7 to 12 are profiled in {tmp_path / 'run' / 'profile'}" in capsys.readouterr().out
    )


def test_it_ends_with_the_run(tmp_path, traced, capsys):
    run(tmp_path, profile=(20, 50))
    assert traced == [str(tmp_path / "profile"), "stop"]
    assert "the steps from 20 on are profiled" in capsys.readouterr().out


def test_what_is_behind_is_not_traced(tmp_path, traced, capsys):
    run(tmp_path, steps=20)
    run(tmp_path, profile=(10, 25))
    assert traced == []
    assert "nothing is profiled: step 10 is behind, at 20" in capsys.readouterr().out
    (tmp_path / profile.PLACE).mkdir()  # as a run has it that was traced before
    run(tmp_path, steps=40, profile=(10, 25))
    assert "nothing is profiled" not in capsys.readouterr().out


def test_from_the_first_step(tmp_path, traced):
    run(tmp_path, steps=5, profile=(0, 3))
    assert traced == [str(tmp_path / "profile"), "stop"]


@pytest.mark.parametrize("span", [(3, 3), (5, 2), (-1, 4)])
def test_bad_steps(span):
    text = " ".join(map(str, span))
    with pytest.raises(ValueError, match=f"--profile must be two steps, .* got {text}"):
        RunConfig(profile=span)


def test_steps_that_never_come(tmp_path):
    with pytest.raises(ValueError, match="must begin before the last step, 30, got 30 40"):
        run(tmp_path / "r", profile=(30, 40))
    assert not (tmp_path / "r").exists()
