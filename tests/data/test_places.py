"""Kinds of sets and their places, in one flag or in two."""

import sys

import pytest

from jaxgen.data.sources import load
from jaxgen.training.config import DataConfig


def test_one_flag_names_kind_and_place():
    """And the run may go on where the data are elsewhere: the place is not part of the name."""
    config = DataConfig("parquet:photos/a:b.parquet")
    assert (config.name, config.dir) == ("parquet", "photos/a:b.parquet")
    assert DataConfig("folder:x", "x").dir == "x"
    assert DataConfig("cifar10:3.0.2").name == "cifar10:3.0.2"
    with pytest.raises(ValueError, match="'folder:x' and the directory 'y' are two places"):
        DataConfig("folder:x", "y")
    with pytest.raises(ValueError, match="'folder:' must name the folder of images after"):
        DataConfig("folder:")


@pytest.mark.parametrize(("kind", "library"), [("parquet", "pyarrow.parquet"), ("hf", "datasets")])
def test_a_missing_library_names_the_extra(kind, library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"need {library}: pip install 'jaxgen\[hf\]'"):
        load(kind, "train", tmp_path)
