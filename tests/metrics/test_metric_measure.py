"""The distances of samples while training: those of `compare_images`, from what a run keeps."""

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from jaxgen.data.sources import ArraySource, digits
from jaxgen.metrics import classifier
from jaxgen.metrics.extractors import EXTRACTORS
from jaxgen.metrics.features import extract
from jaxgen.metrics.measure import distances_from_training
from jaxgen.metrics.report import compare_images
from jaxgen.training.config import RunConfig


def config(run_dir, **changes):
    flags = {"measure_num": 100, "measure_extractor": "classifier", **changes}
    return RunConfig(run_dir=str(run_dir), **flags)


@pytest.fixture
def trained_once(monkeypatch, extractor):
    """The tests' classifier in the place of a new one; counts how often one is trained."""
    calls = []
    monkeypatch.setattr(
        classifier, "train_classifier", lambda *sources: calls.append(sources) or extractor
    )
    return calls


def test_numbers_and_names_are_those_of_compare_images(tmp_path, trained_once, extractor):
    images = digits("test").arrays["image"][:100]
    distances = distances_from_training(digits("train"), digits("test"), config(tmp_path))
    found = distances.of(np.asarray(images))
    expected = compare_images(np.asarray(images), digits("train"), extractor).metrics
    assert tuple(found) == distances.names
    assert distances.names[0] == "FD-classifier"
    for name in distances.names:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    assert distances.warning is None
    reference = distances.protocol["reference"]
    assert reference["data"] == digits("train").protocol
    assert (reference["weights"], reference["count"]) == (extractor.checksum, 1500)


def test_the_run_keeps_extractor_and_statistics(tmp_path, trained_once, extractor):
    """So that the next call measures by the same network, wherever it runs."""
    train, test = digits("train"), digits("test")
    first = distances_from_training(train, test, config(tmp_path))
    again = distances_from_training(train, test, config(tmp_path, measure_num=50))
    assert len(trained_once) == 1
    assert again.protocol == first.protocol
    assert again.warning.startswith("50 samples for 64 features")
    assert sorted(p.name for p in (tmp_path / "measure").iterdir()) == [
        "classifier-weights.npz",
        "classifier.npz",
    ]
    kept = classifier.kept_classifier(tmp_path / "measure" / "classifier-weights.npz", train, test)
    assert (kept.name, kept.checksum) == (extractor.name, extractor.checksum)
    images = np.asarray(test.arrays["image"][:10])
    for output in ("features", "logits"):
        np.testing.assert_array_equal(
            extract(kept, images, outputs=[output])[output],
            extract(extractor, images, outputs=[output])[output],
        )


def test_a_directory_that_cannot_be_written(tmp_path, trained_once):
    (tmp_path / "measure").write_text("x")
    with pytest.warns(UserWarning, match="is not kept") as warnings:
        distances_from_training(digits("train"), digits("test"), config(tmp_path))
    kept = sorted(str(each.message).partition(" is not kept: ")[0] for each in warnings)
    assert [Path(path).name for path in kept] == ["classifier-weights.npz", "classifier.npz"]


def test_a_file_of_something_else(tmp_path, trained_once):
    path, train, test = (
        tmp_path / "measure" / "classifier-weights.npz",
        digits("train"),
        digits("test"),
    )
    distances_from_training(train, test, config(tmp_path))
    with pytest.raises(ValueError, match=r"is a classifier of .*train.*, not of .*test"):
        classifier.kept_classifier(path, test, train)
    with pytest.raises(ValueError, match="cannot be read as a classifier: .*other shapes"):
        classifier.kept_classifier(path, digits("train", resize=16), test)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="--measure-extractor classifier: .*cannot be read as"):
        distances_from_training(train, test, config(tmp_path))


def test_what_cannot_be_measured(tmp_path):
    with pytest.raises(ValueError, match="--measure-num must be at least 6, got 5"):
        distances_from_training(digits("train"), digits("test"), config(tmp_path, measure_num=5))
    plain = ArraySource({"image": np.zeros((4, 8, 8, 1), np.uint8)})
    with pytest.raises(ValueError, match="--measure-extractor classifier: train must have images"):
        distances_from_training(plain, plain, config(tmp_path))


def test_the_flag_knows_every_extractor():
    assert set(get_args(get_type_hints(RunConfig)["measure_extractor"])) == set(EXTRACTORS)
