"""The accelerator script: time limits, what is kept, what is tried again, its tables."""

import json
import os
import time

import pytest

from experiments.benchmarks.accelerator import __main__ as script
from experiments.benchmarks.accelerator import correctness, probe
from experiments.benchmarks.accelerator.pieces import Piece, pieces
from experiments.benchmarks.accelerator.programs import RECIPES, replaced
from experiments.benchmarks.accelerator.report import report
from experiments.benchmarks.accelerator.worker import PieceError, Worker
from experiments.ddpm_cifar import recipe


def answer(value=1):
    """A piece that is done at once."""
    return {"value": value, "process": os.getpid()}


def hang():
    """A piece that never ends."""
    time.sleep(600)


def fail():
    """A piece that raises."""
    raise RuntimeError("out of memory")


def die():
    """A piece whose process ends."""
    os._exit(7)


@pytest.fixture
def worker():
    """A process for pieces."""
    worker = Worker()
    yield worker
    worker.stop()


@pytest.mark.slow
def test_worker(worker):
    """One process while all goes well; whatever goes wrong is an error of that call alone."""
    first = worker.call(answer, 60)
    with pytest.raises(PieceError, match="RuntimeError: out of memory"):
        worker.call(fail, 60)
    assert worker.call(answer, 60, value=3) == {"value": 3, "process": first["process"]}
    with pytest.raises(PieceError, match="exit code 7"):
        worker.call(die, 60)
    with pytest.raises(PieceError, match="longer than its 3 s"):
        worker.call(hang, 3)
    assert worker.call(answer, 60)["process"] != first["process"]


@pytest.mark.slow
def test_pieces_are_kept_and_what_failed_is_tried_again(tmp_path, monkeypatch, capsys):
    """Done once; a failure last of all, in the next call; the exit code says so."""
    asked = {
        "one": Piece(fail, 60, takes_size=False),
        "two": Piece(answer, 60, takes_size=False),
    }
    monkeypatch.setattr(script, "pieces", lambda: asked)
    out = str(tmp_path)
    assert script.main(["--out", out]) == 1
    assert "RuntimeError: out of memory" in capsys.readouterr().out
    asked |= {
        "one": Piece(answer, 60, takes_size=False),
        "two": Piece(fail, 60),
        "three": asked["two"],
    }
    assert script.main(["--out", out]) == 0
    printed = capsys.readouterr().out
    assert printed.index("three: done") < printed.index("one: done")
    assert "two" not in printed
    assert json.loads((tmp_path / "one.json").read_text())["value"] == 1
    assert script.main(["--out", out, "--list"]) == 0
    assert "two (done)" in capsys.readouterr().out


def test_pieces_have_no_names_twice_and_every_recipe():
    """Each recipe trains in both precisions and is sampled."""
    names = pieces()
    for name in RECIPES:
        assert {f"training-{name}-{p}" for p in ("bfloat16", "float32")} <= names.keys()
        assert f"sampling-{name}-bfloat16" in names
    assert next(iter(names)) == "probe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be positive, got 0"),
        (["--only", "nothing"], "--only must begin one of probe, "),
        (["--num", "1"], "--num must be at least 10, got 1"),
        (["--", "--steps=1"], "flags after -- are for --train RECIPE"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path):
    """One line, exit code 2."""
    assert script.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_changes_by_dotted_names():
    """Of the config and of its groups."""
    config = replaced(recipe.config, {"batch_size": 8, "model.channels": 32, "data.name": "folder"})
    assert (config.batch_size, config.model.channels, config.data.name) == (8, 32, "folder")
    assert config.model.multipliers == recipe.config.model.multipliers
    with pytest.raises(TypeError, match="nothing"):
        replaced(recipe.config, {"model.nothing": 1})


def test_relative_differences():
    """By the norm; what is not finite is infinitely far."""
    assert correctness.relative([3.0, 4.0], [3.0, 4.0]) == 0
    assert correctness.relative([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)
    assert correctness.relative([float("nan")], [1.0]) == float("inf")
    verdict = correctness._verdict({"a": 1e-4, "b, samples": 5e-3, "c": float("inf")}, "float32")
    assert verdict["failed"] == ["c"]


def test_report():
    """Utilization by the measured peak; pieces without a result are named."""
    machine = {**probe.facts(), "peak_flops": {"bfloat16": 1e12, "float32": 1e11}}
    results = {
        "probe": {**machine, "peak_bytes": 1e9, "sum_over_devices": None},
        "training-ddpm_cifar-bfloat16": {
            "recipe": "ddpm_cifar",
            "precision": "bfloat16",
            "shrunk": True,
            "devices": 1,
            "batch_size": 8,
            "parameters": 2_250_000,
            "seconds_per_step": 0.5,
            "examples_per_second": 16.0,
            "flops_per_step": 2e11,
            "trace_seconds": 1.0,
            "compile_seconds": 2.0,
            "memory": {"total": 2**21},
        },
        "torch-ddpm-bfloat16": {
            "setup": "torch 2",
            "rows": {"train step": {"torch": 0.3, "jaxgen": 0.1}},
        },
        "torch-vae-bfloat16": {"skipped": "torch not installed"},
        "devices": {"error": "took longer than its 60 s"},
    }
    text = report(results)
    assert (
        "| `ddpm_cifar`, shrunk | bfloat16 | 2.25M | 8 | 2 | 16 | 200 | 40.0% | 2 | 1.0 + 2.0 |"
        in text
    )
    assert "| train step | 300 | 100 (3.00) | torch 2 |" in text
    assert "- `devices`: took longer than its 60 s" in text
    assert "- `torch-vae-bfloat16`: torch not installed" in text
    assert "### Sampling" not in text


def test_a_case_that_raises_costs_its_own_row_alone():
    """As cuDNN did of an odd length: the others' differences were lost with it."""

    def compare(x):
        return 1 / x

    result = correctness._each({"good": (1e4,), "bad": (0,)}, compare, "float32")
    assert result["failed"] == ["bad"]
    assert result["differences"]["good"] == 1e-4
    assert result["errors"] == {"bad": "ZeroDivisionError: division by zero"}
