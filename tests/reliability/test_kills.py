"""Whatever stops a run, the same command ends it as if nothing had happened."""

import json
import os
import random
import signal
import time
from contextlib import suppress

import pytest
from hosting import fingerprints

SAVE = "jaxgen.training.checkpoint:Checkpoints.save"
GRID = "jaxgen.training.writers:Writers.samples"
POINTS = [
    *[("os:fsync", call, when) for call in (1, 2, 3, 4) for when in ("before", "after")],
    *[
        (target, call, when)
        for target in (SAVE, GRID, "jaxgen.training.tables:CsvWriter.log")
        for call in (1, 2, 3)
        for when in ("before", "after")
    ],
    *[
        (target, 1, when)
        for target in (
            "jaxgen.training.runs:begin",
            "jaxgen.training.cli:append_json_line",
            "jaxgen.training.states:start",
            "jaxgen.training.manifest:Manifest.make",
            "jaxgen.training.writers:Writers.log_evaluation",
            "jaxgen.training.checkpoint:Checkpoints.wait",
            "jaxgen.training.checkpoint:Checkpoints.close",
        )
        for when in ("before", "after")
    ],
]


def finish(host, run_dir, straight):
    """The same command once more, and what it leaves behind."""
    assert host.train(run_dir) == 0, host.said()
    assert "damaged" not in host.said()
    assert fingerprints(run_dir) == straight
    left = [p for p in run_dir.rglob("*") if "tmp" in p.name]
    assert not left
    for line in (run_dir / "sessions.jsonl").read_text().splitlines():
        json.loads(line)


def test_killed_once(host, straight, tmp_path):
    """Before the second picture is written: its step is saved, and a row is begun."""
    run_dir = tmp_path / "run"
    assert host.train(run_dir, crash=(GRID, 2, "before")) == -signal.SIGKILL
    finish(host, run_dir, straight)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "call", "when"), POINTS)
def test_killed_at(host, straight, tmp_path, target, call, when):
    run_dir = tmp_path / "run"
    assert host.train(run_dir, crash=(target, call, when)) == -signal.SIGKILL, "never came there"
    finish(host, run_dir, straight)


@pytest.mark.slow
def test_killed_at_any_moment(host, straight, tmp_path):
    """Thirty times, the times drawn by a seed; a run that came to its end begins another."""
    rng = random.Random(0)
    begin = time.monotonic()
    assert host.train(tmp_path / "whole") == 0
    whole = time.monotonic() - begin
    index = 0
    for _ in range(30):
        run_dir = tmp_path / str(index)
        pid = host.start(run_dir)
        time.sleep(rng.uniform(0, whole))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if host.wait() == 0:
            assert fingerprints(run_dir) == straight
            index += 1
    finish(host, tmp_path / str(index), straight)
