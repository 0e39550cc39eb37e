"""Tables of images, as parquet files and Hugging Face's sets are: one row an image.

The column of images holds encoded files, as bytes or as `{bytes, path}`. It is the one that Hugging
Face's description in the table calls an `Image`, or the only one of bytes; of several the one with
the name `image`. The class is the column `label`, or the only one that the description calls a
`ClassLabel`: numbers, or names. Captions and attributes are columns with the names and values of
`jaxgen.data.captions`. Rows are counted from 0.
"""

import functools
import hashlib
import importlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.captions import Row, entries_of
from jaxgen.data.folders import digest_of, split_by_name
from jaxgen.data.images import (
    Resize,
    Spec,
    common_shape,
    decode_image,
    empty_images,
    image_spec,
    preprocessing,
    read_header,
    target_size,
)
from jaxgen.data.joined import Joined
from jaxgen.data.sources import Source

_DIGESTED = 2**31  # bytes of all images together, up to which a digest reads every one
_BLOCK = 4096


class Piece(NamedTuple):
    """A part of a table.

    Attributes:
        name: Name of the part within the set, which no move changes: a file's, or a split's.
        where: Place of the part, for errors.
        table: `pyarrow.Table` of its rows.
    """

    name: str
    where: str
    table: Any


class Labels(NamedTuple):
    """The classes of rows: their numbers int32 [N], how many classes there are, and their names."""

    values: np.ndarray
    num_classes: int
    names: tuple[str, ...]


class TableSource:
    """The images of a table and their classes, decoded when they are indexed; from `table_source`.

    Args:
        images: Column of the encoded images, a `pyarrow.ChunkedArray` of bytes or `{bytes, path}`.
        rows: The rows that are the examples, in order.
        where: Place of each example, for errors.
        shape: Shape (height, width, channels) of every image.
        resize: Whether images are cropped and resized to that.
        labels: Classes of the examples, or None.
        name: Name of the kind of set.
        split: Name of the split.
        line: What the protocol says before the digest.
    """

    def __init__(
        self,
        images: Any,
        rows: np.ndarray,
        where: Sequence[str],
        shape: tuple[int, int, int],
        *,
        resize: bool,
        labels: Labels | None,
        name: str,
        split: str,
        line: str,
    ):
        self.images = images
        self.rows = rows
        self.where = where
        self.shape = shape
        self.resize = resize
        self.labels = None if labels is None else labels.values
        self.num_classes = None if labels is None else labels.num_classes
        self.class_names = () if labels is None else labels.names
        self.name = name
        self.split = split
        self._line = line

    @property
    def spec(self) -> Spec:
        return image_spec(self.shape, self.labels is not None)

    @functools.cached_property
    def digest(self) -> str:
        """Of the images' bytes, so that the same rows are one set in whatever files they lie."""
        labels = None if self.labels is None else self.labels.tolist()
        sizes = [len(_content(self.images, row)) for row in self.rows]
        num_read = None if sum(sizes) <= _DIGESTED else _BLOCK

        def digest(row: np.integer) -> str:
            content = _content(self.images, row)
            if num_read is None:
                return hashlib.sha256(content).hexdigest()
            ends = (str(len(content)).encode(), content[:num_read], content[-num_read:])
            return hashlib.sha256(b"".join(ends)).hexdigest()

        with ThreadPoolExecutor() as pool:
            return digest_of(self.class_names, labels, *pool.map(digest, self.rows))

    @property
    def protocol(self) -> str:
        return f"{self._line}, content {self.digest}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"image": empty_images(len(indices), self.shape)}
        for image, index in zip(batch["image"], indices, strict=True):
            file = io.BytesIO(_content(self.images, self.rows[index]))
            image[:] = decode_image(file, self.shape, self.where[index], resize=self.resize)
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch


