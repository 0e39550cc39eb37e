"""`jaxgen measure`: distances of a run's samples, beside those of held-out images."""

import dataclasses
import json

import numpy as np
import pytest
from recipes import call

from experiments import __main__ as command
from experiments import dcgan_digits, maf_tabular, measure
from jaxgen.training.experiment import Distances

SMALL = "--steps=2 --batch-size=16 --sample-every=0 --log-every=1".split()
GAN = ["--model.generator-channels=8", "--sampler.standing-batches=1"]
MEASURE = ["--num=50", "--extractor=classifier"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "gan"
    with pytest.raises(SystemExit):
        dcgan_digits.recipe.main(["--run-dir", str(path), *SMALL, *GAN])
    return path


def test_samples_beside_held_out_images(run_dir, capsys):
    """Held-out digits are nearer to the training images than samples of two steps are."""
    assert command.main(["measure", str(run_dir), *MEASURE]) == 0
    head, _, samples, held_out, last = capsys.readouterr().out.splitlines()
    assert head.startswith("| of | FD-classifier | ")
    assert samples.startswith("| samples | ")
    assert held_out.startswith("| held-out images | ")
    assert (head[-10:], samples[-6:], held_out[-6:]) == ("| number |", "| 50 |", "| 50 |")
    assert last == f"step 2; kept in {run_dir / 'measured.jsonl'}"
    kept = json.loads((run_dir / "measured.jsonl").read_text())
    distances = [kept[side]["FD-classifier"] for side in ("samples", "held-out images")]
    assert np.isfinite(distances).all()
    assert distances[0] > distances[1]
    assert kept["step"] == 2
    assert (kept["protocol"]["samples"], kept["protocol"]["held-out images"]) == (50, 50)
    assert kept["protocol"]["environment"]["devices"]["count"] == 8
    assert not (run_dir / "measurements.csv").exists()  # which is of training


def test_the_seed_decides(run_dir, capsys):
    for seed in (1, 1, 2):
        assert command.main(["measure", str(run_dir), *MEASURE, f"--seed={seed}"]) == 0
    capsys.readouterr()
    lines = (run_dir / "measured.jsonl").read_text().splitlines()[-3:]
    first, again, other = (json.loads(line)["samples"] for line in lines)
    assert first == again
    assert first != other


def test_a_step_that_is_none(run_dir, capsys):
    with pytest.raises(SystemExit):
        command.main(["measure", str(run_dir), "--step=last"])
    assert "must be the number of a step or best, got 'last'" in capsys.readouterr().err


def test_bad_input(run_dir, tmp_path, capsys):
    call(capsys, maf_tabular, "--run-dir", str(tmp_path / "flow"), *SMALL, "--model.layers=1")
    refused = [
        ([str(run_dir), "--num=5", "--extractor=classifier"], "must be at least 6, got 5"),
        ([str(run_dir), "--measure-num=0"], "--measure-num must be at least 1, got 0"),
        ([str(tmp_path / "flow")], "jaxgen measure is for models of images"),
        ([str(tmp_path / "nothing")], "is no run directory"),
        ([str(run_dir), *MEASURE, "--step=7"], "7"),
        ([str(run_dir), *MEASURE, "--average=other"], "average must be one of"),
    ]
    for arguments, message in refused:
        assert command.main(["measure", *arguments]) in (1, 2)
        assert message in capsys.readouterr().err


def test_what_cannot_be_kept_is_printed(run_dir, capsys, monkeypatch):
    def full(path, obj):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(measure, "append_json_line", full)
    assert command.main(["measure", str(run_dir), *MEASURE]) == 0
    shown = capsys.readouterr()
    assert "| samples | " in shown.out
    assert "the result is printed but not kept: [Errno 30]" in shown.err


def test_a_number_that_is_not_finite_is_a_failure(run_dir, capsys, monkeypatch):
    """It is printed and kept, as none."""
    made = measure.open_run(run_dir, measure_every=1)
    lost = made.experiment._replace(
        distances=lambda *_: Distances(("FD",), lambda images: {"FD": np.nan}, {})
    )
    changed = dataclasses.replace(made, experiment=lost)
    monkeypatch.setattr(measure, "open_run", lambda *args, **changes: changed)
    assert command.main(["measure", str(run_dir), "--num=8"]) == 1
    assert "error: not finite: FD" in capsys.readouterr().err
    assert json.loads((run_dir / "measured.jsonl").read_text().splitlines()[-1])["samples"] == {
        "FD": None
    }
