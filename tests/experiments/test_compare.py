"""The comparison of the families, shrunk: end to end, resumed, refused; its page, CSV, Markdown."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import call

from experiments import compare, cvae_mnist
from experiments.compare import main
from experiments.comparison import charts, families, measure, table
from experiments.comparison.options import DEFAULTS

OPTIONS: dict[str, Any] = {
    "families": ["autoencoder", "vae"],
    "budget_steps": 3,
    "num_samples": 20,
    "num_evaluated": 20,
}
ROOT = Path(__file__).parents[2]
VOID = {"meta", "img", "br", "line", "path", "circle", "polyline"}


class Page(HTMLParser):
    """A page's tags, its tables' cells and whatever is not closed or is loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loaded, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.loaded += [found[k] for k in ("src", "href", "srcset", "data") if k in found]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def shrunk(out, given):
    """Compare by tiny networks."""
    dense = {"network": "dense", "features": [8], "latent_dim": 2}
    tiny = {"batch_size": 16, "model": dense}
    with pytest.MonkeyPatch.context() as patch:
        for name in OPTIONS["families"]:
            recipe = families.FAMILIES[name]
            patch.setitem(families.FAMILIES, name, recipe._replace(settings=lambda *_: tiny))
        compare.compare(out, given, classifier_steps=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison of two families."""
    out = tmp_path_factory.mktemp("compare") / "out"
    shrunk(out, dict(OPTIONS))
    return out


def test_end_to_end(made):
    """Each family is an ordinary run; the page is whole and loads nothing."""
    for name in OPTIONS["families"]:
        assert (made / "runs" / name / "config.json").exists()
        assert (made / "runs" / name / "metrics.csv").exists()
    text = (made / "compare.html").read_text()
    page = Page(text)
    assert not page.open
    assert page.loaded
    assert all(where.startswith("data:image/png;base64,") for where in page.loaded)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for needed in ("prefers-color-scheme: dark", 'name="viewport"', "no prior", "ELBO"):
        assert needed in text
    assert "--model.latent-dim=2" in text  # the command that makes the run again


def test_same_numbers_everywhere(made):
    """CSV, Markdown and page say the same, and what was measured."""
    with (made / "compare.csv").open(newline="") as file:
        rows = {row["family"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "Real: held-out images",
        "Real: part of the training images",
        "Autoencoder",
        "VAE",
        "Plain classifier",
    ]
    markdown = (made / "compare.md").read_text()
    said = {
        cell.strip()
        for line in markdown.splitlines()
        if line[:1] == "|"
        for cell in line.split("|")
    }
    shown = set(Page((made / "compare.html").read_text()).cells)
    for row in rows.values():
        for cell in row.values():
            assert not cell or (cell in said and cell in shown)
    found = json.loads((made / "measured" / "vae.json").read_text())["found"]
    vae = rows["VAE"]
    nats = found["likelihood"]["nats"]
    assert float(vae["Likelihood of held-out images: nats an image"]) == pytest.approx(nats, 1e-3)
    bits = float(vae["Likelihood of held-out images: bits/dim (lower is better)"])
    assert bits == pytest.approx(nats / 64 / math.log(2), rel=1e-3)
    assert float(vae["Training cost: parameters"]) == sum(found["parameters"].values())
    assert vae["Sampling and inversion: inverts"] == "no (reconstructs)"
    assert rows["Autoencoder"]["Quality of the samples: precision"] == "-"
    assert rows["Autoencoder"]["Likelihood of held-out images: nats an image"] == "-"
    plain = json.loads((made / "measured" / "real.json").read_text())["found"]["classifier"]
    told = float(rows["Plain classifier"]["As a classifier of held-out images: accuracy"])
    assert told == pytest.approx(plain["accuracy"], rel=1e-3)
    assert plain["num"] == 20
    assert float(rows["Real: held-out images"]["Quality of the samples: images"]) == 20


def test_resume(made, capsys):
    """Nothing is trained or measured again; another setting is refused."""
    kept = [path for path in made.rglob("*") if path.is_file() and path.parent != made]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in kept}
    page = (made / "compare.html").read_bytes()
    shrunk(made, {})
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in kept} == before
    assert {path for path in made.rglob("*") if path.is_file() and path.parent != made} == set(kept)
    assert (made / "compare.html").read_bytes() == page
    assert main(["--out", str(made), "--seed=1"]) == 2
    assert "made with another --seed: 0, not 1" in capsys.readouterr().err


@pytest.mark.slow
def test_run_dirs(tmp_path, capsys, monkeypatch):
    """A finished run that is told the label: p(x) and the classifier by Bayes' rule."""
    tiny = ["--steps=3", "--batch-size=16", "--sample-every=0", "--log-every=1"]
    dense = ["--data.name=digits", "--model.features", "8", "--model.latent-dim=2"]
    run = tmp_path / "b"
    monkeypatch.setattr(measure, "STRIPS", {})  # seconds of compilation, and tested above
    call(capsys, cvae_mnist, "--run-dir", str(run), "--evaluate-every=0", *tiny, *dense)
    out = tmp_path / "out"
    given = {"run_dirs": [str(run)], "num_samples": 20, "num_evaluated": 20}
    compare.compare(out, given, classifier_steps=5)
    found = json.loads((out / "measured" / "b.json").read_text())["found"]
    p, told = found["likelihood"], found["classifier"]
    # -log p(x) = -log p(x | y) - log p(y) + log p(y | x), at the right label y of 10
    expected = p["given_label"] + math.log(10) - told["nll"]
    assert p["nats"] == pytest.approx(expected, abs=1e-3)
    assert 0 <= told["accuracy"] <= 1
    assert found["told"] == "label"
    assert p["bits_per_dim"] is None
    text = (out / "compare.html").read_text()
    assert "b (VAE)" in text
    assert "not of the 8-bit pixels" in text

    cases = [
        ([str(tmp_path / "none")], "no run directory"),
        ([str(run), str(run)], "different last names"),
    ]
    for run_dirs, message in cases:
        assert main(["--out", str(tmp_path / "new"), "--run-dirs", *run_dirs]) == 2
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
        (["--data=digit"], "did you mean 'digits'"),
        (["--run-dirs", "x", "--budget-steps=3"], "it goes without --budget-steps"),
        (["--families", "vae", "--data.resize=9"], "resize the images"),
        (["--families", "flow", "--data.resize=48"], "4 to 32 pixels a side"),
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


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_recipes(name, tmp_path):
    """Every family's settings fit its experiment, and fall in with the number of steps."""
    fields = families.settings(name, 50, 8, told=True, seed=0, data={"name": "digits"})
    run = families.make_run(name, tmp_path / "run", fields)
    assert run.config.steps == 50
    assert run.kind == next(kind for base, kind in families.KINDS if isinstance(run.config, base))
    assert (run.experiment.sample_condition is not None) == (name == "autoregressive")


def test_flags_make_the_run_again():
    """A run's command line names all that differs from its experiment's defaults."""
    fields = families.settings("gan", 7, 8, told=True, seed=3, data={"name": "digits"})
    run = families.make_run("gan", Path("none"), fields)
    said = families.flags(run.module, run.config)
    assert {"--steps=7", "--seed=3", "--model.condition=none"} <= set(said)
    assert not any("batch-size" in flag for flag in said)


def test_numbers():
    """Four digits, no exponent where it is short, a dash with its reason."""
    texts = [table.number(v).text for v in (1.23456, 12345.6, 1.5e-7, 0.0)]
    assert texts == ["1.235", "12346", "1.5e-07", "0"]
    assert table.number(None, "why") == table.Cell("-", "why")


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


@pytest.mark.slow
def test_all_families(tmp_path):
    """The whole comparison on a small budget of seconds: only the flow inverts."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.compare", f"--out={out}", "--budget-seconds=3"]
    one_device = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    subprocess.run(command, cwd=ROOT, env=one_device, check=True)
    with (out / "compare.csv").open(newline="") as file:
        rows = {row["family"]: row for row in csv.DictReader(file)}
    assert len(rows) == 3 + len(DEFAULTS["families"])
    inverts = {name: row["Sampling and inversion: inverts"] for name, row in rows.items()}
    assert [name for name, word in inverts.items() if word == "yes"] == ["Flow"]
