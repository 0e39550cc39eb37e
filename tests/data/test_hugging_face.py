"""Sets that Hugging Face's `datasets` has saved, and what is said where the hub cannot be had."""

import os

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.captions import decode_text
from jaxgen.data.sources import load, load_pair, resident

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when `datasets` is imported
datasets = pytest.importorskip("datasets", reason="saved sets need datasets, of the extra hf")


def _set(values, labels=None):
    images = [Image.new("RGB", (5, 4), (v, v, v)) for v in values]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"image": images, "label": labels or [v % 2 for v in values]}
    columns["text"] = [f"number {v}" for v in values]
    kinds["text"] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _values(source):
    return source[np.arange(len(source))]["image"][:, 0, 0, 0].tolist()


def test_a_saved_set(tmp_path):
    """Its splits by name, classes and captions; a selection of rows is what it was saved as."""
    splits = {"train": _set(range(9)).select([8, 1, 2, 3]), "test": _set([7, 6])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    train, held_out = load_pair(f"hf:{tmp_path}/saved", ("train", "test"))
    assert (_values(train), _values(held_out)) == ([8, 1, 2, 3], [7, 6])
    assert train.class_names == held_out.class_names == ("cat", "dog")
    batch = held_out[np.array([1, 0])]
    np.testing.assert_array_equal(batch["label"], [0, 1])
    assert decode_text(batch["text"]) == [("number 6",), ("number 7",)]
    assert "hf, split test (2 images), as they are" in held_out.protocol
    assert len(resident(load("hf", None, tmp_path / "saved"))) == 6
    with pytest.raises(FileNotFoundError, match="no split 'valid', only test, train: name them"):
        load("hf", "valid", tmp_path / "saved")


def test_a_set_without_held_out_rows(tmp_path):
    """Is split by a hash, whether it is called train or has no name; the digest is of the rows."""
    rows = _set(range(30))
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "dict"))
    for name in ("one", "dict"):
        parts = [load("hf", part, tmp_path / name) for part in ("train", "test", "all")]
        assert sorted(_values(parts[0]) + _values(parts[1])) == _values(parts[2])
        assert len(parts[1]) > 0
    assert load("hf", "all", tmp_path / "one").digest == parts[2].digest


def test_what_cannot_be_had(tmp_path):
    """Another folder, a damaged set, no network, and no name of a set."""
    with pytest.raises(ValueError, match=r"holds no set that `save_to_disk`.*--data\.name parquet"):
        load("hf", None, tmp_path)
    _set([1]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="saved cannot be read"):
        load("hf", None, tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="no folder nobody/nothing, and the hub.*Offline"):
        load("hf:nobody/nothing", "train")
    with pytest.raises(FileNotFoundError, match="no folder ../x, and no set"):
        load("hf", None, "../x")
    with pytest.raises(ValueError, match="'hf' needs data_dir.*or the set's name on the hub"):
        load("hf")
