"""Opening a trained run; what a run directory remembers; pretrained arrays that have changed."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxgen.core import Aux
from jaxgen.data.sources import ArraySource, digits
from jaxgen.training import loop
from jaxgen.training.averages import constant, warmed_up
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.recipe import Recipe
from jaxgen.training.runs import begin, check_files, fixed_fingerprint, open_run

SCALE = {"value": np.float32(1.0)}  # a first stage that tests train on


@dataclass(frozen=True)
class Config(RunConfig):
    """A toy's flags."""

    steps: int = operational(4)
    batch_size: int = 16
    log_every: int = operational(2)
    sample_every: int = operational(0)
    noise: float = operational(0.1)
    """Noise of the samples."""
    width: int = 3
    """Some width."""


def build(config):
    experiment = toys.experiment(config)
    family = experiment.family

    def loss(variables, batch, key, step):
        value, metrics = family.evaluate(variables, batch, key)
        return variables.fixed["scale"] * value, Aux(metrics)

    def sample(variables, key, num, *, condition=None):
        mean = variables.params["net"]["mean"]
        return mean[None] + config.noise * jax.random.normal(key, (num, *mean.shape))

    family = family._replace(
        phases=(family.phases[0]._replace(loss=loss),),
        sample=sample,
        fixed={"scale": jnp.asarray(SCALE["value"])},
    )
    averages = {"slow": warmed_up(0.9), "last": constant(0.0)}
    return experiment._replace(family=family, averages=averages)


recipe = Recipe(build, Config())


def run(*args):
    with pytest.raises(SystemExit) as stop:
        recipe.main(args)
    return stop.value.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert run("--run-dir", str(directory), "--width", "5") == 0
    return directory


def test_a_run_opens_as_it_was(trained):
    run = open_run(trained)
    assert (run.step, run.name) == (4, __name__)
    assert run.config == Config(run_dir=str(trained), width=5)
    assert run.experiment.family is run.family
    assert float(run.variables.fixed["scale"]) == 1.0
    x = run.family.sample(run.variables, jax.random.key(0), 2)
    assert x.shape == (2, 8, 8, 1)
    loss, _ = run.family.evaluate(
        run.variables, {"image": jnp.zeros((3, 8, 8, 1))}, jax.random.key(0)
    )
    assert np.isfinite(loss).all()


def test_averages_by_name(trained):
    slow, last = (open_run(trained, average=name).variables.params for name in ("slow", "last"))
    jax.tree.map(np.testing.assert_array_equal, open_run(trained).variables.params, slow)
    difference = jnp.abs(slow["net"]["mean"] - last["net"]["mean"])
    assert float(difference.max()) > 1e-4
    with pytest.raises(
        ValueError, match=r"average must be one of \['last', 'slow', 'raw'\], got 'ema'"
    ):
        open_run(trained, average="ema")


def test_what_may_change_and_what_may_not(trained):
    run = open_run(trained, noise=0.0, data=DataConfig(dir="elsewhere"))
    a = run.family.sample(run.variables, jax.random.key(0), 1)
    b = run.family.sample(run.variables, jax.random.key(1), 1)
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="was trained with another config: --width: 5 -> 6"):
        open_run(trained, width=6)
    with pytest.raises(ValueError, match=r"unknown fields \['widht'\]"):
        open_run(trained, widht=6)


def test_what_is_no_run(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no run directory"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 99"):
        open_run(trained, step=99)
    (tmp_path / "config.json").write_text('{"experiment": "no.such.module", "config": {}}')
    with pytest.raises(ValueError, match=r"is a run of 'no.such.module', which has no recipe"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"experiment": "json", "config": {}}')
    with pytest.raises(ValueError, match="is a run of 'json', which has no recipe here"):
        open_run(tmp_path)


