"""A model through every solver: which fit, what they cost, what is kept, what is not finite."""

import csv
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from PIL import Image

from experiments import samplers
from experiments.comparison import solvers
from experiments.comparison.solvers import ENTRANTS, Entrant
from experiments.recipes.score import SamplerConfig, make_sampler
from jaxgen.core import Variables
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource
from jaxgen.data.transforms import prepare_images
from jaxgen.families.denoising import NAME
from jaxgen.families.diffusion import Sampler, diffusion
from jaxgen.families.score import score_based
from jaxgen.metrics.features import Extractor
from jaxgen.noise.chain import chain, cosine_betas
from jaxgen.noise.parametrization import X0
from jaxgen.noise.process import edm
from jaxgen.noise.times import log_normal
from jaxgen.sampling.solvers import ddim
from jaxgen.training.experiment import Experiment
from jaxgen.training.runs import Run

SHAPE = (4, 4, 1)


class Mean(nn.Module):
    """The mean of N(0, 0.5^2) data given x at the deviation that it is told, for X0."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * 0.25 / (0.25 + jnp.square(time * 1.0).reshape(-1, 1, 1, 1)) * x


def continuous():
    sampler = make_sampler(SamplerConfig(num_steps=4), edm())
    options = {"image_shape": SHAPE, "times": log_normal(), "sampler": sampler}
    return score_based(Mean(), edm(), X0, optax.sgd(1e-3), **options)


def discrete():
    options = {"image_shape": SHAPE, "parametrization": X0, "sampler": Sampler(ddim(), 4)}
    return diffusion(Mean(), chain(cosine_betas(20)), optax.sgd(1e-3), **options)


def outlook():
    """An extractor of a few pixels."""
    return Extractor(
        "pixels",
        "pixels",
        lambda params, images: {"features": images.reshape(len(images), -1)[:, :3] / 255.0},
        {},
        ("features",),
        "none",
        "0123456789abcdef",
        lambda shape: None,
    )


def opened(family):
    images = np.random.default_rng(0).integers(0, 256, (40, *SHAPE)).astype(np.uint8)
    source = ArraySource({"image": images, "label": np.arange(40, dtype=np.int32) % 2})
    experiment = Experiment(family, Pipeline(source, 8, seed=0), source, prepare_images(flip=False))
    config = SimpleNamespace(run_dir="run", sampler=SamplerConfig())
    variables = Variables({NAME: {"scale": jnp.ones(())}})
    return Run(family, variables, config, experiment, 7, "experiments.edm_digits")


@pytest.fixture
def run(monkeypatch):
    """The command on a tiny family of continuous time."""
    monkeypatch.setattr(samplers, "open_run", lambda run_dir, **_: opened(continuous()))
    monkeypatch.setattr(samplers, "train_classifier", lambda *_, **__: outlook())
    monkeypatch.setattr(solvers, "BATCH", 8)
    monkeypatch.setattr(samplers, "BATCH", 8)


def call(capsys, *flags):
    assert samplers.main([str(flag) for flag in flags]) == 0
    return capsys.readouterr().out


def table(path):
    with (path / "samplers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_made_once_a_checkpoint(run, tmp_path, capsys):
    """Two solvers at two costs, the floor, a plot; then only what is missing."""
    flags = [str(tmp_path), "--evaluations", "3", "6", "--num-samples=20"]
    out = call(capsys, *flags, "--solvers", "ddim", "heun")
    rows = table(tmp_path)
    costs = [(row["solver"], row["evaluations"], row["steps"]) for row in rows]
    # Heun's last step, to clean data, takes one evaluation: three steps take five
    many = [("ddim", "3", "3"), ("ddim", "6", "6"), ("heun", "3", "2"), ("heun", "5", "3")]
    assert costs == [(samplers.REAL, "0", "0"), *many]
    assert all(float(row["FD"]) >= 0 and row["step"] == "7" for row in rows)
    assert all(float(row["seconds"]) > 0 for row in rows[1:])
    assert 0 <= float(rows[1]["precision"]) <= 1
    assert "FD-pixels" not in rows[0]
    assert "heun, 5 evaluations: FD" in out
    assert (tmp_path / "samplers.png").read_bytes()[:4] == b"\x89PNG"
    with Image.open(tmp_path / "samplers_grid.png") as grid:
        assert grid.size[1] == 20 + 5 * 66 + 2  # a title, and a row a row

    out = call(capsys, *flags, "--solvers", "dpm", "heun")
    assert "ddim" not in out
    assert "heun" not in out
    assert table(tmp_path)[: len(rows)] == rows
    assert len(table(tmp_path)) == len(rows) + 2
    with Image.open(tmp_path / "samplers_grid.png") as grid:
        assert grid.size[1] == 20 + 7 * 66 + 2  # what is not drawn again is kept
    # Of another number of samples nothing is known yet.
    out = call(capsys, *flags[:-1], "--num-samples=21", "--solvers", "heun")
    assert "heun, 3 evaluations" in out


def test_samples_that_are_not_finite_are_a_row(run, tmp_path, capsys, monkeypatch):
    lost = Entrant(lambda process: solver(float("nan")))

    def solver(value):
        def step(denoise, step, x, state, key):
            return x.at[:3].set(value), state

        return ddim()._replace(step=step)

    monkeypatch.setitem(ENTRANTS, "ddim", lost)
    flags = ["--evaluations", "2", "--num-samples=20", "--solvers", "ddim"]
    out = call(capsys, tmp_path, *flags)
    (row,) = [row for row in table(tmp_path) if row["solver"] == "ddim"]
    assert row["note"] == "9 of 20 samples are not finite"
    assert row["FD"] == row["precision"] == ""
    assert row["note"] in out


@pytest.mark.parametrize("make", [continuous, discrete])
def test_which_solvers_fit_and_what_they_cost(make):
    parts = make().denoising
    names = solvers.chosen(parts, None)
    if make is discrete:
        assert set(ENTRANTS) - set(names) == {"heun_churn", "euler_maruyama"}
        with pytest.raises(ValueError, match="--solvers heun_churn needs a continuous process"):
            solvers.chosen(parts, ["heun_churn"])
    else:
        assert names == list(ENTRANTS)
    assert solvers.plan(parts, "predictor_corrector", [1, 2, 5]) == {2: 1, 4: 2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluations", "0"], "--evaluations must be at least 1, got 0"),
        (["--num-samples=5"], "--num-samples must be at least 20, got 5"),
        (["--weights=x.pth"], "classifier trains its own"),
    ],
)
def test_bad_input(run, tmp_path, flags, message, capsys):
    assert samplers.main([str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_of_something_else_and_other_runs(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "samplers.csv").write_text("a,b\n1,2\n")
    assert samplers.main([str(tmp_path)]) == 2
    assert "is not a table of samplers: move it away" in capsys.readouterr().err
    other = continuous()._replace(denoising=None)
    monkeypatch.setattr(samplers, "open_run", lambda run_dir, **_: opened(other))
    assert samplers.main([str(tmp_path)]) == 2
    assert "must be a run of denoised images" in capsys.readouterr().err
