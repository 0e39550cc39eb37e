"""TFDS sets in array_record form: written small, read back by the package's own path."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxgen.data.captions import decode_text
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.prepare import PREPARATIONS
from jaxgen.data.sources import Source, load, load_pair, resident
from jaxgen.data.tfds import WITHOUT_TENSORFLOW, known_names, prepared_directory, tfds_source


def _png(array):
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG")
    file.seek(0)
    return file


def _images(num, shape=(6, 5, 3)):
    return np.random.default_rng(0).integers(0, 256, (num, *shape), dtype=np.uint8)


def _build(data_dir, features, splits, name="tiny", version="1.0.0", config=None):
    """Prepares a set as a GeneratorBasedBuilder that gives PNG files does."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Tiny.name = name
    builder = Tiny(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder


def _labelled(data_dir, num=20, shape=(6, 5, 3), **kwargs):
    images = _images(num, shape)
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=4),
        "number": tfds.features.Scalar(np.int64),
    }
    examples = [{"image": _png(x), "label": i % 4, "number": i} for i, x in enumerate(images)]
    builder = _build(data_dir, features, {"train": examples, "test": examples[:7]}, **kwargs)
    order = [example["number"] for example in builder.as_data_source("train")]
    return images[order], np.asarray(order) % 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    return data_dir, *_labelled(data_dir)


def test_reads_images_and_labels_back(tiny):
    data_dir, images, labels = tiny
    source = load("tiny", "train", data_dir)
    assert isinstance(source, Source)
    assert len(source) == 20
    assert source.num_classes == 4
    assert source.spec == {"image": ((6, 5, 3), np.uint8), "label": ((), np.int32)}
    line = f"TFDS tiny/1.0.0, split train (20 images), as they are, content {source.digest}"
    assert source.protocol == line
    assert source.class_names == ("0", "1", "2", "3")
    batch = source[np.asarray([3, 0, 19, 3])]
    np.testing.assert_array_equal(batch["image"], images[[3, 0, 19, 3]])
    np.testing.assert_array_equal(batch["label"], labels[[3, 0, 19, 3]])
    held = resident(source).arrays
    np.testing.assert_array_equal(held["image"], images)
    np.testing.assert_array_equal(held["label"], labels)


def test_a_set_is_known_by_its_content(tiny, tmp_path):
    """Wherever it lies, and decoded or not; a part of it, and other examples, are other sets."""
    digest = load("tiny", "train", tiny[0]).digest
    shutil.copytree(tiny[0], tmp_path / "moved")
    moved = load("tiny", "train", tmp_path / "moved")
    assert moved.digest == resident(moved).digest == digest
    assert resident(moved).protocol == moved.protocol
    _labelled(tmp_path / "other", num=21)
    others = [load("tiny", "train", tmp_path / "other"), load("tiny", "train[1:]", tiny[0])]
    assert len({digest, *(other.digest for other in others)}) == 3


def test_slices_of_splits(tiny):
    data_dir, images, _ = tiny
    source = load("tiny", "train[5:9]", data_dir)
    np.testing.assert_array_equal(source[np.arange(4)]["image"], images[5:9])
    assert len(load("tiny", "train+test", data_dir)) == 27


def test_the_directory_of_the_set_itself_serves_too(tiny):
    data_dir, images, _ = tiny
    source = load("tiny", "train", data_dir / "tiny" / "1.0.0")
    np.testing.assert_array_equal(source[np.arange(20)]["image"], images)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streams_the_same_batches_as_a_resident_set(tiny, num_workers):
    source = load("tiny", "train", tiny[0])
    held, lazy = Pipeline(source, 8, seed=1), Pipeline(source, 8, seed=1, limit_bytes=0)
    assert lazy.arrays is None
    stream = lazy.stream(2, num_workers=num_workers)
    for step in range(2, 6):
        batch, expected = next(stream), held.gather(held.arrays, step)
        for key in ("image", "label"):
            np.testing.assert_array_equal(batch[key], expected[key])


def test_gray_images_resize_and_absent_labels(tmp_path):
    features = {"picture": tfds.features.Image(shape=(None, None, 1))}
    examples = [{"picture": _png(np.full((h, 8, 1), h, np.uint8))} for h in (8, 10, 12)]
    _build(tmp_path, features, {"train": examples})
    with pytest.raises(ValueError, match=r"images of tiny/1\.0\.0 .* differ in size; give resize="):
        load("tiny", "train", tmp_path)
    source = load("tiny", "train", tmp_path, resize=4)
    assert source.spec == {"image": ((4, 4, 1), np.uint8)}
    assert source.num_classes is None
    assert set(source[np.arange(3)]["image"][:, 0, 0, 0].tolist()) == {8, 10, 12}