def test_no_code_in_a_run_directory_is_run(tmp_path, monkeypatch):
    """A config names the module of the recipe, which must not be one that came along."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "evil.py").write_text("raise SystemExit('it ran')")
    for name, place in (("stranger.evil", ""), ("evil", str(tmp_path / "stranger"))):
        monkeypatch.syspath_prepend(place)
        config = {"experiment": name, "config": {}}
        (tmp_path / "stranger" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="which lies in it: nothing there is run"):
            open_run("stranger")


def test_pretrained_arrays_are_remembered_and_not_saved(trained, tmp_path, capsys, monkeypatch):
    """A first stage that has changed is refused by train, sample and open_run."""
    saved = json.loads((trained / "config.json").read_text())
    assert saved["fixed"] == fixed_fingerprint({"scale": np.float32(1.0)})
    manifests = list((trained / "checkpoints").rglob("*"))
    assert not [p for p in manifests if "scale" in p.name]
    monkeypatch.setitem(SCALE, "value", np.float32(2.0))
    for verb in ([], ["sample", f"--out={tmp_path / 'x.png'}"], ["evaluate"]):
        assert run(*verb, "--run-dir", str(trained)) == 2
        assert "was trained on other pretrained arrays" in capsys.readouterr().err
    with pytest.raises(ValueError, match="was the first stage trained further since"):
        open_run(trained)


def test_data_are_remembered(trained, tmp_path, capsys, monkeypatch):
    """Other examples or class names are refused by train, sample, evaluate and open_run."""
    saved = json.loads((trained / "config.json").read_text())["data"]
    assert saved["train"]["digest"] == digits("train").digest
    assert saved["held_out"]["protocol"] == digits("test").protocol
    before = digits("train").arrays
    fewer = ArraySource({k: v[1:] for k, v in before.items()}, name="others")
    named = ArraySource(before, class_names=tuple("abcdefghijk"), name="others")
    for other in (fewer, named):
        monkeypatch.setattr(toys, "digits", lambda split, other=other: other)
        for verb in (["--steps=6"], ["sample", f"--out={tmp_path / 'x.png'}"], ["evaluate"]):
            assert run(*verb, "--run-dir", str(trained)) == 2
            error = capsys.readouterr().err
            assert f"was made on other data (train): {digits('train').protocol}" in error
            assert f"now they are {other.protocol}" in error
    assert "classes a, b, c, d, e, f, g, h, i, j, ..." in error
    with pytest.raises(ValueError, match="was made on other data"):
        open_run(trained)
    # The held-out examples are another split where the flag says so.
    monkeypatch.setattr(toys, "digits", lambda split: digits("train"))
    with pytest.raises(ValueError, match=r"was made on other data \(held_out\)"):
        open_run(trained)
    open_run(trained, data=DataConfig(held_out="train"))


def test_sets_are_compared_before_anything_is_made(trained, tmp_path, capsys, monkeypatch):
    both = {"train": digits("train"), "test": digits("test", resize=4)}
    monkeypatch.setattr(toys, "digits", both.get)
    assert run("--run-dir", str(tmp_path / "new")) == 2
    assert "differ in 'image': uint8[8, 8, 1] and uint8[4, 4, 1]" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    config = Config(run_dir=str(tmp_path / "new"))
    with pytest.raises(ValueError, match="differ in 'image'"):
        loop.train(build(config), config)
    assert not (tmp_path / "new").exists()
    assert run("evaluate", "--run-dir", str(trained)) == 2
    assert "differ in 'image'" in capsys.readouterr().err


def test_fingerprints_of_pretrained_arrays():
    assert fixed_fingerprint({}) is None
    a = fixed_fingerprint({"a": np.zeros(3, np.float32)})
    assert a == fixed_fingerprint({"a": jnp.zeros(3)})
    others = [
        {"b": np.zeros(3, np.float32)},
        {"a": np.zeros((3, 1), np.float32)},
        {"a": np.zeros(3, np.int32)},
        {"a": np.array([0, 0, 1e-30], np.float32)},
    ]
    assert len({a, *map(fixed_fingerprint, others)}) == 5


def test_files_that_data_need(tmp_path):
    """A palette, say: kept beside the config, and another one is refused."""
    config = Config(run_dir=str(tmp_path))
    experiment = build(config)._replace(files={"palette.npy": b"colours"})
    begin(tmp_path, recipe.name(), config, experiment)
    assert (tmp_path / "palette.npy").read_bytes() == b"colours"
    check_files(tmp_path, experiment)
    for files in ({"palette.npy": b"others"}, {}):
        with pytest.raises(ValueError, match=r"made with another palette.npy .*: restore "):
            check_files(tmp_path, experiment._replace(files=files))
