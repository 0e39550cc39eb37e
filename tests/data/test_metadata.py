"""Folders of images with captions and attributes beside them."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.binarize import static
from jaxgen.data.captions import decode_text
from jaxgen.data.images import FolderSource, folder
from jaxgen.data.metadata import captioned_folder, read_rows
from jaxgen.data.sources import Source, load, load_pair, resident


def _images(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(root / name)


def _write(root, *rows, name="metadata.jsonl"):
    root.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / name).write_text("\n".join(lines) + "\n")


def _row(name, text, *attributes):
    return {"file_name": name, "text": text, "attributes": attributes, "style": "drawn"}


def test_images_with_captions_and_attributes(tmp_path):
    """Each image has its own row, wherever that stands in the file; nothing is left out."""
    _images(tmp_path, "cat/a.png", "cat/b.png", "dog/c.png")
    rows = [_row("dog/c.png", "a dog", "hat"), _row("cat/b.png", ["b", "or b"])]
    _write(tmp_path, rows[0], "", rows[1], _row("./cat//a.png", "an a", "tie", "hat"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = load("folder", data_dir=tmp_path)
    assert isinstance(source, Source)
    assert source.spec["text"] == ((2, 5), np.uint8)
    assert source.spec["attributes"] == ((2,), np.int32)
    assert source.attribute_names == ("hat", "tie")
    batch = source[np.array([2, 0, 1])]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [2, 0, 1])
    np.testing.assert_array_equal(batch["label"], [1, 0, 0])
    np.testing.assert_array_equal(batch["attributes"], [[1, 0], [1, 1], [0, 0]])
    assert decode_text(batch["text"]) == [("a dog",), ("an a",), ("b", "or b")]
    held = resident(source)
    assert held.attribute_names == static(source).attribute_names == ("hat", "tie")
    np.testing.assert_array_equal(held.arrays["text"][[2, 0, 1]], batch["text"])
    assert held.protocol == source.protocol
    assert folder(tmp_path).protocol in source.protocol
    assert source.protocol.endswith(f"with attributes and text, content {source.digest}")


def test_a_table_with_columns(tmp_path):
    """Of one file in two forms: the same examples."""
    _images(tmp_path / "a", "0.png", "1.png")
    header = "file_name,hat,text,tie"
    table = (header, '1.png,1,"one, or\nmore",True', "0.png,0,1,FALSE")
    _write(tmp_path / "a", *table, name="metadata.csv")
    source = captioned_folder(tmp_path / "a")
    assert source.attribute_names == ("hat", "tie")
    np.testing.assert_array_equal(source.arrays["attributes"], [[0, 0], [1, 1]])
    assert decode_text(source.arrays["text"]) == [("1",), ("one, or\nmore",)]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "metadata.csv").unlink()
    _write(tmp_path / "b", _row("0.png", "1"), _row("1.png", "one, or\nmore", "hat", "tie"))
    assert captioned_folder(tmp_path / "b").digest == source.digest


def test_what_is_said_is_part_of_the_digest(tmp_path):
    _images(tmp_path, "0.png", "1.png")
    digests = [folder(tmp_path).digest]
    for rows in (
        [_row("0.png", "a", "hat"), _row("1.png", "b")],
        [_row("0.png", "a", "hat"), _row("1.png", "c")],
        [_row("0.png", "a"), _row("1.png", "b", "hat")],
        [_row("0.png", "a", "tie"), _row("1.png", "b")],
    ):
        _write(tmp_path, *rows)
        digests.append(captioned_folder(tmp_path).digest)
    assert len(set(digests)) == len(digests)


def test_held_out_images_have_the_attributes_of_training(tmp_path):
    """In their order, with captions of any length; others are refused."""
    for split in ("train", "test"):
        _images(tmp_path / split, "0.png", "1.png")
    _write(tmp_path / "train", _row("0.png", "a", "tie"), _row("1.png", "b", "hat"))
    _write(tmp_path / "test", _row("0.png", ["longer", "c"]), _row("1.png", "d", "tie"))
    train, held_out = load_pair("folder", ("train", "test"), tmp_path)
    assert train.attribute_names == held_out.attribute_names == ("hat", "tie")
    np.testing.assert_array_equal(held_out[np.arange(2)]["attributes"], [[0, 0], [0, 1]])
    assert (train.spec["text"][0], held_out.spec["text"][0]) == ((1, 1), (2, 6))
    _write(tmp_path / "test", _row("0.png", "c"), _row("1.png", "d", "wig"))
    with pytest.raises(ValueError, match=r"test/metadata\.jsonl, line 2: the attribute 'wig' hold"):
        load_pair("folder", ("train", "test"), tmp_path)
    _write(tmp_path / "test", {"file_name": "0.png", "text": "c"}, _row("1.png", "d"))
    with pytest.raises(ValueError, match="line 1: 'attributes' is missing"):
        load_pair("folder", ("train", "test"), tmp_path)
    (tmp_path / "test" / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="differ in 'attributes': int32.* and no such entry"):
        load_pair("folder", ("train", "test"), tmp_path)
    _write(tmp_path / "train", *[{"file_name": f"{i}.png", "text": "a"} for i in range(2)])
    _write(tmp_path / "test", _row("0.png", "c"), _row("1.png", "d", "hat"))
    with pytest.raises(ValueError, match="differ in 'attributes': no such entry"):
        load_pair("folder", ("train", "test"), tmp_path)


def test_a_folder_that_is_split_by_names(tmp_path):
    _images(tmp_path, *(f"{i}.png" for i in range(40)))
    _write(
        tmp_path, *(_row(f"{i}.png", f"it is {i}", "odd" * (i % 2) or "even") for i in range(40))
    )
    train, held_out = load_pair("folder", ("train", "test"), tmp_path)
    assert len(train) + len(held_out) == 40
    for source in (train, held_out):
        batch = source[np.arange(len(source))]
        numbers = [int(text[0].split()[-1]) for text in decode_text(batch["text"])]
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], numbers)
        np.testing.assert_array_equal(batch["attributes"][:, 1], np.array(numbers) % 2)


A = _row("0.png", "a")
B = _row("1.png", "b")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([A, {"text": "b"}], "line 2: 'file_name' must name an image, got None"),
        ([A, {**B, "file_name": 1}], "line 2: 'file_name' must name an image, got 1"),
        ([A, _row("", "b")], "line 2: 'file_name' must name an image, got ''"),
        ([A, "", _row("2.png", "b")], r"line 3: there is no image .*/2\.png"),
        ([A], r" has no row of the image .*/1\.png \(1 images have none\)"),
        ([A, B, _row("./0.png", "c")], r"line 3: the image .*0\.png has a row .*l, line 1\)"),
        ([A, _row("../b/1.png", "b")], r"line 2: .* a path in the folder, got '\.\./b/1\.png'"),
        ([A, _row("/1.png", "b")], "line 2: 'file_name' must be a path in the folder"),
        ([A, _row("1.png\0", "b")], "line 2: 'file_name' must be a path in the folder"),
        ([A, '{"file_name": "1.png"'], "line 2: it cannot be read as JSON"),
        ([A, "[" * 100_000], "line 2: it cannot be read as JSON"),
        ([A, '["1.png"]'], r"line 2: it must be a JSON object, got \['1\.png'\]"),
        ([A, _row("1.png", "")], "line 2: a caption must not be empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    _images(tmp_path, "0.png", "1.png")
    _write(tmp_path, *rows)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl(, )?{message}"):
        captioned_folder(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,text\n0.png,a\n", "line 2: 'file_name' must name an image, got None"),
        ('file_name,text\n0.png,"a\nb"\n1.png\n', "line 4: it has 1 values, the header 2"),
        ("file_name,text,text\n", "line 1: the header has 'text' more than once"),
        ('file_name,text\n0.png,a\n"1\n.png",b\n', r"line 3: there is no image .*/1\n\.png"),
        ('file_name,text\n0.png,"a"b\n', "line 2: "),
        ('file_name,text\n0.png,"a', "line 2: unexpected end of data"),
        ("file_name,hat\n0.png,1\n1.png,yes\n", "line 3: the attribute 'hat' is 'yes'"),
        (b"file_name,text\n0.png,\xff\n", "line 2: it is not in UTF-8"),
    ],
)
def test_bad_tables_are_named(tmp_path, table, message):
    _images(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(ValueError, match=rf"metadata\.csv, {message}"):
        captioned_folder(tmp_path)


def test_files_as_other_programs_write_them(tmp_path):
    """A mark of byte order, ends of lines of Windows, marks of lines inside of a caption."""
    content = '\ufeff{"text": "a"}\r\n\r\n{"text": "b\u2028c"}'
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    rows = read_rows(tmp_path / "a.jsonl")
    assert [row.fields["text"] for row in rows] == ["a", "b\u2028c"]
    (tmp_path / "a.csv").write_bytes("\ufefftext,x\r\na,1\r\n\r\nb\u2028c,2\r\n".encode())
    rows = read_rows(tmp_path / "a.csv")
    assert [row.fields for row in rows] == [{"text": "a", "x": "1"}, {"text": "b\u2028c", "x": "2"}]
    assert rows[1].where.endswith("a.csv, line 4")


def test_files_that_are_left_out(tmp_path):
    """One that says nothing of use, with a warning; two are one too many."""
    _images(tmp_path, "0.png", "1.png")
    _write(tmp_path, *({"file_name": f"{i}.png", "style": "drawn"} for i in range(2)))
    with pytest.warns(UserWarning, match=r"jsonl is left out: it has neither .* the fields style"):
        source = captioned_folder(tmp_path)
    assert isinstance(source, FolderSource)
    _write(tmp_path, "file_name", name="metadata.csv")
    with pytest.raises(ValueError, match=r"must have one of metadata\.jsonl and metadata\.csv"):
        captioned_folder(tmp_path)
    _write(tmp_path / "below", A)
    (tmp_path / "metadata.csv").unlink()
    with pytest.warns(UserWarning, match=r"1 files of other kinds \(\.jsonl\)"):
        folder(tmp_path)