def test_the_newest_version_and_the_only_configuration(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        _labelled(tmp_path, num=2, version=version)
    assert prepared_directory("tiny", tmp_path) == tmp_path / "tiny" / "1.10.0"
    assert prepared_directory("tiny:1.9.0", tmp_path) == tmp_path / "tiny" / "1.9.0"
    assert prepared_directory("tiny:2.0.0", tmp_path) is None
    _labelled(tmp_path, num=2, name="several", config="small")
    assert prepared_directory("several", tmp_path).parts[-2:] == ("small", "1.0.0")
    _labelled(tmp_path, num=2, name="several", config="large")
    assert prepared_directory("several/large", tmp_path).parts[-2:] == ("large", "1.0.0")
    with pytest.raises(ValueError, match="choose one of several/large, several/small"):
        prepared_directory("several", tmp_path)


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    command = r"python -m jaxgen\.data prepare cifar10 --data-dir "
    with pytest.raises(FileNotFoundError, match="no data directory .*missing.*" + command):
        load("cifar10", "train", tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="cifar10 is not prepared in .*" + command):
        load("cifar10", "train", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"pip install 'jaxgen\[tfds-prepare\]'.*svhn_cropped"
    ):
        load("svhn_cropped", "train", tmp_path)
    (tmp_path / "holiday.JPG").touch()
    with pytest.raises(FileNotFoundError, match=r"the images that lie there: --data\.name folder:"):
        load("cifar10", "train", tmp_path)


def test_unknown_splits_are_listed(tiny):
    with pytest.raises(ValueError, match=r"'trian'.*\['train', 'test'\]"):
        load("tiny", "trian", tiny[0])


def test_a_set_prepared_as_tfrecord(tmp_path):
    _labelled(tmp_path, num=2)
    path = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"is in the form tfrecord.*--data-dir OTHER"):
        load("tiny", "train", tmp_path)


def test_sets_without_usable_images(tmp_path):
    features = {"number": tfds.features.Scalar(np.int64)}
    _build(tmp_path, features, {"train": [{"number": 1}]}, name="numbers")
    with pytest.raises(ValueError, match=r"no feature 'image'.*its features are number"):
        load("numbers", "train", tmp_path)
    deep = {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)}
    builder = _build(tmp_path, deep, {"train": []} | {"train": [{"image": _deep_png()}]}, "deep")
    assert builder.is_prepared()
    with pytest.raises(ValueError, match="uint16 of 1 channels; they must be uint8"):
        load("deep", "train", tmp_path)


def _deep_png():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "PNG")
    file.seek(0)
    return file


def test_missing_and_damaged_shards_are_named(tmp_path):
    _labelled(tmp_path, num=40)
    (shard,) = (tmp_path / "tiny" / "1.0.0").glob("*train*")
    whole = shard.read_bytes()
    middle = next(i for i in range(len(whole)) if whole[i : i + 4] == b"IDAT")
    flipped = bytearray(whole)
    flipped[middle + 10] ^= 0xFF
    for damaged in (bytes(flipped), whole[: len(whole) // 2], whole[:1000]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged: delete that directory"):
            resident(load("tiny", "train", tmp_path))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny-train.* is missing: delete"):
        load("tiny", "train", tmp_path)
    assert len(load("tiny", "test", tmp_path)) == 7


def test_reading_imports_neither_tensorflow_nor_asks_the_network(tiny):
    script = f"""
        import socket, sys
        def refuse(*args, **kwargs):
            raise AssertionError("network")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from jaxgen.data import pipeline, sources
        assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
        source = sources.load("tiny", "train", {str(tiny[0])!r})
        next(pipeline.Pipeline(source, 4, seed=0).stream())
        try:
            sources.load("cifar10", "train", {str(tiny[0])!r})
        except FileNotFoundError:
            assert "tensorflow" not in sys.modules
            print("read", len(source))
    """
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=env
    )
    assert done.stdout == "read 20\n", done.stderr


def test_names_and_default_directory(tiny, monkeypatch):
    assert {"cifar10", "mnist", "tiny"} <= set(known_names(tiny[0]))
    assert set(WITHOUT_TENSORFLOW) == set(PREPARATIONS)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny[0]))
    assert len(tfds_source("tiny", "test")) == 7


