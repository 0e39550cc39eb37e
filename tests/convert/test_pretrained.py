"""A model from its file alone."""

import shutil
import sys
import types

import jax
import numpy as np
import pytest

from jaxgen.convert.pretrained import from_pretrained
from jaxgen.convert.weights import of_run, save
from jaxgen.training.runs import open_run


@pytest.fixture(scope="module")
def weights(trained):
    return of_run(trained)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    place = tmp_path_factory.mktemp("pretrained")
    save(place / "toy.safetensors", weights)
    return place


def test_it_samples_what_the_run_samples(trained, folder, tmp_path):
    """From a file or its folder, without the run directory."""
    run, key = open_run(trained), jax.random.key(0)
    expected = run.family.sample(run.variables, key, 4)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for place in (moved, str(moved / "toy.safetensors")):
        opened = from_pretrained(place)
        np.testing.assert_array_equal(opened.family.sample(opened.variables, key, 4), expected)
        assert (opened.name, opened.step) == (run.name, run.step)
        assert opened.config == run.config


def test_operational_fields_may_change(folder):
    run = from_pretrained(folder, noise=0.0)
    x = run.family.sample(run.variables, jax.random.key(0), 2)
    np.testing.assert_array_equal(x[0], x[1])
    with pytest.raises(ValueError, match="trained with another config: --side: 8 -> 4"):
        from_pretrained(folder, side=4)


def test_another_model_is_refused(weights, tmp_path):
    def opened(name, params=None, **origin):
        changed = weights._replace(origin=weights.origin._replace(**origin))
        changed = changed if params is None else changed._replace(params=params)
        save(tmp_path / f"{name}.safetensors", changed)
        return from_pretrained(tmp_path / f"{name}.safetensors")

    mean = weights.params["net"]["mean"]
    other = {**weights.origin.config, "side": 4}
    shapes = r"params/net/mean is float32\[8,8,1\], and float32\[4,4,1\] in the model that toy_run"
    with pytest.raises(ValueError, match=shapes):
        opened("a", config=other)
    with pytest.raises(ValueError, match="lacks params/net/mean of .*; near is params/net/maen"):
        opened("b", {"net": {"maen": mean}})
    with pytest.raises(ValueError, match=r"has params/more \(1 such\), which the model"):
        opened("c", {**weights.params, "more": mean})
    with pytest.raises(ValueError, match="params/net/mean is not finite"):
        opened("d", {"net": {"mean": mean * np.nan}})
    with pytest.raises(ValueError, match=r"elsewhere\.nothing has no recipe"):
        opened("e", recipe="elsewhere.nothing")
    with pytest.raises(ValueError, match=r"knows the classes \['a'\], and the data here have \[\]"):
        opened("f", data={"train": {"class_names": ["a"]}})
    with pytest.raises(ValueError, match=r"other pretrained arrays \(fingerprint 12, now None\)"):
        opened("g", fixed="12")


def test_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold one file \.safetensors, it has none"):
        from_pretrained(tmp_path)
    for name in ("a", "b"):
        shutil.copy(folder / "toy.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match=r"it has a\.safetensors, b\.safetensors"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder of weights nothing"):
        from_pretrained("nothing")


def test_repositories(folder, monkeypatch):
    """Its library does the downloading; without it, and offline, the error says what to do."""
    asked = []

    def download(name, **options):
        asked.append((name, options["revision"]))
        if name == "someone/offline":
            raise ConnectionError("no route to host")
        return str(folder)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download)
    )
    assert from_pretrained("someone/toy", revision="v1").step == 3
    assert asked == [("someone/toy", "v1")]
    message = r"someone/offline cannot be downloaded .*ConnectionError: no route to host.*offline"
    with pytest.raises(OSError, match=message):
        from_pretrained("someone/offline")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"no file or folder someone/toy here.*jaxgen\[hub\]"):
        from_pretrained("someone/toy")
