"""Captions and attributes of images, from rows of fields as files have them to arrays.

Every form of file (`jaxgen.data.metadata`, `jaxgen.data.shards`) gives a `Row` an image, in which
the captions are `text` (or `caption`), a string or a list of strings. Attributes are either a field
`attributes`, the list of the names that hold, or a field of 0 and 1 (false and true) for each.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxgen.checks import check_memory

TEXT, ATTRIBUTES, FILE_NAME = ("text", "caption"), "attributes", "file_name"
_BITS = {"0": 0, "1": 1, "false": 0, "true": 1}
_SHOWN = 60  # characters of a value in an error


class Row(NamedTuple):
    """What a file says of an image.

    Attributes:
        where: The file and the line, for errors.
        fields: Names and values as the file has them.
    """

    where: str
    fields: Mapping[str, Any]


class Entries(NamedTuple):
    """What rows say, as entries of a source.

    Attributes:
        arrays: `text` uint8 [N, captions, bytes] and `attributes` int32 [N, A], where there are
            any.
        attribute_names: Names of the A attributes.
    """

    arrays: dict[str, np.ndarray]
    attribute_names: tuple[str, ...]


def read_object(text: str | bytes, where: str) -> Row:
    """The row that a JSON object is.

    Args:
        text: The object.
        where: The file and the line, for errors.

    Raises:
        ValueError: Broken JSON, or anything but an object; says where.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: it cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: it must be a JSON object, got {_shown(fields)}")
    return Row(where, fields)


def entries_of(rows: Sequence[Row], attribute_names: Sequence[str] | None = None) -> Entries:
    """The captions and attributes of rows.

    Args:
        rows: The rows, in the order of the examples.
        attribute_names: Names of the attributes in their order, those of the training examples say;
            None for those that hold in at least one row, sorted.

    Raises:
        ValueError: A row without captions or attributes where others have some, an empty caption, a
            value that is neither 0 nor 1, an attribute that is not among the names; says where.
    """
    arrays = {}
    key = next((key for key in TEXT if any(_has(row, key) for row in rows)), None)
    if key is not None:
        arrays["text"] = encode_text([_captions(row, key) for row in rows])
    held, columns = _held(rows)
    names = tuple(sorted(frozenset().union(*held)) if attribute_names is None else attribute_names)
    if held and names:
        if columns is not None and (lacking := [name for name in names if name not in columns]):
            raise ValueError(
                f"{rows[0].where}: there is no field {lacking[0]!r}, an attribute of the training "
                "examples"
            )
        arrays["attributes"] = _table(rows, held, names)
    return Entries(arrays, names if "attributes" in arrays else ())


def encode_text(
    captions: Sequence[Sequence[str]], width: int | None = None
) -> UInt8[np.ndarray, "num captions width"]:
    """Captions as bytes in UTF-8, padded with zeros; rows of fewer captions end in empty ones.

    Args:
        captions: The captions of each image.
        width: Number of bytes of a caption; None for that of the longest.

    Raises:
        ValueError: A caption of more bytes, or of none; captions that the memory cannot hold.
    """
    encoded = [[caption.encode() for caption in each] for each in captions]
    longest = max((len(one) for each in encoded for one in each), default=0)
    if width is not None and longest > width:
        long = next(one for each in encoded for one in each if len(one) > width)
        raise ValueError(f"a caption must have at most {width} bytes, got {long.decode()!r}")
    shape = (len(encoded), max(map(len, encoded), default=0), width or longest)
    check_memory(f"{shape[0]} times {shape[1]} captions of {shape[2]} bytes", int(np.prod(shape)))
    text = np.zeros(shape, np.uint8)
    for row, each in enumerate(encoded):
        for column, one in enumerate(each):
            if not one or 0 in one:
                raise ValueError(f"a caption must have characters, none of them 0, got {one!r}")
            text[row, column, : len(one)] = np.frombuffer(one, np.uint8)
    return text


