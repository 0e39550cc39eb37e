"""A run's page is made of what its directory has, whole or not; nothing is computed."""

import dataclasses
import json

import numpy as np
import pytest
from html_page import check_whole

from experiments import ddpm_digits, report
from jaxgen.training import config as configs
from jaxgen.training.images import save_png

HOSTILE = "<script>a & b</script>"


@pytest.fixture
def run_dir(tmp_path):
    """A directory as training and other commands leave it."""
    place = tmp_path / "run"
    config = dataclasses.replace(
        ddpm_digits.recipe.config,
        run_dir=str(place),
        steps=40,
        data=dataclasses.replace(ddpm_digits.recipe.config.data, dir=HOSTILE),
    )
    place.mkdir()
    saved = {
        "experiment": "experiments.ddpm_digits",
        "config": configs.to_dict(config),
        "data": {"train": {"protocol": "digits, train"}, "held_out": {"protocol": "digits, test"}},
    }
    (place / "config.json").write_text(json.dumps(saved))
    return place


@pytest.fixture
def full(run_dir):
    rows = [f"{10 * n},{5 / n},{n},2.5,0" for n in range(1, 401)]
    head = "step,loss,unet/grad_norm,steps_per_second,skipped"
    (run_dir / "metrics.csv").write_text("\n".join([head, *rows, "4010,nan,1,2.5,0", ""]))
    (run_dir / "evaluations.csv").write_text("step,loss\n20,0.25\n")
    (run_dir / "measurements.csv").write_text("step,FID\n20,8.25\n40,4.5\n")
    sides = {"samples": {"FID": 4.125}, "held-out images": {"FID": 1.875}}
    (run_dir / "measured.jsonl").write_text(json.dumps({"step": 40, **sides}) + "\n")
    evaluation = {"step": 20, "loss": 2.5, "likelihood": {"nats": 2.5, "bits_per_dim": 0.125}}
    evaluation["protocol"] = {"parameters": "average 'ema'", "environment": {"devices": "cpu"}}
    lost = {**evaluation, "loss": None}
    lines = [json.dumps(each) + "\n" for each in (lost, evaluation)]
    (run_dir / "evaluations.jsonl").write_text("".join(lines) + '{"step": 30, "lo')
    session = {"arguments": ["--steps", "40"], "python": "3.11", "packages": {"jax": "0.10"}}
    (run_dir / "sessions.jsonl").write_text(2 * (json.dumps(session) + "\n"))
    score = {"samples": 0.5, "real": 0.875, "floor": 0.1}
    obedience = {"step": 20, "held out": "digits, test", "scores": {"class": score}}
    (run_dir / "obedience.jsonl").write_text(json.dumps(obedience) + "\n")
    rebuilt = {"metrics": {"PSNR": 21.5}}
    (run_dir / "reconstructions.jsonl").write_text(json.dumps(rebuilt) + "\n")
    for step in range(1, 13):
        save_png(run_dir / "samples" / f"{step:08d}.png", np.full((900, 20, 3), step, np.uint8))
    (run_dir / "samples" / "00000012.wav").write_bytes(b"RIFF")
    (run_dir / "samples" / "00000013.png").write_bytes(b"half of it")
    for name in ("samples_001", "samples_002", "between_conditions_001"):
        save_png(run_dir / "drawn" / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    save_png(run_dir / "samplers.png", np.zeros((4, 4, 3), np.uint8))
    return run_dir


def test_the_whole_page(full, capsys):
    assert report.main([str(full)]) == 0
    assert capsys.readouterr().out == f"report: {full / 'report.html'}\n"
    text = (full / "report.html").read_text()
    page = check_whole(text)
    assert "4,010 of 40 steps of 64" in text
    assert "1,604 s of training steps; 2 sessions" in text
    # the newest sound grid, eight over time, three that other commands drew
    assert sum(tag == "img" for tag, _ in page.tags) == 1 + 8 + 3
    assert sum(tag == "audio" for tag, _ in page.tags) == 1
    for words in ("step 12", "samples_002.png", "between conditions", "--data.dir"):
        assert words in text
    assert "samples_001.png" not in text
    assert "4.125" in text
    assert "1.875" in text
    assert HOSTILE not in text
    labels = [values["aria-label"] for tag, values in page.tags if tag == "svg"]
    assert labels == [
        "loss by step: training, held-out",
        "grad_norm by step: unet",
        "FID by step: samples",
        "steps_per_second by step: training",
    ]
    assert text.count("<polyline") == 5
    assert max(points.count(",") for points in text.split('points="')[1:]) < 400
    evaluated = page.cells[page.cells.index("evaluation") :]
    assert evaluated[1:4] == ["loss", "nats", "bits_per_dim"]
    assert evaluated[4] == "2. step 20, average 'ema'"
    assert evaluated[5:8] == ["2.5", "-", "0.125"]  # a figure that is given twice is shown once
    assert evaluated[9:12] == ["-", "2.5", "0.125"]
    shown = page.cells[page.cells.index("what is obeyed") :]
    assert shown[4:8] == ["class", "0.5", "0.875", "0.1"]


def test_a_run_that_has_just_begun(run_dir):
    text = report.page(run_dir)
    assert "No row of metrics is written yet." in text
    assert "<h2" in text
    assert "Samples" not in text
    assert "--steps" in text
    assert "digits, train" in text


def test_the_page_is_made_anew(full, tmp_path):
    out = tmp_path / "pages" / "run.html"
    assert report.main([str(full), "--out", str(out)]) == 0
    before = out.read_bytes()
    assert report.main([str(full), "--out", str(out)]) == 0
    assert out.read_bytes() == before
    assert not (full / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluations.jsonl", "{}\n", "is not as commands write it: KeyError('step')"),
        ("measured.jsonl", '{"step": 3}\n', "is not as commands write it: KeyError('samples')"),
        ("obedience.jsonl", '{"a": 1}\n{"a": \n{}\n', "line 2 is no JSON object"),
        ("reconstructions.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("sessions.jsonl", '{"arguments": 3}\n', "is not as commands write it: TypeError"),
        ("metrics.csv", "step,loss\n10,much\n", "could not convert string to float: 'much'"),
        ("measurements.csv", "step,FID\n10,1,2\n", "cannot be read as a table of numbers"),
        ("evaluations.csv", "loss\n2\n", "has a row without a step"),
    ],
)
def test_a_damaged_file_is_named(run_dir, file, content, message, capsys):
    (run_dir / file).write_text(content)
    assert report.main([str(run_dir)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {run_dir / file}")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["none"], "none is no run directory"), (["none", "--out", "x.pdf"], "must end in .html")],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
