"""The comparison of the families, shrunk: end to end, resumed, refused; its page, CSV, Markdown."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from html_page import Page, check_whole
from recipes import call

from experiments import compare, cvae_mnist
from experiments.compare import main
from experiments.comparison import families, measure, table
from experiments.comparison.options import DEFAULTS
from experiments.pages import charts, tables
from jaxgen.conditioning.attributes import embeddings
from jaxgen.core import Variables
from jaxgen.training.runs import Run

OPTIONS: dict[str, Any] = {
    "families": ["autoencoder", "vae"],
    "budget_steps": 3,
    "num_samples": 20,
    "num_evaluated": 20,
}
ROOT = Path(__file__).parents[2]


def shrunk(out, given):
    """Compare by tiny networks."""
    dense = {"network": "dense", "features": [8], "latent_dim": 2}
    tiny = {"batch_size": 16, "model": dense}
    with pytest.MonkeyPatch.context() as patch:
        for name in OPTIONS["families"]:
            entrant = families.ENTRANTS[name]
            patch.setitem(families.ENTRANTS, name, entrant._replace(settings=lambda *_: tiny))
        compare.compare(out, given, classifier_steps=5)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two families."""
    out = tmp_path_factory.mktemp("compare") / "out"
    shrunk(out, dict(OPTIONS))
    return out


@pytest.mark.slow
def test_end_to_end(compared):
    """Each family is an ordinary run; the page is whole and loads nothing."""
    for name in OPTIONS["families"]:
        assert (compared / "runs" / name / "config.json").exists()
        assert (compared / "runs" / name / "metrics.csv").exists()
    text = (compared / "compare.html").read_text()
    check_whole(text)
    for needed in ("prefers-color-scheme: dark", 'name="viewport"', "no prior", "ELBO"):
        assert needed in text
    assert "--model.latent-dim=2" in text  # the command that makes the run again


@pytest.mark.slow
def test_same_numbers_everywhere(compared):
    """CSV, Markdown and page say the same, and what was measured."""
    with (compared / "compare.csv").open(newline="") as file:
        rows = {row["family"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "Real: held-out images",
        "Real: part of the training images",
        "Autoencoder",
        "VAE",
        "Plain classifier",
    ]
    markdown = (compared / "compare.md").read_text()
    cells = {
        cell.strip()
        for line in markdown.splitlines()
        if line[:1] == "|"
        for cell in line.split("|")
    }
    shown = set(Page((compared / "compare.html").read_text()).cells)
    for row in rows.values():
        for cell in row.values():
            assert not cell or (cell in cells and cell in shown)
    results = json.loads((compared / "measured" / "vae.json").read_text())["results"]
    vae = rows["VAE"]
    nats = results["likelihood"]["nats"]
    assert float(vae["nats"]) == pytest.approx(nats, 1e-3)
    bits = float(vae["bits_per_dim"])
    assert bits == pytest.approx(nats / 64 / math.log(2), rel=1e-3)
    assert float(vae["parameters"]) == sum(results["parameters"].values())
    assert vae["inverts"] == "no (reconstructs)"
    assert rows["Autoencoder"]["precision"] == ""
    assert rows["Autoencoder"]["nats"] == ""
    plain = json.loads((compared / "measured" / "real.json").read_text())["results"]["classifier"]
    accuracy = float(rows["Plain classifier"]["accuracy"])
    assert accuracy == pytest.approx(plain["accuracy"], rel=1e-3)
    assert plain["num"] == 20
    assert float(rows["Real: held-out images"]["num_images"]) == 20


@pytest.mark.slow
def test_resume(compared, capsys):
    """Nothing is trained or measured again; another setting is refused."""
    kept = [path for path in compared.rglob("*") if path.is_file() and path.parent != compared]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in kept}
    page = (compared / "compare.html").read_bytes()
    shrunk(compared, {})
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in kept} == before
    assert {
        path for path in compared.rglob("*") if path.is_file() and path.parent != compared
    } == set(kept)
    assert (compared / "compare.html").read_bytes() == page
    assert main(["--out", str(compared), "--seed=1"]) == 2
    assert "made with another --seed: 0, not 1" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_not_finite_is_a_dash_and_exit_code_1(compared, tmp_path, capsys, monkeypatch):
    """The page is written, with the reason, before the error."""
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    path = out / "measured" / "vae.json"
    measured = json.loads(path.read_text())
    reason = "its likelihood is not finite on 3 of 20 held-out images"
    measured["results"] |= {"likelihood": None, "lost": [reason]}
    measured["results"]["why"] |= {"likelihood": reason, "classifier": reason}
    path.write_text(json.dumps(measured))
    with pytest.raises(FloatingPointError, match=f"vae: {reason}"):
        shrunk(out, {})
    assert reason in (out / "compare.md").read_text()

    def fail(*_):
        raise FloatingPointError(reason)

    monkeypatch.setattr(compare, "compare", fail)
    capsys.readouterr()
    assert main(["--out", str(out)]) == 1
    assert reason in capsys.readouterr().err