def decode_text(text: UInt8[np.ndarray, "num captions width"]) -> list[tuple[str, ...]]:
    """The captions that `encode_text` was given."""
    rows = [[bytes(each).rstrip(b"\0").decode() for each in captions] for captions in text]
    return [tuple(filter(None, captions)) for captions in rows]


def _has(row: Row, key: str) -> bool:
    return row.fields.get(key) is not None


def _captions(row: Row, key: str) -> list[str]:
    """The captions of a row, checked."""
    value = row.fields.get(key)
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
        raise ValueError(
            f"{row.where}: {key!r} must be a caption or a list of captions, got {_shown(value)}"
        )
    if not captions or not all(one.strip() for one in captions):
        raise ValueError(f"{row.where}: a caption must not be empty, got {_shown(value)}")
    for one in captions:
        try:
            usable = b"\0" not in one.encode()
        except UnicodeEncodeError:  # half of a pair of code units, as JSON may have it
            usable = False
        if not usable:
            raise ValueError(f"{row.where}: {_shown(one)} has what is no character of a text")
    return captions


def _held(rows: Sequence[Row]) -> tuple[list[frozenset[str]], list[str] | None]:
    """The names that hold in each row, and the fields that were read where each has its own.

    Nothing where the rows have no attributes.
    """
    if any(_has(row, ATTRIBUTES) for row in rows):
        return [_listed(row) for row in rows], None
    columns = _columns(rows)
    if not columns:
        return [], None
    held = [frozenset(column for column in columns if _bit(row, column)) for row in rows]
    return held, columns


def _listed(row: Row) -> frozenset[str]:
    value = row.fields.get(ATTRIBUTES)
    if value is None:
        raise ValueError(f"{row.where}: {ATTRIBUTES!r} is missing, which other rows have")
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if names == [""]:
        return frozenset()
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(
            f"{row.where}: {ATTRIBUTES!r} must be a list of names, or names separated by commas, "
            f"got {_shown(value)}"
        )
    if isinstance(value, str) and value.strip().startswith("["):
        raise ValueError(
            f"{row.where}: {ATTRIBUTES!r} must be names separated by commas, without brackets, got "
            f"{_shown(value)}"
        )
    return frozenset(names)


def _columns(rows: Sequence[Row]) -> list[str]:
    """The fields that are attributes: at least half of the rows have 0 or 1 there.

    So a number of an image, or whatever else a file says, is none, and a slip in one is seen.
    """
    counts: dict[str, int] = {}
    for row in rows:
        for key, value in row.fields.items():
            if _as_bit(value) is not None:
                counts[key] = counts.get(key, 0) + 1
    others = (*TEXT, ATTRIBUTES, FILE_NAME)
    return [key for key, n in counts.items() if 2 * n >= len(rows) and key not in others]


def _as_bit(value: Any) -> int | None:
    """0 or 1 for 0, 1, false, true and their names; None for anything else."""
    if isinstance(value, str):
        return _BITS.get(value.strip().lower())
    return int(value) if isinstance(value, int) and value in (0, 1) else None


def _bit(row: Row, column: str) -> int:
    value = row.fields.get(column)
    bit = _as_bit(value)
    if bit is None:
        missing = value is None or value == ""
        what = "is missing, which other rows have" if missing else f"is {_shown(value)}"
        raise ValueError(
            f"{row.where}: the attribute {column!r} {what}; it must be 0 or 1 in each row (a field "
            f"{ATTRIBUTES!r}, a list of names, would take the place of all such fields)"
        )
    return bit


def _table(
    rows: Sequence[Row], held: Sequence[frozenset[str]], names: tuple[str, ...]
) -> np.ndarray:
    """int32 [N, names] of 0 and 1."""
    index = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)), np.int32)
    for i, (row, each) in enumerate(zip(rows, held, strict=True)):
        if unknown := sorted(each - index.keys()):
            raise ValueError(
                f"{row.where}: the attribute {unknown[0]!r} holds in no training example; known "
                f"are {', '.join(names[:40])}"
            )
        table[i, [index[name] for name in each]] = 1
    return table


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
