"""Parquet files of images, as Hugging Face's hub has them, as a source."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxgen.checks import check_memory
from jaxgen.data.folders import SPLITS, files_in, named_split
from jaxgen.data.images import Resize
from jaxgen.data.sources import Source
from jaxgen.data.tables import Piece, library, table_source

T = TypeVar("T")
_SPLIT = re.compile(r"([a-z]+)[-_.]")  # train-00000-of-00002.parquet


def parquet(
    path: str | Path,
    split: str | None = None,
    *,
    resize: Resize = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    held_out: float = 0.05,
) -> Source:
    """The images of a parquet file, or of those in a folder and its subfolders, by their names.

    The encoded images lie in memory; a set that is too large for that is read from the disk as
    `jaxgen.data.hugging_face.hugging_face` does.

    Args:
        path: A parquet file, or a folder of some.
        split: Subfolder, or files that begin with the name (`train-00000-of-00002.parquet`); where
            no file begins with the name of a split, or all with "train", it is "train", "test" (the
            rows held out, by a hash of file and row) or "all"; None for all rows.
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            requires that all images have one size.
        class_names: Names of the classes where the column holds names, those of the training images
            say; None for all that occur, sorted.
        attribute_names: Names of the attributes in their order, those of the training images say;
            None for those that hold for at least one image, sorted.
        held_out: Share of the rows, roughly, that are held out where there are no such splits.

    Returns:
        A source of `image`, and where the table has them of `label`, `text` uint8 [captions, bytes]
        and `attributes` int32 [A].

    Raises:
        ImportError: Without pyarrow (the extra `hf`).
        FileNotFoundError: No such file, folder or split; a folder without parquet files.
        ValueError: A file that is broken, or has other columns than the first; a row whose image,
            class, captions or attributes cannot be used (names file and row); more bytes than the
            machine has memory.
    """
    pq = library("pyarrow.parquet")
    root, files, part = _files(Path(path).expanduser(), split)
    num_bytes = sum(_read(pq, file, _num_bytes) for file in files)
    check_memory(f"the encoded images of {root}", num_bytes)
    pieces = [
        Piece(file.relative_to(root).as_posix(), str(file), _read(pq, file, lambda f: f.read()))
        for file in files
    ]
    return table_source(
        pieces,
        "parquet",
        split,
        part,
        resize=resize,
        class_names=class_names,
        attribute_names=attribute_names,
        held_out=held_out,
    )


def _files(path: Path, split: str | None) -> tuple[Path, list[Path], str | None]:
    """The root, its parquet files of a split, and which part of their rows where it is one."""
    if path.is_file():
        return path, [path], named_split(set(), split, str(path))[1]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no parquet file or folder of some {path}")
    if split is not None and (path / split).is_dir():
        root, part = path / split, None
        files = files_in(root, (".parquet",))
    else:
        root, files = path, files_in(path, (".parquet",))
        names = [_split_of(file) for file in files]
        known = {name for name in names if name is not None}
        chosen, part = named_split(set() if None in names else known, split, str(path))
        if chosen is not None:
            files = [file for file, name in zip(files, names, strict=True) if name == chosen]
    if not files:
        raise FileNotFoundError(f"no parquet files in {root} or its subfolders")
    return root, files, part


def _split_of(file: Path) -> str | None:
    """The split that a file's name begins with, or None."""
    match = _SPLIT.match(file.name)
    return match[1] if match is not None and match[1] in SPLITS else None


def _num_bytes(opened: Any) -> int:
    """The size of a file's columns in memory, in bytes."""
    groups = map(opened.metadata.row_group, range(opened.num_row_groups))
    return sum(group.total_byte_size for group in groups)


def _read(pq: Any, file: Path, what: Callable[[Any], T]) -> T:
    """What a function reads of a file, which is closed again: there may be thousands."""
    try:
        with pq.ParquetFile(file) as opened:
            return what(opened)
    except (ValueError, OSError) as error:  # pyarrow's own are of these kinds
        raise ValueError(f"{file} cannot be read as a parquet file: {error}") from error
