"""`jaxgen measure`: distances of a run's samples, beside those of held-out images."""

import json

import numpy as np
import pytest
from recipes import call

from experiments import __main__ as command
from experiments import dcgan_digits, maf_tabular

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
    head, _, samples, held_out = capsys.readouterr().out.splitlines()
    assert head.startswith("| of | FD-classifier | ")
    assert samples.startswith("| samples | ")
    assert held_out.startswith("| held-out images | ")
    kept = json.loads((run_dir / "measured.jsonl").read_text())
    distances = [kept[side]["FD-classifier"] for side in ("samples", "held-out images")]
    assert np.isfinite(distances).all()
    assert distances[0] > distances[1]
    assert kept["step"] == 2
    assert kept["protocol"]["samples"] == 50
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
        ([str(tmp_path / "flow")], "is for models of images"),
        ([str(tmp_path / "nothing")], "is no run directory"),
        ([str(run_dir), *MEASURE, "--step=7"], "7"),
        ([str(run_dir), *MEASURE, "--average=other"], "average must be one of"),
    ]
    for arguments, message in refused:
        assert command.main(["measure", *arguments]) in (1, 2)
        assert message in capsys.readouterr().err