def test_a_likelihood_that_is_not_finite_is_no_number(tmp_path):
    fields = families.settings("vae", 7, 8, labels=False, seed=3, data={"name": "digits"})
    planned = families.plan_run("vae", tmp_path / "run", fields)
    lost = planned.experiment.family._replace(
        log_prob=lambda variables, batch, key: jnp.where(jnp.arange(128) == 2, jnp.nan, -1.0),
        decode=lambda variables, latents, key, condition: jnp.nan * latents,
        encode=lambda variables, batch, key: batch["image"],
    )
    run = Run(lost, Variables({}), planned.config, planned.experiment, 7, "vae")
    reference = SimpleNamespace(num_evaluated=20, seed=0)
    with pytest.raises(FloatingPointError, match="not finite on 1 of 20 held-out images"):
        measure._likelihood(run, reference)
    with pytest.raises(FloatingPointError, match="reconstructions .* are not finite"):
        measure._round_trip(run, reference)


def test_samples_that_are_not_finite_are_a_dash(tmp_path, monkeypatch):
    """With the reason, as of other numbers; so are pictures."""
    fields = families.settings("vae", 7, 8, labels=False, seed=3, data={"name": "digits"})
    planned = families.plan_run("vae", tmp_path / "run", fields)
    family = planned.experiment.family
    run = Run(family, Variables({}), planned.config, planned.experiment, 7, planned.recipe.name())

    def lost(*_, **__):
        def draw(*_):
            raise FloatingPointError("3 of 20 samples are not finite")

        return draw

    for name in ("_training", "_likelihood", "_round_trip"):
        monkeypatch.setattr(measure, name, lambda *_: None)
    monkeypatch.setattr(measure.evaluation, "make_sample", lost)
    monkeypatch.setattr(measure.evaluation, "make_picture", lost)
    reference = SimpleNamespace(num_samples=20, seed=0)
    results, pictures = measure.measure("vae", run, reference)
    assert results["why"]["samples"] == "3 of 20 samples are not finite"
    assert len(results["lost"]) > 1
    assert pictures == {}
    assert "quality" not in results


