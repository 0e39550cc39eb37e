"""Folders of images with captions and attributes beside them, as Hugging Face's ImageFolder has it.

`metadata.jsonl` has an object a line, `metadata.csv` a header and a row a line. `file_name` is the
path of an image within the folder; the other fields are those of `jaxgen.data.captions`.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from jaxgen.data.captions import FILE_NAME, Row, entries_of, read_object
from jaxgen.data.folders import METADATA
from jaxgen.data.images import FolderSource, Resize, folder
from jaxgen.data.joined import Joined
from jaxgen.data.sources import Source


def captioned_folder(
    path: str | Path,
    split: str | None = None,
    *,
    resize: Resize = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
) -> Source:
    """The images of a folder with their captions and attributes, where it has a file of them.

    Args:
        path: Folder of the images.
        split: Subfolder, which has its own file; or a part, as of `jaxgen.data.images.folder`.
        resize: Size, or (height, width), to which every image is center-cropped and resized.
        class_names: Names of the classes in the order of their labels; None for the subfolders'.
        attribute_names: Names of the attributes in their order, those of the training images say;
            None for those that hold for at least one image, sorted.

    Returns:
        A source of `image`, of `label` where there are subfolders, and where the file has them of
        `text` uint8 [captions, bytes] and `attributes` int32 [A].

    Raises:
        FileNotFoundError: No such folder, or no image in it.
        ValueError: An image that cannot be used (see `jaxgen.data.images.folder`); two files of
            metadata; a row that is broken, names no image, or one that another row names; an image
            without a row; captions or attributes that cannot be used. Names file and line.
    """
    source = folder(path, split, resize=resize, class_names=class_names)
    files = [source.root / name for name in METADATA if (source.root / name).is_file()]
    if len(files) > 1:
        raise ValueError(f"{source.root} must have one of {' and '.join(METADATA)}, not both")
    if not files:
        return source
    rows = _of_images(source, files[0])
    entries = entries_of(rows, attribute_names)
    if not entries.arrays:
        fields = sorted({key for row in rows for key in row.fields} - {FILE_NAME})
        warnings.warn(
            f"{files[0]} is left out: it has neither text nor attributes, but the fields "
            f"{', '.join(fields) or 'none'}",
            stacklevel=2,
        )
        return source
    return Joined(source, entries.arrays, attribute_names=entries.attribute_names)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a `.jsonl` or `.csv` file.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is broken; names it and the line.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: it is not in UTF-8 ({error})") from error
    return (_rows_of_csv if Path(path).suffix.lower() == ".csv" else _rows_of_json)(path, text)


def _rows_of_json(path: str | Path, text: str) -> list[Row]:
    # Not `splitlines`, which takes marks inside of captions for ends of lines.
    lines = enumerate(text.split("\n"), 1)
    return [read_object(line, f"{path}, line {i}") for i, line in lines if line.strip()]


def _rows_of_csv(path: str | Path, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    begin = 1
    try:
        for values in reader:
            where, begin = f"{path}, line {begin}", reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = values
                if twice := [name for name in header if header.count(name) > 1]:
                    raise ValueError(f"{where}: the header has {twice[0]!r} more than once")
                continue
            if len(values) != len(header):
                raise ValueError(f"{where}: it has {len(values)} values, the header {len(header)}")
            rows.append(Row(where, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _of_images(source: FolderSource, path: Path) -> list[Row]:
    """The row of each image of a source, in its order."""
    rows: dict[Path, Row] = {}
    for row in read_rows(path):
        file = source.root / _name_of(row)
        if file in rows:
            raise ValueError(
                f"{row.where}: the image {file} has a row already ({rows[file].where})"
            )
        if not file.is_file():
            raise ValueError(f"{row.where}: there is no image {file}")
        rows[file] = row
    if lacking := [file for file in source.files if file not in rows]:
        raise ValueError(
            f"{path} has no row of the image {lacking[0]} ({len(lacking)} images have none)"
        )
    return [rows[file] for file in source.files]


def _name_of(row: Row) -> PurePosixPath:
    """The path of a row's image within the folder, checked."""
    name = row.fields.get(FILE_NAME)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{row.where}: {FILE_NAME!r} must name an image, got {name!r}")
    file = PurePosixPath(name)
    if file.is_absolute() or ".." in file.parts or "\0" in name:
        raise ValueError(f"{row.where}: {FILE_NAME!r} must be a path in the folder, got {name!r}")
    return file
