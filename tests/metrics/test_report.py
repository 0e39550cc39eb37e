import json

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.sources import ArraySource, digits
from jaxgen.metrics.__main__ import main
from jaxgen.metrics.checks import FewSamplesWarning
from jaxgen.metrics.report import compare_images
from jaxgen.metrics.statistics import image_statistics

FEW = pytest.mark.filterwarnings("ignore::jaxgen.metrics.checks.FewSamplesWarning")


@pytest.fixture(scope="module")
def reference(extractor):
    return image_statistics(extractor, digits("train"), batch_size=500)


def corrupted(images, amount):
    noise = np.random.default_rng(0).normal(0, 255 * amount, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_real_against_real_is_near_and_corruption_moves_away(extractor, reference):
    """Distances rise, precision and coverage fall, with noise; so does a lack of classes."""
    test = digits("test")
    images, labels = test.arrays["image"], test.arrays["label"]
    sets = {amount: corrupted(images, amount) for amount in (0.0, 0.1, 0.2, 0.4, 0.8)}
    rows = [
        compare_images(x, reference, extractor, batch_size=297, num_subsets=10).metrics
        for x in sets.values()
    ]
    for name in ("FD-classifier", "KD-classifier mean"):
        assert np.all(np.diff([one[name] for one in rows]) > 0), name
    assert np.all(np.diff([one["coverage-classifier"] for one in rows]) < 0)
    precision = [one["precision-classifier"] for one in rows]
    assert precision[0] > 0.8 > 0.5 > precision[-1]
    half = compare_images(images[labels < 5], reference, extractor, num_subsets=10).metrics
    assert half["FD-classifier"] > 2 * rows[0]["FD-classifier"]
    assert half["recall-classifier"] < 0.8 * rows[0]["recall-classifier"]


def test_numbers_carry_their_protocol(extractor, reference, tmp_path):
    result = compare_images(
        digits("test"), reference, extractor, k=3, max_prdc=200, num_subsets=7, seed=5
    )
    assert set(result.metrics) == {
        "FD-classifier",
        "KD-classifier mean",
        "KD-classifier std",
        "IS-classifier mean",
        "IS-classifier std",
        "precision-classifier",
        "recall-classifier",
        "density-classifier",
        "coverage-classifier",
    }
    protocol = result.protocol
    assert protocol["samples"]["count"] == 297
    assert protocol["reference"]["count"] == 1500
    assert protocol["reference"]["weights"] == extractor.checksum
    assert protocol["reference"]["resizer"] == "none"
    assert "split train" in protocol["reference"]["data"]
    for name, split in (("samples", "test"), ("reference", "train")):  # whatever set was compared
        assert f"content {digits(split).digest}" in protocol[name]["data"]
    assert protocol["neighbours"] == {"k": 3, "samples": 200, "reference": 200}
    assert protocol["kernel distance"] == {"subsets": 7, "subset size": 297, "degree": 3}
    assert protocol["seed"] == 5
    assert protocol["warnings"] == []
    result.save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == result.metrics


@FEW
def test_few_samples_are_flagged_in_the_protocol_too(extractor, reference):
    some = digits("test").arrays["image"][:20]
    with pytest.warns(FewSamplesWarning, match="20 samples for 64 feature dimensions"):
        result = compare_images(some, reference, extractor, num_subsets=2)
    assert any("20 samples for 64" in text for text in result.protocol["warnings"])


def test_the_names_of_the_literature_are_for_the_network_of_fid(extractor):
    named = extractor._replace(suffix="")
    metrics = compare_images(digits("test"), digits("test"), named, num_subsets=2).metrics
    assert {"FID", "KID mean", "IS mean"} <= set(metrics)
    assert metrics["FID"] == pytest.approx(0, abs=1e-6)
    assert metrics["precision"] == metrics["recall"] == metrics["coverage"] == 1


@FEW
def test_bad_input(extractor, reference):
    image = digits("test").arrays["image"]
    with pytest.raises(ValueError, match="samples must be at least 2 images, got 1"):
        compare_images(image[:1], reference, extractor)
    others = {
        "weights": extractor._replace(checksum="other"),
        "resizer": extractor._replace(resizer="cubic"),
        "extractor steps": extractor._replace(protocol={**extractor.protocol, "steps": 7}),
        "extractor batch size": extractor._replace(protocol={}),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"reference are statistics .*:\n(.*\n)* *{name}: "):
            compare_images(image, reference, other)
    with pytest.raises(ValueError, match="k must be between"):
        compare_images(image[:4], reference, extractor, k=4, num_splits=1)
    with pytest.raises(ValueError, match="max_prdc must be at least 1, got 0"):
        compare_images(image, reference, extractor, max_prdc=0)
    with pytest.raises(ValueError, match="is empty"):
        compare_images(ArraySource({"image": image[:0]}), reference, extractor)


def test_command(tmp_path, capsys, monkeypatch, extractor):
    monkeypatch.setattr("jaxgen.metrics.classifier.train_classifier", lambda *_, **__: extractor)
    np.savez(tmp_path / "samples.npz", samples=digits("test").arrays["image"])
    np.save(tmp_path / "reference.npy", digits("train").arrays["image"])
    words = [str(tmp_path / "samples.npz"), str(tmp_path / "reference.npy")]
    words += ["--extractor", "classifier", "--subsets", "2", "--out", str(tmp_path / "r.json")]
    words += ["--statistics", str(tmp_path / "reference.npz")]
    assert main([*words, "--neighbours", str(tmp_path / "near.png")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert result["metrics"]["FD-classifier"] > 0
    pairs = np.asarray(Image.open(tmp_path / "near.png"))
    assert pairs.shape[0] == pairs.shape[1]  # 32 pairs in rows of four
    assert main(words) == 2  # nothing is overwritten
    assert "r.json exists" in capsys.readouterr().err
    words[words.index(str(tmp_path / "r.json"))] = str(tmp_path / "again.json")
    assert main(words) == 0  # with the statistics that the first one kept
    assert json.loads((tmp_path / "again.json").read_text()) == result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nowhere", "nowhere", "--extractor", "classifier"],
            "no file or folder of images nowhere",
        ),
        (["a.npy", "a.npy", "--out", "a.txt"], "must end in .json"),
        (["a.npy", "a.npy", "--neighbours", "a.jpg"], "must end in .png"),
        (
            ["a.npy", "a.npy", "--weights", "nowhere.pth"],
            "no file of Inception weights nowh",
        ),
        (["a.npy", "a.npy", "--extractor", "lite0", "--weights", "no.pth"], "Lite0 weights no.pth"),
    ],
)
def test_command_with_bad_input(words, message, tmp_path, capsys, monkeypatch, extractor):
    np.save(tmp_path / "a.npy", digits("test").arrays["image"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxgen.metrics.classifier.train_classifier", lambda *_, **__: extractor)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_command_with_a_result_that_is_not_finite(tmp_path, capsys, monkeypatch, extractor):
    """Exit code 1 and no result: neither NaN, which is no JSON, nor a file."""
    image = digits("test").arrays["image"][:80]
    np.save(tmp_path / "a.npy", image)
    features = extractor._replace(
        apply=lambda params, images: {
            "features": 1e25 * images.reshape(len(images), -1).astype(np.float32)
        },
        outputs=("features",),
    )
    monkeypatch.setattr("jaxgen.metrics.classifier.train_classifier", lambda *_, **__: features)
    out = tmp_path / "r.json"
    words = [str(tmp_path / "a.npy")] * 2 + ["--extractor", "classifier", "--out", str(out)]
    assert main([*words, "--subsets", "2"]) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: squared distances of samples and reference overflow")
    assert not out.exists()


@pytest.fixture
def photos(tmp_path, monkeypatch, extractor):
    """A folder of photos of several sizes, and a table of images in their final size."""
    monkeypatch.setattr("jaxgen.metrics.classifier.train_classifier", lambda *_, **__: extractor)
    images = digits("test").arrays["image"][:12]
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(images):
        size = (16, 16 + index % 3)
        Image.fromarray(image[..., 0]).resize(size).save(tmp_path / "photos" / f"{index}.png")
    np.savez(tmp_path / "samples.npz", samples=images)
    return str(tmp_path / "photos"), str(tmp_path / "samples.npz")


@FEW
def test_command_resizes_whichever_side_is_a_folder(photos, capsys):
    folder, table = photos
    words = ["--extractor", "classifier", "--resize", "8", "--subsets", "2"]
    for pair in ((folder, table), (table, folder)):
        assert main([*pair, *words]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["FD-classifier"] >= 0
    assert main([table, table, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --resize is for folders of images, but neither ")
    assert main([table, folder, *words[:2]]) == 2
    assert "give --resize to crop and resize all to one size" in capsys.readouterr().err
    assert main([table, table, *words[:2], "--subsets", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --subsets ")
    assert main([table, table, *words[:2], "--k", "20"]) == 2
    assert capsys.readouterr().err.startswith("error: --k must be between 1 and")
