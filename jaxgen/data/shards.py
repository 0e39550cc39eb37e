"""WebDataset shards: images with captions, labels and attributes in tar files, read at random.

A sample is what has one key in a shard: the members `KEY.png` (or another image), and where there
are any `KEY.txt` (a caption), `KEY.json` (an object with the fields of `jaxgen.data.captions`) and
`KEY.cls` (the number of a class). The key is the path up to the first dot of the file's name.
"""

import functools
import io
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.arrays import content_of
from jaxgen.data.captions import Row, entries_of, read_object
from jaxgen.data.folders import (
    content_digest,
    digest_of,
    files_in,
    find_split,
    is_hidden,
    split_by_name,
)
from jaxgen.data.images import (
    SUFFIXES,
    Header,
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

_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError)
_CLASS = re.compile(r"\s*[0-9]{1,9}\s*")
_BLOCK = 2**16


class Place(NamedTuple):
    """Where an image lies.

    Attributes:
        shard: Number of the shard.
        offset: First byte in it.
        size: Number of bytes.
    """

    shard: int
    offset: int
    size: int


class ShardSource:
    """The images of shards, read and decoded when they are indexed; from `shards`."""

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        places: Sequence[Place],
        shape: tuple[int, int, int],
        *,
        resize: bool,
        on_white: bool,
        split: str,
        part_of: int | None,
    ):
        self.files = list(files)
        self.names = list(names)
        self.places = np.array(places, np.int64)
        self.shape = shape
        self.resize = resize
        self.num_classes: int | None = None
        self.class_names: tuple[str, ...] = ()
        self.name = "shards"
        self.split = split
        how = "" if part_of is None else f" of {part_of}, by a hash of their keys"
        self._line = (
            f"shards, split {split} ({len(names)} images{how}), "
            f"{preprocessing(shape, resize=resize, on_white=on_white)}"
        )

    @property
    def spec(self) -> Spec:
        return image_spec(self.shape, False)

    @functools.cached_property
    def digest(self) -> str:
        return digest_of(content_of({"places": self.places}), content_digest(self.files))

    @property
    def protocol(self) -> str:
        return f"{self._line}, content {self.digest}"

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = empty_images(len(indices), self.shape)
        for image, index in zip(images, indices, strict=True):
            shard, offset, size = self.places[index].tolist()
            # Opened anew, so that threads and processes share no position.
            with self.files[shard].open("rb") as file:
                file.seek(offset)
                content = io.BytesIO(file.read(size))
            name = f"{self.files[shard]}: {self.names[index]}"
            image[:] = decode_image(content, self.shape, name, resize=self.resize)
        return {"image": images}


def shards(
    path: str | Path,
    split: str | None = None,
    *,
    resize: Resize = None,
    attribute_names: Sequence[str] | None = None,
    held_out: float = 0.05,
) -> Source:
    """The images of a folder of tar files, in the order of the files' names and of their members.

    Nothing is extracted: the tar files are read through once for the places of the images and for
    what is said of them. Folders in them and what is hidden (`._a.png`) do not count, members of
    other kinds are counted in a warning. Links are an error, as are compressed tar files.

    Args:
        path: Folder of the tar files.
        split: Subfolder to read instead of the folder; where it has none of the usual names,
            "train", "test" (the images held out, by a hash of shard and key) or "all"; None for the
            folder itself.
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            requires that all images have one size.
        attribute_names: Names of the attributes in their order, those of the training images say;
            None for those that hold for at least one image, sorted.
        held_out: Share of the images, roughly, that are held out where the folder is split itself.

    Returns:
        A source of `image`, and where the shards have them of `label`, `text` uint8 [captions,
        bytes] and `attributes` int32 [A].

    Raises:
        FileNotFoundError: No such folder, or no tar file in it.
        ValueError: A tar file that is broken or compressed; a link; two members of one name; a
            sample without an image or with several, or without a class where others have one; an
            image, a caption or attributes that cannot be used. Names tar file and member.
    """
    size = target_size(resize)
    root, part = find_split(Path(path), split, "shards")
    files = files_in(root, (".tar", *_COMPRESSED))
    if not files:
        raise FileNotFoundError(f"no tar files in {root} or its subfolders")
    for file in files:
        _check_plain(file)
    with ThreadPoolExecutor() as pool:
        read = functools.partial(_read_shard, need_size=size is None)
        parts = list(pool.map(read, range(len(files)), files))
    samples = [sample for one in parts for sample in one.samples]
    if not samples:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) in the tar files of {root}")
    if others := sum((one.others for one in parts), Counter()):
        warnings.warn(
            f"{root}: {others.total()} members of other kinds ({', '.join(sorted(others))}) are "
            f"left out; read are {', '.join(SUFFIXES)}, .txt, .json, .cls",
            stacklevel=2,
        )
    labels = _labels(samples)
    if part is not None:
        paths = [files[sample.place.shard].relative_to(root).as_posix() for sample in samples]
        keys = [f"{path}/{sample.key}" for path, sample in zip(paths, samples, strict=True)]
        keep = split_by_name(keys, part, held_out)
    else:
        keep = list(range(len(samples)))
    kept = [samples[i] for i in keep]
    where = [f"{files[sample.place.shard]}: {sample.name}" for sample in kept]
    shape, on_white = common_shape(where, [sample.header for sample in kept], size)
    source = ShardSource(
        files,
        [sample.name for sample in kept],
        [sample.place for sample in kept],
        shape,
        resize=size is not None,
        on_white=on_white,
        split=split or "all",
        part_of=None if part is None else len(samples),
    )
    arrays, names = entries_of([sample.row for sample in kept], attribute_names)
    if labels is not None:
        arrays["label"] = labels[keep]
    if not arrays:
        return source
    num_classes = None if labels is None else int(labels.max()) + 1
    return Joined(source, arrays, num_classes=num_classes, attribute_names=names)