def table_source(
    pieces: Sequence[Piece],
    name: str,
    split: str | None,
    part: str | None,
    *,
    resize: Resize = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    held_out: float = 0.05,
) -> Source:
    """The images of a table that lies in pieces.

    Args:
        pieces: The parts of the table, in order, at least one.
        name: Name of the kind of set.
        split: Name of the split, None for all examples.
        part: Part of the rows where they are split here, by a hash of the piece's name and the row:
            "train", "test" (what is held out) or "all"; None for all rows.
        resize: Size, or (height, width), to which every image is center-cropped and resized.
        class_names: Names of the classes where the column of classes holds names; None for all that
            occur.
        attribute_names: Names of the attributes in their order; None for those that hold.
        held_out: Share of the rows, roughly, that are held out.

    Raises:
        ImportError: Without pyarrow.
        ValueError: No row; pieces of other columns than the first; a row whose image, class,
            captions or attributes cannot be used (names piece and row).
    """
    pa = library("pyarrow")
    size = target_size(resize)
    columns = _columns(pieces[0])
    for piece in pieces:
        _check_columns(piece, pieces[0], columns)
    table = pa.concat_tables([piece.table.select(columns.all) for piece in pieces])
    places = [(piece, row) for piece in pieces for row in range(len(piece.table))]
    if not places:
        raise ValueError(f"{pieces[0].where} has no rows")
    keep = list(range(len(places)))
    if part is not None:
        keep = split_by_name([f"{piece.name}/{row}" for piece, row in places], part, held_out)
    where = [f"{places[i][0].where}, row {places[i][1]}" for i in keep]
    images = table[columns.image]

    def header(i: int) -> Any:
        content = _content(images, keep[i], where[i])
        return read_header(io.BytesIO(content), where[i], need_size=size is None)

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(header, range(len(keep))))
    shape, on_white = common_shape(where, headers, size)
    # Of all rows, so that a class has its number whatever the split.
    labels = _labels(table, columns, places, class_names)
    if labels is not None:
        labels = labels._replace(values=labels.values[keep])
    how = "" if part is None else f" of {len(places)}, by a hash of file and row"
    source = TableSource(
        images,
        np.asarray(keep),
        where,
        shape,
        resize=size is not None,
        labels=labels,
        name=name,
        split=split or "all",
        line=f"{name}, split {split or 'all'} ({len(keep)} images{how}), "
        f"{preprocessing(shape, resize=size is not None, on_white=on_white)}",
    )
    fields = table.select(columns.fields).take(keep).to_pylist() if columns.fields else []
    rows = [Row(place, values) for place, values in zip(where, fields, strict=False)]
    entries = entries_of(rows, attribute_names)
    if not entries.arrays:
        return source
    return Joined(source, entries.arrays, attribute_names=entries.attribute_names)


class _Columns(NamedTuple):
    image: str
    label: str | None
    class_names: tuple[str, ...] | None  # where the description has them
    fields: list[str]

    @property
    def all(self) -> list[str]:
        return [self.image, *([] if self.label is None else [self.label]), *self.fields]


