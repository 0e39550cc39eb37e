"""Random-access sources of examples: arrays, the embedded digits, folders of images, TFDS sets.

Images are uint8 `[N, H, W, C]` and labels int32 `[N]`, whatever the source.
"""

import difflib
import functools
import importlib.resources
import io
import itertools
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxgen.checks import check_memory
from jaxgen.data.arrays import as_stored, content_of
from jaxgen.data.folders import digest_of
from jaxgen.data.images import Resize, Spec, fit_image, target_size
from jaxgen.data.places import PLACED, name_and_place

DEFAULT_LIMIT_BYTES = 2**31
OWN = ("digits", "captioned_digits", *PLACED)
"""Names of the sets that are not of TFDS."""
_DECODE_CHUNK = 256


@runtime_checkable
class Source(Protocol):
    """Examples by index.

    Attributes:
        name: Name of the data set.
        split: Name of the split that the examples are from.
        num_classes: Number of classes, whose labels are 0, ..., num_classes - 1; None where there
            are no labels.
        class_names: Names of the classes, in the order of the labels; () where they have none.
        spec: Entry's name -> (shape, dtype) of one example.
        digest: 16 hexadecimal digits that change with the examples, their order, their labels and
            the names of the classes, and not with the place where they are kept.
        protocol: One line that names set, version, split, preprocessing and `digest` beside a
            result. Whatever remembers a set remembers this.
    """

    name: str
    split: str
    num_classes: int | None
    class_names: tuple[str, ...]

    @property
    def spec(self) -> Spec: ...

    @property
    def digest(self) -> str: ...

    @property
    def protocol(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, integers [n], stacked: name -> [n, ...]."""
        ...


class ArraySource:
    """A source in memory.

    Args:
        arrays: Name -> [N, ...]: `image` uint8 [N, H, W, C], `label` int32 [N] where there are
            labels, and whatever else an experiment needs. Of 64 bits 32 are kept
            (`jaxgen.data.arrays.as_stored`).
        name: Name of the data set.
        split: Name of the split that the examples are from.
        protocol: Line that names set, version, split and preprocessing beside a result, to which
            the digest is added; by default it consists of name, split and size.
        num_classes: Number of classes; by default that of `class_names`, or the largest label plus
            one.
        class_names: Names of the classes, in the order of the labels.
        attribute_names: Names of the columns of `attributes`.
        decoded_from: Source whose examples, all of them and in its order, these are; its digest and
            its protocol hold for them.

    Raises:
        ValueError: No arrays, lengths that differ, labels outside [0, num_classes), or numbers that
            32 bits cannot hold.
        TypeError: An `image` that is not uint8 of four dimensions, or a `label` that is not int32
            of one dimension; an array of anything but real numbers.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        name: str = "arrays",
        split: str = "all",
        protocol: str | None = None,
        num_classes: int | None = None,
        class_names: tuple[str, ...] = (),
        attribute_names: tuple[str, ...] = (),
        decoded_from: Source | None = None,
    ):
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays must be one or more arrays of one length, got {lengths}")
        image, label = arrays.get("image"), arrays.get("label")
        if image is not None and (image.dtype != np.uint8 or image.ndim != 4):
            raise TypeError(f"image must be uint8 [N, H, W, C], got {image.dtype} {image.shape}")
        if label is not None:
            if label.dtype != np.int32 or label.ndim != 1:
                raise TypeError(f"label must be int32 [N], got {label.dtype} {label.shape}")
            top = int(label.max(initial=0))
            if num_classes is None:
                num_classes = len(class_names) or top + 1
            if top >= num_classes or label.min(initial=0) < 0:
                raise ValueError(f"each label must be in [0, {num_classes}), got {label}")
        self.arrays = {key: as_stored(array, f"the entry {key!r}") for key, array in arrays.items()}
        self.name = name
        self.split = split
        self.num_classes = num_classes
        self.class_names = class_names
        self.attribute_names = attribute_names
        self._length = next(iter(lengths.values()))
        self._line = protocol or f"{name}, split {split} ({self._length} examples)"
        self._decoded_from = decoded_from

    @property
    def spec(self) -> Spec:
        return {key: (array.shape[1:], array.dtype) for key, array in self.arrays.items()}

    @functools.cached_property
    def digest(self) -> str:
        if self._decoded_from is not None:
            return self._decoded_from.digest
        return digest_of(self.class_names, content_of(self.arrays))

    @property
    def protocol(self) -> str:
        if self._decoded_from is not None:
            return self._decoded_from.protocol
        return f"{self._line}, content {self.digest}"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {key: array[indices] for key, array in self.arrays.items()}


