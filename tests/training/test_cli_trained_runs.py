"""The command line on trained runs: `sample` and `evaluate`."""

import io
import json
import sys

import command_line
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from PIL import Image

from jaxgen.data.sources import digits
from jaxgen.training import cli
from jaxgen.training.recipe import Recipe
from jaxgen.training.runs import open_run


def test_what_is_drawn_or_measured_is_what_was_trained(run, trained, tmp_path):
    """No verb takes a flag that makes another model; the seed of the draws is free."""
    out = tmp_path / "x.npz"
    for verb in (["evaluate"], ["sample", "--num", "2", "--out", str(out)]):
        code, _, err = run(*verb, "--run-dir", str(trained), "--width", "5")
        assert code == 2
        assert "was made by another config:\n  --width: 3 -> 5" in err
    assert not out.exists()
    assert run("sample", "--num", "2", "--out", str(out), "--run-dir", str(trained))[0] == 0
    again = ("sample", "--num", "2", "--out", str(tmp_path / "y.npz"), "--seed", "1")
    assert run(*again, "--run-dir", str(trained))[0] == 0
    drawn = [np.load(tmp_path / name)["samples"] for name in ("x.npz", "y.npz")]
    assert not np.array_equal(*drawn)


def test_sample(run, trained, tmp_path):
    grid, samples = tmp_path / "grid.png", tmp_path / "samples.npz"
    code, out, _ = run("sample", "--run-dir", str(trained), "--num", "9", "--out", str(grid))
    assert code == 0
    assert f"samples: {grid}" in out
    assert Image.open(grid).size[0] > 24
    assert run("sample", "--run-dir", str(trained), "--num", "300", "--out", str(samples))[0] == 0
    with np.load(samples) as data:
        images = data["samples"]
    assert images.shape == (300, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300
    code, _, err = run("sample", "--run-dir", str(trained), "--out", str(grid))
    assert code == 2
    assert "exists and is not overwritten" in err


def test_a_result_that_is_not_finite_is_null_and_a_failure(run, trained, monkeypatch):
    """Valid JSON, the metric's name, exit code 1."""
    nan = float("nan")
    metrics = {"loss": nan, "error": 0.5, "standard_error": nan}
    monkeypatch.setattr(cli.evaluation, "make_evaluate", lambda *_: lambda _: metrics)
    code, out, err = run("evaluate", "--json", "--run-dir", str(trained))
    assert code == 1
    assert "not finite, so no number in the result: loss, standard_error" in err
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["loss"], result["error"]) == (None, 0.5)


def test_the_best_checkpoint_by_its_name(run, tmp_path):
    """It is that of the smallest held-out loss here, and not the newest."""
    directory = ("--run-dir", str(tmp_path / "r"))
    code, _, err = run("--evaluate-every", "2", "--checkpoint-every", "2", *directory)
    assert code == 0, err
    best = json.loads((tmp_path / "r" / "best.json").read_text())
    assert (best["step"], best["metric"]) == (4, "loss")
    (tmp_path / "r" / "best.json").write_text(json.dumps({**best, "step": 2}))
    code, out, _ = run("evaluate", "--step", "best", "--json", *directory)
    assert (code, json.loads(out)["step"]) == (0, 2)
    assert open_run(tmp_path / "r", step="best").step == 2
    (tmp_path / "r" / "best.json").unlink()
    code, _, err = run("sample", "--step", "best", "--out", str(tmp_path / "x.png"), *directory)
    assert code == 2
    assert "has no best checkpoint: --measure-every or --evaluate-every finds it" in err
    code, out, err = run("sample", "--step", "worst", *directory)
    assert code == 2
    assert "--step" in out + err


def test_samples_that_are_not_finite_are_a_failure(run, trained, tmp_path, monkeypatch):
    """One line, exit code 1, no file."""
    lost = lambda *args, condition=None: jnp.full((8, 8, 8, 1), jnp.nan)  # noqa: E731
    family = toys.mean_image()._replace(sample=lost)
    monkeypatch.setattr(toys, "mean_image", lambda poison: family)
    out = tmp_path / "x.png"
    code, _, err = run("sample", "--num", "5", "--out", str(out), "--run-dir", str(trained))
    assert code == 1
    assert err.startswith("error: 5 of 5 samples are not finite")
    assert not out.exists()


def test_evaluate_prints_a_table_for_people(run, trained):
    code, out, _ = run("evaluate", "--run-dir", str(trained))
    assert code == 0
    result = json.loads((trained / "evaluations.jsonl").read_text().splitlines()[-1])
    assert f"step {result['step']}, average 'ema'; digits, test" in out
    assert "bits per dimension" in out
    assert "-log p(x)" in out
    assert "{" not in out