def _columns(piece: Piece) -> _Columns:
    """Which columns are images, classes, and what `jaxgen.data.captions` may read."""
    schema = piece.table.schema
    features = _features(schema.metadata)
    kinds = {name: features.get(name, {}).get("_type") for name in schema.names}
    described = [name for name, kind in kinds.items() if kind == "Image"]
    images = described or [field.name for field in schema if _holds_bytes(field.type)]
    if len(images) != 1 and "image" not in images:
        what = f"several ({', '.join(images)}): call one 'image'" if images else "none"
        raise ValueError(
            f"{piece.where}: a column of images holds bytes or {{bytes, path}}, and there is "
            f"{what}. The columns are {', '.join(schema.names)}"
        )
    image = images[0] if len(images) == 1 else "image"
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    label = "label" if "label" in schema.names else classes[0] if len(classes) == 1 else None
    if label is None and classes:
        warnings.warn(
            f"{piece.where}: the classes {', '.join(classes)} are left out, for none is called "
            "'label'",
            stacklevel=4,
        )
    names = features.get(label, {}).get("names") if label else None
    left = [image, label, *described, *classes]
    fields = [f.name for f in schema if f.name not in left and _is_field(f.type)]
    return _Columns(image, label, None if names is None else tuple(names), fields)


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Mapping[str, Any]]:
    """Hugging Face's description of the columns, {} where there is none that can be read."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    is_usable = isinstance(features, dict) and all(isinstance(f, dict) for f in features.values())
    return features if is_usable else {}


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's type is bytes, or a struct with `bytes`."""
    types = library("pyarrow").types
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_field(kind: Any) -> bool:
    """Whether a column may hold captions or attributes: texts, whole numbers, lists of texts."""
    types = library("pyarrow").types
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
        return types.is_string(kind) or types.is_large_string(kind)
    checks = (types.is_string, types.is_large_string, types.is_boolean, types.is_integer)
    return any(check(kind) for check in checks)


def _check_columns(piece: Piece, first: Piece, columns: _Columns) -> None:
    """Raises a ValueError if a piece lacks a column that is read, or has another type of it."""
    for name in columns.all:
        here = piece.table.schema.field(name).type if name in piece.table.schema.names else "none"
        there = first.table.schema.field(name).type
        if here != there:
            raise ValueError(
                f"{piece.where} differs from {first.where} in the column {name!r}: {here} and "
                f"{there}"
            )
    names = _features(piece.table.schema.metadata).get(columns.label or "", {}).get("names")
    if (None if names is None else tuple(names)) != columns.class_names:
        raise ValueError(f"{piece.where} differs from {first.where} in the names of the classes")


def _content(images: Any, row: int | np.integer, where: str = "") -> memoryview:
    """The encoded image of a row.

    Raises:
        ValueError: A row without one.
    """
    cell = images[int(row)]
    inner = cell["bytes"] if cell.is_valid and hasattr(cell, "keys") else cell
    if inner.is_valid:
        return memoryview(inner.as_buffer())
    path = cell.as_py().get("path") if cell is not inner and cell.is_valid else None
    if path:
        raise ValueError(
            f"{where} has no bytes but the path {path!r}: write the set anew by `save_to_disk` of "
            "Hugging Face's datasets, which puts the files into it"
        )
    raise ValueError(f"{where} has no image")


def _labels(
    table: Any,
    columns: _Columns,
    places: Sequence[tuple[Piece, int]],
    class_names: Sequence[str] | None,
) -> Labels | None:
    """The classes of all rows, checked."""
    if columns.label is None:
        return None
    types, kind = library("pyarrow").types, table.schema.field(columns.label).type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise ValueError(
            f"{places[0][0].where}: the column {columns.label!r} must hold numbers or names of "
            f"classes, got {kind}"
        )
    values = table[columns.label].to_pylist()
    names = columns.class_names
    if not types.is_integer(kind):
        names = tuple(class_names or sorted({value for value in values if value is not None}))
        index = {name: i for i, name in enumerate(names)}
        numbers = [index.get(value, -1) for value in values]
    else:
        numbers = [-1 if value is None else value for value in values]
    top = len(names) if names is not None else 2**31 - 1
    for number, value, (piece, row) in zip(numbers, values, places, strict=True):
        if not 0 <= number < top:
            known = f"one of {', '.join(names[:20])}" if names else "a number 0, 1, ..."
            raise ValueError(
                f"{piece.where}, row {row}: the class in {columns.label!r} must be {known}, got "
                f"{value!r}"
            )
    num_classes = max(numbers) + 1 if names is None else len(names)
    return Labels(np.asarray(numbers, np.int32), num_classes, names or ())


def library(name: str) -> Any:
    """A module of the extra `hf`, imported.

    Args:
        name: Name of the module.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"tables of images need {name}: pip install 'jaxgen[hf]' ({error})"
        ) from error
