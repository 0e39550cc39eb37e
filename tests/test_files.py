"""A file is whole or as it was; a directory has one writer."""

import re

import pytest

from jaxgen.files import held_alone, open_atomically


def test_writes_and_replaces_and_makes_parents(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for content in (b"first", b"second"):
        with open_atomically(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b.txt"
    path.write_bytes(b"old")

    def write():
        with open_atomically(path) as file:
            file.write(b"half of the n")
            raise KeyError("x")

    with pytest.raises(KeyError):
        write()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    """And not the one that would have become it."""
    path = tmp_path / "b.txt"
    path.mkdir()
    refused = pytest.raises(OSError, match=re.escape(f"Is a directory: '{path}'"))
    with refused, open_atomically(path) as file:
        file.write(b"x")


def test_one_writer_a_directory(tmp_path):
    refused = pytest.raises(BlockingIOError, match="another process is training")
    with held_alone(tmp_path), refused, held_alone(tmp_path):
        raise AssertionError("let in")
    with held_alone(tmp_path):  # free again, the file left behind or not
        pass