def digits(split: str = "train", *, resize: Resize = None) -> ArraySource:
    """The 1,797 real 8x8 handwritten digits of the UCI set, embedded in the package.

    They are scikit-learn's copy, in its order, with the gray levels v in 0..16 stored as the bytes
    round(255 v / 16). The two splits are a fixed random choice, stratified by class; the copy does
    not name the writers, so both splits have digits by the same writers. Source and licence are in
    `digits.LICENSE` beside this file.

    Args:
        split: Name of the split: "train" (1,500 digits), "test" (297) or "all".
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            keeps 8x8.

    Returns:
        A source of `image` [8, 8, 1] (or as resized) and `label`, ten classes.

    Raises:
        ValueError: Another split, or a size below 1 or beyond the machine's memory.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split of digits must be 'train', 'test' or 'all', got {split!r}")
    raw = importlib.resources.files("jaxgen.data").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(raw)) as data:
        image, label, test = data["image"], data["label"], data["test"]
    rows = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
    images, size = image[rows][..., None], target_size(resize)
    if size is not None:
        check_memory(f"{len(images)} digits of {size[0]}x{size[1]}", len(images) * math.prod(size))
        images = np.stack([fit_image(one, size) for one in images])
    height, width = images.shape[1:3]
    return ArraySource(
        {"image": images, "label": label[rows].astype(np.int32)},
        name="digits",
        split=split,
        protocol=f"UCI digits {height}x{width}, scikit-learn's copy, split {split} "
        f"({rows.sum()} of 1797)",
        num_classes=10,
    )


def load(
    name: str,
    split: str | None = None,
    data_dir: str | Path | None = None,
    *,
    resize: Resize = None,
) -> Source:
    """A source of images by name, as experiments load them.

    Args:
        name: Name of the set: "digits" or "captioned_digits" (embedded); "folder" (of images, with
            captions and attributes where they lie beside them), "shards" (WebDataset's tar files),
            "parquet" or "hf" (Hugging Face's `datasets`), with the place in `data_dir` or in the
            name itself ("folder:photos"); or any TFDS image set that is prepared in the
            array_record form: "cifar10", "cifar10:3.0.2", "imagenet_resized/64x64".
        split: Name of the split; by default "train" for digits and TFDS sets (which accept slices
            such as "train[:10%]"), and all examples of the others (see
            `jaxgen.data.images.folder`).
        data_dir: Directory of the TFDS sets (by default $TFDS_DATA_DIR or ~/tensorflow_datasets),
            or the place of the others (`jaxgen.data.places`).
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            keeps the images' own size.

    Returns:
        The source; nothing is downloaded.

    Raises:
        ValueError: An unknown set (similar names are given) or split; a missing or unusable
            argument; an unusable image or row. See `jaxgen.data.metadata.captioned_folder`,
            `jaxgen.data.shards.shards`, `jaxgen.data.parquet.parquet`,
            `jaxgen.data.hugging_face.hugging_face` and `jaxgen.data.tfds.tfds_source`.
        FileNotFoundError: A missing directory, or a set that is not prepared; the error says how to
            prepare it.
    """
    if name == "digits":
        return digits(split or "train", resize=resize)
    if name == "captioned_digits":
        from jaxgen.data.captioned_digits import captioned_digits

        if resize is not None:
            raise ValueError(f"captioned_digits keeps its size of 16x16, got resize {resize}")
        return captioned_digits(split or "train")
    kind, place = name_and_place(name, data_dir)
    if kind in PLACED:
        return _from_files(kind, place, split, resize)
    from jaxgen.data import tfds

    root = tfds.data_directory(data_dir)
    known = tfds.known_names(root)
    if tfds.base_name(name) not in known:
        near = difflib.get_close_matches(tfds.base_name(name), [*OWN, *known])
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise ValueError(
            f"unknown data set {name!r}{hint} Known are {', '.join(map(repr, OWN))} and the image "
            "sets of TensorFlow Datasets, by their names there."
        )
    return tfds.tfds_source(name, split or "train", root, resize=resize)


def load_pair(
    name: str,
    splits: tuple[str | None, str | None],
    data_dir: str | Path | None = None,
    *,
    resize: Resize = None,
) -> tuple[Source, Source]:
    """Images to train on and held-out ones of one set, whose labels mean the same classes.

    Args:
        name: Name of the set, as for `load`.
        splits: Names of the two splits, that to train on first.
        data_dir: Directory of the sets, or the folder of images.
        resize: Size, or (height, width), to which every image is center-cropped and resized.

    Returns:
        The two sources. A folder's held-out classes are numbered as the training classes are, and
        held-out examples have the attributes that hold in training.

    Raises:
        ValueError: As `load`, and where the two sets do not belong together (`check_alike`).
        FileNotFoundError: As `load`.
    """
    train = load(name, splits[0], data_dir, resize=resize)
    kind, place = name_and_place(name, data_dir)
    if kind in PLACED:
        held_out = _from_files(kind, place, splits[1], resize, train)
    else:
        held_out = load(name, splits[1], data_dir, resize=resize)
    check_alike(train, held_out)
    return train, held_out


def check_alike(train: Source, held_out: Source) -> None:
    """Checks that held-out examples are of the kind that a model was trained on.

    Args:
        train: Source of the examples to train on.
        held_out: Source of the examples to evaluate on.

    Raises:
        ValueError: If one has an entry that the other lacks (labels, say), an entry's shape or
            dtype differs (of `text` only the number of dimensions, as its sizes are those of the
            longest caption), or the classes or attributes do; says what, and names both.
    """
    names = [f"{source.name}, split {source.split}" for source in (train, held_out)]
    sets = f"the training set ({names[0]}) and the held-out set ({names[1]})"
    for entry in sorted({*train.spec, *held_out.spec}):
        shown = [_shown(entry, source.spec) for source in (train, held_out)]
        if shown[0] != shown[1]:
            raise ValueError(f"{sets} differ in {entry!r}: {shown[0]} and {shown[1]}")
    for what in ("class_names", "attribute_names"):
        pairs = [getattr(source, what, ()) for source in (train, held_out)]
        both = itertools.zip_longest(*pairs, fillvalue="none")
        if differing := [f"{i}: {a} and {b}" for i, (a, b) in enumerate(both) if a != b]:
            plural = {"class_names": "classes", "attribute_names": "attributes"}[what]
            raise ValueError(f"{sets} differ in their {plural} ({'; '.join(differing[:3])})")
    if (held_out.num_classes or 0) > (train.num_classes or 0):
        raise ValueError(
            f"{sets} differ in their classes: {train.num_classes} and {held_out.num_classes}"
        )


def _shown(entry: str, spec: Spec) -> str:
    """What `check_alike` compares of an entry, as text."""
    if entry not in spec:
        return "no such entry"
    shape, dtype = spec[entry]
    return f"{dtype} of {len(shape)} dimensions" if entry == "text" else f"{dtype}{list(shape)}"


def _from_files(
    name: str,
    path: str | Path | None,
    split: str | None,
    resize: Resize,
    train: Source | None = None,
) -> Source:
    """A set by its place, of the training examples' classes and attributes where these are given.

    Raises:
        ValueError: No path; and as of the functions that read them.
    """
    from jaxgen.data.hugging_face import hugging_face
    from jaxgen.data.metadata import captioned_folder
    from jaxgen.data.parquet import parquet
    from jaxgen.data.shards import shards

    if path is None:
        raise ValueError(f"the data set {name!r} needs data_dir (--data.dir), {PLACED[name]}")
    attribute_names = getattr(train, "attribute_names", ()) or None
    if name == "shards":
        return shards(path, split, resize=resize, attribute_names=attribute_names)
    read: Any = {"folder": captioned_folder, "parquet": parquet, "hf": hugging_face}[name]
    class_names = getattr(train, "class_names", ()) or None
    return read(
        path, split, resize=resize, class_names=class_names, attribute_names=attribute_names
    )


def nbytes(source: Source, num: int | None = None) -> int:
    """The size of so many decoded examples of a source, by default of all of them, in bytes."""
    example = sum(math.prod(shape) * dtype.itemsize for shape, dtype in source.spec.values())
    return (len(source) if num is None else num) * example


def resident(source: Source, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Source:
    """The source in memory, decoded once, where it fits.

    Args:
        source: Source of any kind.
        limit_bytes: Greatest size of the decoded arrays, in bytes.

    Returns:
        An `ArraySource` of the same examples if they take at most `limit_bytes`; otherwise the
        source itself.
    """
    return decode(source) if nbytes(source) <= limit_bytes else source


def decode(source: Source) -> ArraySource:
    """The whole source in memory, decoded by threads; an `ArraySource` is returned as it is."""
    if isinstance(source, ArraySource):
        return source
    check_memory(f"the set {source.name} in memory", nbytes(source))
    arrays = {k: np.empty((len(source), *shape), d) for k, (shape, d) in source.spec.items()}

    def fill(begin: int) -> None:
        rows = np.arange(begin, min(begin + _DECODE_CHUNK, len(source)))
        for key, values in source[rows].items():
            arrays[key][rows] = values

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, len(source), _DECODE_CHUNK)))
    return ArraySource(
        arrays,
        name=source.name,
        split=source.split,
        num_classes=source.num_classes,
        class_names=source.class_names,
        attribute_names=getattr(source, "attribute_names", ()),
        decoded_from=source,
    )