def test_evaluate_prints_and_keeps_one_json_line(run, trained):
    code, out, _ = run("evaluate", "--json", "--run-dir", str(trained))
    assert code == 0
    result = json.loads(out.strip().splitlines()[-1])
    assert result["loss"] > 0
    assert result["likelihood"] == {
        "nats": result["loss"],
        "standard_error": result["standard_error"],
        "bits_per_dim": pytest.approx(result["loss"] / (64 * np.log(2))),
        "num_examples": 297,
        "bound": "ELBO",
        "dequantization": "none",
        "given": None,
        "data": digits("test").protocol,
    }
    assert result["protocol"]["data"] == "digits, test"
    assert result["protocol"]["environment"]["devices"]["count"] == 8
    lines = (trained / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == result


def test_a_result_that_cannot_be_kept_is_printed(run, trained, monkeypatch):
    def full(path, obj):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cli, "append_json_line", full)
    code, out, err = run("evaluate", "--json", "--run-dir", str(trained))
    assert code == 0
    assert json.loads(out.strip().splitlines()[-1])["loss"] > 0
    assert err.startswith("warning: the result is printed but not kept: [Errno 28]")
    assert "evaluations.jsonl" in err
    code, out, _ = run("evaluate", "--run-dir", str(trained))
    assert code == 0
    assert "bits per dimension" in out
    assert "kept" not in out


def test_samples_one_by_one(run, trained, tmp_path):
    """A directory gets a file for each; it is never mixed with what is there."""
    out = tmp_path / "new" / "samples"
    assert run("sample", "--num", "3", "--out", str(out), "--run-dir", str(trained))[0] == 0
    assert sorted(p.name for p in out.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert Image.open(out / "00002.png").size == (8, 8)
    code, _, err = run("sample", "--num", "3", "--out", str(out), "--run-dir", str(trained))
    assert code == 2
    assert "is not empty" in err


def test_a_terminal_without_unicode(trained, tmp_path, monkeypatch):
    """The path is printed in its encoding."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as stop:
        command_line.recipe.main(
            ["sample", "--num=1", f"--out={tmp_path / 'Bücher.png'}", f"--run-dir={trained}"]
        )
    assert not stop.value.code
    out.seek(0)
    assert r"B\xfccher.png" in out.read()


def test_what_cannot_be_drawn_is_left_out_and_said(run, tmp_path, monkeypatch):
    """Training goes on; who asks for the picture is told why there is none."""

    def without(config):
        made = command_line.build(config)
        family = made.family._replace(sample=None)
        return made._replace(family=family, left_out={"attribute": "there is no class 3"})

    monkeypatch.setattr(command_line, "recipe", Recipe(without, command_line.Config()))
    code, out, _ = run("--run-dir", str(tmp_path / "r"), "--steps", "4")
    assert code == 0
    assert "the picture 'attribute' is left out: there is no class 3" in out
    assert "training shows no samples: the family cannot draw 'reconstructions'" in out
    asked = ("sample", "--picture", "attribute", "--out", str(tmp_path / "x.png"))
    code, _, err = run(*asked, "--run-dir", str(tmp_path / "r"))
    assert code == 2
    assert "--picture attribute cannot be drawn: there is no class 3" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample", "--out", "grid.jpg"], "must end in"),
        (["sample", "--num", "0", "--out", "new.png"], "--num must be at least 1, got 0"),
        (["sample", "--step", "99", "--out", "new.png"], "no checkpoint of step 99"),
    ],
)
def test_bad_sampling(run, trained, args, message):
    code, _, err = run(*args, "--run-dir", str(trained))
    assert code == 2
    assert message in err


def test_help_of_a_run_is_of_its_verb(run, trained):
    """With the names of its pictures; what fixes the model is in the whole help alone."""
    code, out, _ = run("sample", "--run-dir", str(trained), "--help")
    assert code == 0
    assert "--width" not in out
    for text in ("--num", "Pictures (--picture): samples", "--help-all"):
        assert text in out
    code, out, _ = run("sample", "--help-all", "--run-dir", str(trained))
    assert code == 0
    assert "--width" in out
    assert run("evaluate", "--run-dir=nowhere", "--nothing-like-this", "--help")[0] == 0


def test_samples_are_numbered_in_their_run(run, trained):
    """The grid has a title; what is drawn twice is kept twice."""
    drawn = [
        run("sample", "--num", "4", "--run-dir", str(trained))[1].split(": ")[1].strip()
        for _ in range(2)
    ]
    assert drawn == [str(trained / "drawn" / f"samples_00{n}.png") for n in (1, 2)]
    sizes = {Image.open(path).size for path in drawn}
    assert sizes == {(2 * 66 + 2, 20 + 2 * 66 + 2)}
