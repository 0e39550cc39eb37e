"""Our own file of weights: what is written is read, and what was changed is noticed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxgen
from experiments import __main__ as command
from jaxgen.convert import weights
from jaxgen.convert.weights import load, of_run, read_safetensors, save
from jaxgen.training.runs import open_run


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save(path, of_run(trained))
    return path


def test_what_is_written_is_read(trained, exported):
    run, read = open_run(trained), load(exported)
    jax.tree.map(np.testing.assert_array_equal, run.variables.params, read.params)
    jax.tree.map(np.testing.assert_array_equal, run.variables.state, read.state)
    origin = read.origin
    assert (origin.recipe, origin.step, origin.average) == ("toy_run", 3, "slow")
    assert origin.config["noise"] == 0.1
    assert origin.files == {"meaning.txt": b"of the pixels"}
    assert origin.version == jaxgen.__version__
    assert origin.data["train"]["digest"] == run.experiment.pipeline.source.digest


def test_any_library_reads_the_arrays(exported):
    assert set(load_file(exported)) == {"params/net/mean", "state/seen"}


def test_averages_and_steps(trained):
    slow, raw = (of_run(trained, average=name) for name in ("slow", "raw"))
    assert raw.origin.average == "raw"
    assert np.any(slow.params["net"]["mean"] != raw.params["net"]["mean"])
    with pytest.raises(ValueError, match=r"average must be one of \['slow', 'raw'\], got 'fast'"):
        of_run(trained, average="fast")
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        of_run(trained, step=7)


def test_no_file_is_replaced(trained, exported):
    before = exported.read_bytes()
    with pytest.raises(FileExistsError, match=r"toy\.safetensors exists and is not overwritten"):
        save(exported, of_run(trained))
    assert exported.read_bytes() == before
    with pytest.raises(ValueError, match=r"must end in \.safetensors \(weights\); got .*toy\.npz"):
        save(exported.with_suffix(".npz"), of_run(trained))


def test_what_is_not_finite_is_not_exported(trained, monkeypatch):
    run = open_run(trained)
    mean = run.variables.params["net"]["mean"].at[0].set(np.nan)
    broken = dataclasses.replace(
        run, variables=run.variables._replace(params={"net": {"mean": mean}})
    )
    monkeypatch.setattr(weights, "open_run", lambda *args, **kwargs: broken)
    with pytest.raises(FloatingPointError, match="params/net/mean of step 3 is not finite"):
        of_run(trained)


def rewritten(exported, path, change):
    """The file with its arrays and metadata changed."""
    arrays, metadata = read_safetensors(exported)
    stored = json.loads(metadata["jaxgen"])
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, stored)
    save_file(arrays, path, {"jaxgen": json.dumps(stored)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a["params/net/mean"].view("u4").__setitem__((3, 3), 1), "net/mean is not th"),
        (lambda a, m: a.pop("state/seen"), "state/seen is missing, or too many"),
        (lambda a, m: a.update(more=np.zeros(2)), "the array more is missing, or too many"),
        (lambda a, m: m.pop("recipe"), "metadata of .* are damaged"),
        (lambda a, m: m.pop("fingerprints"), "metadata of .* are damaged"),
        (lambda a, m: m["files"].update(b="?"), "metadata of .* are damaged"),
        (lambda a, m: m.update(format="9"), "is of format '9', written by jaxgen"),
    ],
)
def test_a_changed_file_is_noticed(exported, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(rewritten(exported, tmp_path / "changed.safetensors", change))


def test_other_files(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of weights .*nowhere"):
        load(tmp_path / "nowhere.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(exported.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as safetensors"):
        load(cut)
    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not the recipe that they are of"):
        load(tmp_path / "other.safetensors")


def test_the_command(trained, tmp_path, capsys):
    out = tmp_path / "by-command.safetensors"
    arguments = ["export", str(trained), "--out", str(out), "--average", "raw"]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown == f"{out}: toy_run, step 3, parameters raw, 64 parameters\n"
    assert load(out).origin.average == "raw"
    assert command.main(arguments) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert command.main(["export", str(trained), "--out", str(out / "x.safetensors")]) == 2
    assert "is no writable directory" in capsys.readouterr().err  # before the run is opened
    assert command.main(["export", str(tmp_path), "--out", str(tmp_path / "b.safetensors")]) == 2
    assert "is no run directory" in capsys.readouterr().err