def test_attributes_as_celeba_has_them(tmp_path):
    """A dictionary of booleans; landmarks, a dictionary of numbers, are left out."""
    features = {
        "image": tfds.features.Image(shape=(4, 4, 3)),
        "attributes": dict.fromkeys(("Young", "Bald", "Smiling"), np.bool_),
        "landmarks": dict.fromkeys(("x", "y"), np.int64),
    }
    held = np.random.default_rng(0).integers(0, 2, (9, 3))
    examples = [
        {
            "image": _png(np.full((4, 4, 3), i, np.uint8)),
            "attributes": dict(zip(("Young", "Bald", "Smiling"), map(bool, row), strict=True)),
            "landmarks": {"x": i, "y": i},
        }
        for i, row in enumerate(held)
    ]
    _build(tmp_path, features, {"train": examples, "test": examples[:3]})
    train, held_out = load_pair("tiny", ("train", "test"), tmp_path)
    assert isinstance(train, Source)
    assert train.attribute_names == held_out.attribute_names == ("Bald", "Smiling", "Young")
    assert train.spec == {
        "image": ((4, 4, 3), np.uint8),
        "attributes": ((3,), np.int32),
    }
    batch = train[np.arange(9)]
    expected = held[batch["image"][:, 0, 0, 0]][:, [1, 2, 0]]
    np.testing.assert_array_equal(batch["attributes"], expected)
    assert resident(train).attribute_names == train.attribute_names
    assert resident(train).digest == train.digest


COCO = tfds.features.Sequence({"id": np.int64, "text": np.object_})


@pytest.mark.parametrize(
    ("key", "feature", "value"),
    [
        ("captions", COCO, lambda texts: [{"id": 1, "text": text} for text in texts]),
        ("caption", tfds.features.Text(), lambda texts: texts[0]),
    ],
    ids=["coco", "text"],
)
def test_captions(tmp_path, key, feature, value):
    """As COCO has them, and simpler; each image keeps its own."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
        key: feature,
    }
    texts = [[f"picture {i}", "фото"][: 1 + i % 2] for i in range(5)]
    examples = [
        {"image": _png(np.full((4 + i, 4, 3), i, np.uint8)), "label": i % 2, key: value(texts[i])}
        for i in range(5)
    ]
    _build(tmp_path, features, {"train": examples})
    source = load("tiny", "train", tmp_path, resize=4)
    batch = source[np.array([4, 1, 0])]
    assert batch.keys() == {"image", "label", "text"}
    numbers = batch["image"][:, 0, 0, 0]
    np.testing.assert_array_equal(batch["label"], numbers % 2)
    most = 2 if feature is COCO else 1
    assert decode_text(batch["text"]) == [tuple(texts[i][:most]) for i in numbers]
    assert "with text, content" in source.protocol


def test_captions_that_cannot_be_used(tmp_path):
    """Of a simple sequence of texts, one of which is sound."""
    features = {
        "image": tfds.features.Image(shape=(4, 4, 3)),
        "captions": tfds.features.Sequence(tfds.features.Text()),
    }
    captions = {"sound": ["a", "b"], "lacking": [], "strange": [b"\xff"]}
    picture = np.zeros((4, 4, 3), np.uint8)
    splits = {key: [{"image": _png(picture), "captions": x}] for key, x in captions.items()}
    _build(tmp_path, features, splits)
    assert decode_text(load("tiny", "sound", tmp_path).arrays["text"]) == [("a", "b")]
    for split, message in (("lacking", "must not be empty"), ("strange", "is not in UTF-8")):
        place = rf"the example 0 of tiny/1\.0\.0, split {split}: a caption "
        with pytest.raises(ValueError, match=place + message):
            load("tiny", split, tmp_path)


def test_features_of_other_forms_are_left_out(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(4, 4, 3)),
        "attributes": {"width": np.int64, "old": np.bool_},
        "text": tfds.features.ClassLabel(num_classes=2),
        "captions": tfds.features.Sequence({"id": np.int64}),
    }
    example = {
        "image": _png(np.zeros((4, 4, 3), np.uint8)),
        "attributes": {"width": 3, "old": True},
        "text": 1,
        "captions": [{"id": 3}],
    }
    _build(tmp_path, features, {"train": [example]})
    source = load("tiny", "train", tmp_path)
    assert source.spec.keys() == {"image"}