class _Sample(NamedTuple):
    key: str
    name: str  # of the image's member
    place: Place
    header: Header
    row: Row
    label: int | None


class _Shard(NamedTuple):
    samples: list[_Sample]
    others: Counter[str]


def _check_plain(path: Path) -> None:
    """Raises a ValueError for a compressed file, which cannot be read at random."""
    with path.open("rb") as file:
        begins = file.read(6)
    if path.suffix.lower() in _COMPRESSED or begins.startswith(_MAGIC):
        raise ValueError(
            f"{path} is compressed, and cannot be read at random: unpack it to a plain .tar "
            "(gunzip, bunzip2, unxz or unzstd), whose images are compressed themselves"
        )


def _read_shard(number: int, path: Path, *, need_size: bool) -> _Shard:
    """The samples of a tar file, in the order of their first members."""
    images: dict[str, tuple[str, Place, Header]] = {}
    said: dict[str, dict[str, str]] = {}  # key -> suffix -> content
    others: Counter[str] = Counter()
    names: set[str] = set()
    for member, file in _members(path):
        path_in = PurePosixPath(member.name)
        stem, _, suffix = path_in.name.partition(".")
        key, suffix = (path_in.parent / stem).as_posix(), f".{suffix.lower()}"
        where = f"{path}: {member.name}"
        if f"{key}{suffix}" in names:
            raise ValueError(f"{where} is there twice")
        names.add(f"{key}{suffix}")
        if suffix in SUFFIXES:
            if key in images:
                raise ValueError(f"{where} is one more image of {images[key][0]}")
            place = Place(number, member.offset_data, member.size)
            header = read_header(file, where, need_size=need_size)
            images[key] = member.name, place, header
        elif suffix in (".txt", ".json", ".cls"):
            said.setdefault(key, {})[suffix] = _text(file, where)
        else:
            others[suffix] += 1
    if lacking := [key for key in said if key not in images]:
        raise ValueError(f"{path}: {lacking[0]}{next(iter(said[lacking[0]]))} is of no image")
    samples = [
        _Sample(key, *image, *_said(f"{path}: {key}", said.get(key, {})))
        for key, image in images.items()
    ]
    return _Shard(samples, others)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, io.BufferedReader]]:
    """The files of a tar file that count, checked."""
    try:
        with tarfile.open(path, "r:") as tar:
            before, total = -1, path.stat().st_size
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if member.offset <= before or member.size < 0:
                    raise ValueError(f"the header of {member.name} is damaged")
                if member.offset_data + member.size > total:
                    raise ValueError(f"it is cut off in {member.name}")
                before = member.offset
                if member.isdir() or any(map(is_hidden, PurePosixPath(member.name).parts)):
                    continue
                file = tar.extractfile(member) if member.isreg() else None
                if not isinstance(file, io.BufferedReader) or member.issparse():
                    raise _NoFileError(
                        f"{path}: {member.name} is no file but a link, say: write the shard anew, "
                        "by tar --dereference --hard-dereference"
                    )
                yield member, file
        _check_end(path, tar.offset)
    except _NoFileError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read as a tar file: {error}") from error


class _NoFileError(ValueError):
    """A member of another kind."""


def _check_end(path: Path, offset: int) -> None:
    """Raises a ValueError if anything but zeros follows the last member.

    `tarfile` takes a damaged header, or the end of the first of several joined tar files, for the
    end.
    """
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            if block.count(0) != len(block):
                raise ValueError(f"behind byte {offset} it is damaged, or another tar file follows")


def _text(file: io.BufferedReader, where: str) -> str:
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: it is not in UTF-8 ({error})") from error


def _said(where: str, said: dict[str, str]) -> tuple[Row, int | None]:
    """What the members of a sample say of its image: fields, and the class."""
    fields: dict[str, Any] = {}
    if ".json" in said:
        fields.update(read_object(said[".json"], f"{where}.json").fields)
    if ".txt" in said:
        fields["text"] = said[".txt"].strip()
    kinds = [kind for kind in (".txt", ".json") if kind in said]
    name = where + (f" ({', '.join(kinds)})" if len(kinds) > 1 else "".join(kinds))
    row, label = Row(name, fields), said.get(".cls")
    if label is None:
        return row, None
    if _CLASS.fullmatch(label) is None:
        raise ValueError(f"{where}.cls must be the number of a class, 0, 1, ..., got {label!r:.60}")
    return row, int(label)


def _labels(samples: Sequence[_Sample]) -> np.ndarray | None:
    """int32 [N], or None where no sample has a class."""
    labels = [sample.label for sample in samples]
    if all(label is None for label in labels):
        return None
    if None in labels:
        sample = samples[labels.index(None)]
        raise ValueError(f"{sample.row.where}: the class is missing (.cls), which others have")
    return np.asarray(labels, np.int32)
