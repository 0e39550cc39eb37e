"""Parquet files of images: which files a split is, and files that are broken."""

import os
import resource

import numpy as np
import pytest
from pictured import cells, png

from jaxgen.data.parquet import parquet
from jaxgen.data.sources import load, load_pair

pa = pytest.importorskip("pyarrow", reason="parquet files need pyarrow, of the extra hf")
pq = pytest.importorskip("pyarrow.parquet")


def _write(path, *values, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells(*values), **columns}), path, row_group_size=2)
    return path


def _values(source):
    return source[np.arange(len(source))]["image"][:, 0, 0, 0].tolist()


def test_splits_by_the_names_of_files(tmp_path):
    """As on the hub; of one file, or of training files alone, some rows are held out."""
    _write(tmp_path / "data" / "train-00000-of-00002.parquet", 1, 2, 3)
    _write(tmp_path / "data" / "train-00001-of-00002.parquet", 4)
    train = load("parquet", "train", tmp_path)
    assert sorted(_values(train) + _values(load("parquet", "test", tmp_path))) == [1, 2, 3, 4]
    assert "by a hash of file and row" in train.protocol
    _write(tmp_path / "data" / "validation-00000-of-00001.parquet", 5)
    assert _values(load("parquet", "train", tmp_path)) == [1, 2, 3, 4]
    assert _values(load("parquet", None, tmp_path)) == [1, 2, 3, 4, 5]
    with pytest.raises(FileNotFoundError, match=r"only train, validation: name them by --data\."):
        load("parquet", "test", tmp_path)
    train, held_out = load_pair(f"parquet:{tmp_path}", ("train", "validation"))
    assert (len(train), _values(held_out)) == (4, [5])
    one = _write(tmp_path / "one.parquet", *range(20))
    train, held_out = load_pair("parquet", ("train", "test"), one)
    assert sorted(_values(train) + _values(held_out)) == list(range(20))
    with pytest.raises(FileNotFoundError, match="split 'valid': it is split itself"):
        load("parquet", "valid", one)


def test_held_out_classes_are_the_training_ones(tmp_path):
    """Names of classes, of which the held-out rows lack the first."""
    _write(tmp_path / "train" / "0.parquet", 1, 2, label=["a", "b"])
    _write(tmp_path / "test" / "0.parquet", 3, label=["b"])
    train, held_out = load_pair("parquet", ("train", "test"), tmp_path)
    assert train.class_names == held_out.class_names == ("a", "b")
    np.testing.assert_array_equal(held_out[np.array([0])]["label"], [1])


def test_moving_files_changes_nothing(tmp_path):
    """Neither digest nor split; nor does another name of a file that is named by itself."""
    pairs = [("a", "b/c"), ("x.parquet", "y.parquet")]
    for places in pairs:
        sources = []
        for place in places:
            path = tmp_path / place
            _write(path if path.suffix else path / "x.parquet", *range(30))
            sources.append(parquet(path, "test", held_out=0.3))
        assert sources[0].protocol == sources[1].protocol
        assert _values(sources[0]) == _values(sources[1])


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no parquet file or folder of some"):
        parquet(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="no parquet files in"):
        parquet(tmp_path)
    good = _write(tmp_path / "a" / "good.parquet", 1, 2, 3)
    (tmp_path / "a" / "z.parquet").write_bytes(png(1))
    with pytest.raises(ValueError, match=r"z\.parquet cannot be read as a parquet file"):
        parquet(tmp_path / "a")
    content = bytearray(good.read_bytes())
    content[10:60] = bytes(50)
    (tmp_path / "a" / "z.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"z\.parquet"):
        parquet(tmp_path / "a")
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    with pytest.raises(ValueError, match="the encoded images of .* would take"):
        parquet(good)


def test_more_files_than_may_be_open(tmp_path):
    """Each is closed before the next one."""
    for i in range(30):
        _write(tmp_path / "files" / f"{i:02d}.parquet", i)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 15, hard))
    try:
        source = parquet(tmp_path / "files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert _values(source) == list(range(30))
