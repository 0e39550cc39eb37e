"""Captions and attributes: rows of fields to arrays."""

import numpy as np
import pytest

from jaxgen.data.captions import Row, decode_text, encode_text, entries_of


def _rows(*fields):
    return [Row(f"a.jsonl, line {i}", each) for i, each in enumerate(fields, 1)]


def test_captions_are_padded():
    """To the longest of all and to the most of an image, in bytes and not in characters."""
    given = [("a rose",), ("два", "x", "a rose is a rose"), (" spaces ",)]
    text = encode_text(given)
    assert (text.shape, text.dtype) == ((3, 3, 16), np.uint8)
    assert not text[0, 1:].any()
    assert decode_text(text) == given
    assert encode_text(given, 20).shape == (3, 3, 20)
    with pytest.raises(ValueError, match="at most 15 bytes, got 'a rose is a rose'"):
        encode_text(given, 15)
    with pytest.raises(ValueError, match="must have characters"):
        encode_text([("a", "")])


def test_memory_is_asked_for_first():
    with pytest.raises(ValueError, match="2 times 1 captions of 900000000000000 bytes would take"):
        encode_text([("a",), ("b",)], 900_000_000_000_000)


def test_a_caption_or_several():
    rows = _rows({"text": "one"}, {"text": ["two", "three"]})
    arrays, names = entries_of(rows)
    assert decode_text(arrays["text"]) == [("one",), ("two", "three")]
    assert (set(arrays), names) == ({"text"}, ())
    assert entries_of(rows, ("hat",)).attribute_names == ()
    named = entries_of(_rows({"caption": "one", "url": "x"}, {"caption": "two", "url": "y"}))
    assert decode_text(named.arrays["text"]) == [("one",), ("two",)]


LISTED = ({"attributes": ["hat", "beard"]}, {"attributes": []}, {"attributes": ["hat"]})
COLUMNS = (
    {"hat": 1, "beard": True, "tie": 0, "file_name": "1", "id": 0, "score": 0.0, "text": "1"},
    {"hat": "False", "beard": "0", "tie": False, "file_name": "0", "id": 2, "text": "0"},
    {"hat": "1", "beard": 0, "tie": "false", "file_name": "0", "id": 3, "text": "0"},
)


@pytest.mark.parametrize("fields", [LISTED, COLUMNS], ids=["listed", "columns"])
def test_attributes_of_both_forms(fields):
    """Sorted; one that never holds is none, nor is a number that is seldom 0 or 1."""
    arrays, names = entries_of(_rows(*fields))
    assert names == ("beard", "hat")
    np.testing.assert_array_equal(arrays["attributes"], [[1, 1], [0, 0], [0, 1]])
    assert arrays["attributes"].dtype == np.int32


def test_attributes_in_a_given_order():
    """Those of the training examples, also one that holds here for none."""
    arrays, names = entries_of(_rows(*COLUMNS), ("hat", "tie", "beard"))
    assert names == ("hat", "tie", "beard")
    np.testing.assert_array_equal(arrays["attributes"], [[1, 0, 1], [0, 0, 0], [1, 0, 0]])


def test_names_separated_by_commas():
    rows = _rows({"attributes": "hat, red hair, a, wig, b, tie"}, {"attributes": ""})
    assert entries_of(rows).attribute_names == ("a", "b", "hat", "red hair", "tie", "wig")
    assert entries_of(_rows(*[{"attributes": []}] * 2)) == ({}, ())


@pytest.mark.parametrize(
    ("fields", "names", "message"),
    [
        ([{"text": "a"}, {"text": " "}], None, "line 2: a caption must not be empty, got ' '"),
        ([{"text": "a"}, {"text": []}], None, r"line 2: a caption must not be empty, got \[\]"),
        ([{"text": ["a", ""]}], None, r"line 1: a caption must not be empty, got \['a', ''\]"),
        ([{"text": "a"}, {}], None, "line 2: 'text' must be a caption .*, got None"),
        ([{"text": 3}], None, "line 1: 'text' must be a caption or a list of captions, got 3"),
        ([{"text": ["a", 3]}], None, r"line 1: 'text' must be .*, got \['a', 3\]"),
        ([{"text": "a\0"}], None, "line 1: .* is no character"),
        ([{"text": "\ud800"}], None, "line 1: .* is no character"),
        ([LISTED[0], {}], None, "line 2: 'attributes' is missing"),
        ([{"attributes": "['a', 'b']"}], None, "line 1: .* without brackets"),
        ([{"attributes": [1]}], None, r"line 1: .* a list of names, .* got \[1\]"),
        ([{"attributes": {"hat": 1}}], None, "line 1: .* a list of names"),
        (LISTED, ("hat", "tie"), "line 1: the attribute 'beard' holds in no training .* hat, tie"),
        ([{"hat": 0}, {"hat": 1}, {}], None, "line 3: the attribute 'hat' is missing"),
        ([{"hat": 0}, {"hat": ""}], None, "line 2: the attribute 'hat' is missing"),
        ([{"hat": 0}, {"hat": 1}, {"hat": -1}], None, "line 3: .* 'hat' is -1; it must be 0 or 1"),
        ([{"hat": 0}, {"hat": 1.0}], None, "line 2: .* 'hat' is 1.0; it must be 0 or 1"),
        (COLUMNS, ("hat", "wig"), "line 1: there is no field 'wig', an attribute of the training"),
    ],
)
def test_bad_rows_are_named(fields, names, message):
    with pytest.raises(ValueError, match=rf"^a\.jsonl, {message}"):
        entries_of(_rows(*fields), names)