@pytest.mark.slow
def test_run_dirs(tmp_path, capsys, monkeypatch):
    """A finished run that is conditional on the label: p(x) and the classifier by Bayes' rule."""
    tiny = ["--steps=3", "--batch-size=16", "--sample-every=0", "--log-every=1"]
    dense = ["--data.name=digits", "--model.features", "8", "--model.latent-dim=2"]
    run = tmp_path / "b"
    monkeypatch.setattr(measure, "STRIPS", {})  # seconds of compilation, and tested above
    call(capsys, cvae_mnist, "--run-dir", str(run), "--evaluate-every=0", *tiny, *dense)
    out = tmp_path / "out"
    given = {"run_dirs": [str(run)], "num_samples": 20, "num_evaluated": 20}
    compare.compare(out, given, classifier_steps=5)
    results = json.loads((out / "measured" / "b.json").read_text())["results"]
    p, classifier = results["likelihood"], results["classifier"]
    # -log p(x) = -log p(x | y) - log p(y) + log p(y | x), at the right label y of 10
    expected = p["given_label"] + math.log(10) - classifier["nll"]
    assert p["nats"] == pytest.approx(expected, abs=1e-3)
    assert 0 <= classifier["accuracy"] <= 1
    assert results["condition"] == "label"
    assert p["bits_per_dim"] is None
    text = (out / "compare.html").read_text()
    assert "b (VAE)" in text
    assert "not of the 8-bit pixels" in text

    cases = [
        ([str(tmp_path / "none")], "no run directory"),
        ([str(run), str(run)], "different last names"),
    ]
    for run_dirs, message in cases:
        assert main([*run_dirs, "--run-dir", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--families", "gan", "ebm"], "--families must be of gan"),
        (["--budget-seconds=0"], "--budget-seconds must be positive, got 0"),
        (["--budget-seconds=nan"], "--budget-seconds must be positive, got nan"),
        (["--budget-steps=0"], "--budget-steps must be at least 1, got 0"),
        (["--budget-steps=5", "--budget-seconds=5"], "exclude each other"),
        (["--num-samples=5"], "--num-samples must be at least 20, got 5"),
        (["--num-evaluated=1"], "--num-evaluated must be at least 2, got 1"),
        (["--seed=-1"], "--seed must be from 0"),
        (["--data.name=digit"], "did you mean 'digits'"),
        (["x", "--data.name=mnist"], "RUN_DIR compares finished runs: it goes without --data.name"),
        (["--run-dirs", "x", "--budget-steps=3"], "it goes without --budget-steps"),
        (["--families", "vae", "--data.resize=9"], "resize the images"),
        (["--families", "flow", "--data.resize=160"], "4 to 128 pixels a side"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    """One line, before anything is written."""
    out = tmp_path / "out"
    assert main(["--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 2  # the line, and how to get a traceback
    assert not out.exists()


def test_a_directory_of_something_else(tmp_path, capsys):
    """Nothing is overwritten."""
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 2
    assert "is no comparison" in capsys.readouterr().err
    (tmp_path / "compare.json").write_text("{}")
    assert main(["--out", str(tmp_path)]) == 2
    assert "cannot be read as a comparison" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(families.ENTRANTS))
def test_recipes(name, tmp_path):
    """Every family's settings fit its experiment, and fall in with the number of steps."""
    fields = families.settings(name, 50, 8, labels=True, seed=0, data={"name": "digits"})
    run = families.plan_run(name, tmp_path / "run", fields)
    family = run.experiment.family
    assert run.config.steps == 50
    assert family.name.lower() == ("score-based" if name == "diffusion" else name)
    assert (family.conditioning is not None) == (name == "autoregressive")
    assert (family.sampling is None) == (family.sample is None)


def test_flags_make_the_run_again():
    """A run's command line names all that differs from its experiment's defaults."""
    fields = families.settings("gan", 7, 8, labels=True, seed=3, data={"name": "digits"})
    run = families.plan_run("gan", Path("none"), fields)
    flags = families.flags(run.recipe, run.config)
    assert {"--steps=7", "--seed=3", "--model.condition=none"} <= set(flags)
    assert not any("batch-size" in flag for flag in flags)


def test_numbers():
    """Four digits, no exponent where it is short, a dash with its reason."""
    texts = [tables.number(v).text for v in (1.23456, 12345.6, 1.5e-7, 0.0)]
    assert texts == ["1.235", "12346", "1.5e-07", "0"]
    assert tables.number(None, "why") == tables.Cell("-", "why")


def test_charts():
    """Points lie within the frame; what is not finite is left out."""
    drawn = charts.lines({"loss": [[1, 5.0], [2, math.nan], [3, -2.0]]}, "a & b")
    pairs = re.findall(r'points="([^"]*)"', drawn)[0].split()
    points = np.asarray([[float(v) for v in pair.split(",")] for pair in pairs])
    assert points.shape == (2, 2)
    assert (points > 0).all()
    assert (points < [charts.WIDTH, charts.HEIGHT]).all()
    assert "a &amp; b" in drawn
    assert charts.lines({}, "none") == ""
    spread = charts.scatter({"one": (0.5, 20.0), "two": (5000.0, 3.0)}, "ms", "FD")
    (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', spread)
    assert float(x1) < float(x2)
    assert float(y1) < float(y2)


def test_what_a_family_lacks_is_said_once():
    """The reasons follow from which of its functions are None."""
    fields = families.settings("gan", 7, 8, labels=True, seed=3, data={"name": "digits"})
    gan = families.plan_run("gan", Path("none"), fields).experiment.family
    why = measure.absences(gan)
    assert why["likelihood"] == why["classifier"] == "it has no likelihood of the images"
    assert why["round_trip"] == "it has no encoder"
    assert "samples" not in why
    no_prior = measure.absences(gan._replace(sample=None, decode=None, sampling=None))
    assert no_prior["samples"] == "it has no prior to sample from"
    assert no_prior["round_trip"] == "it has no encoder and no decoder"
    conditioning = embeddings(4)
    assert "'embedding'" in measure.absences(gan._replace(conditioning=conditioning))["samples"]


def test_inversion():
    """The words follow from the largest error."""
    words = [table.inverts({"round_trip": r}) for r in (None, {"max": 1e-4}, {"max": 0.01})]
    assert words == ["no", "yes", "approximately"]
    assert table.inverts({"round_trip": {"max": 0.5}}) == "no (reconstructs)"


@pytest.mark.slow
def test_all_families(tmp_path):
    """The whole comparison on a small budget of seconds: the flow inverts, a score by its ODE."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.compare", f"--out={out}", "--budget-seconds=3"]
    one_device = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    subprocess.run(command, cwd=ROOT, env=one_device, check=True)
    with (out / "compare.csv").open(newline="") as file:
        rows = {row["family"]: row for row in csv.DictReader(file)}
    assert len(rows) == 3 + len(DEFAULTS["families"])
    inverts = {name: row["inverts"] for name, row in rows.items()}
    assert [name for name, word in inverts.items() if word == "yes"] == [
        "Flow",
        "diffusion (Score-based)",
    ]


def test_names_are_no_markdown():
    """A run may be called anything that a directory may."""
    name = "x | y <img src=a> [z](b) `c` *d*\ne"
    cells = [tables.Cell("1"), tables.Cell("-", f"no {name}")]
    text = tables.to_markdown("All", [tables.Table("T", ("a", "b"), ("a", "b"), {name: cells}, ())])
    shown = r"x \| y \<img src=a\> \[z\](b) \`c\` \*d\* e"
    assert f"| {shown} | 1 | - |" in text.splitlines()
    assert f"- {shown}: no b: no {shown}." in text.splitlines()
