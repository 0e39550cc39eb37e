"""TensorFlow Datasets without TensorFlow: reading image sets, and writing them for `prepare`.

The only module that imports `tensorflow_datasets`. Sets are read at random from the array_record
form, which their `dataset_info.json` on the disk describes, so that neither their builder's code
nor the network is needed.
"""

import contextlib
import functools
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxgen.data.captions import ATTRIBUTES, Row, entries_of
from jaxgen.data.folders import content_digest, digest_of
from jaxgen.data.images import (
    SUFFIXES,
    Resize,
    Spec,
    decode_image,
    empty_images,
    image_spec,
    target_size,
)
from jaxgen.data.joined import Joined
from jaxgen.data.sources import Source

WITHOUT_TENSORFLOW = ("cifar10", "fashion_mnist", "mnist")  # what `prepare` can write by itself
_NEEDS_TENSORFLOW = " (which needs TensorFlow: pip install 'jaxgen[tfds-prepare]')"
_NAME = re.compile(r"(?P<base>\w+)(/(?P<config>[^:]+?))?([:/](?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_METADATA = ("dataset_info.json", "features.json")
_CAPTIONS = ("text", "caption", "captions")
_CHUNK = 256  # records that are read at once for their captions


class TfdsSource:
    """Images, labels and attributes of a prepared TFDS set, decoded when they are indexed.

    The result of `tfds_source`, without the captions.
    """

    def __init__(
        self,
        records: Any,
        features: tfds.features.FeaturesDict,
        image_key: str,
        shape: tuple[int, int, int],
        *,
        resize: bool,
        name: str,
        split: str,
        directory: Path,
        instructions: Sequence[Any],
    ):
        self.records = records
        self.features = features
        self.image_key = image_key
        self.shape = shape
        self.resize = resize
        self.directory = directory
        self.name = name
        self.split = split
        self.num_classes = features["label"].num_classes if "label" in features else None
        self.class_names = tuple(features["label"].names) if "label" in features else ()
        self.attribute_names = tuple(sorted(_feature(features, ATTRIBUTES) or ()))
        self.instructions = instructions
        size = f"center-cropped and resized to {shape[0]}x{shape[1]}" if resize else "as they are"
        self._line = f"TFDS {name}, split {split} ({len(records)} images), {size}"

    @property
    def spec(self) -> Spec:
        spec = image_spec(self.shape, self.num_classes is not None)
        if not self.attribute_names:
            return spec
        return {**spec, ATTRIBUTES: ((len(self.attribute_names),), np.dtype(np.int32))}

    @functools.cached_property
    def digest(self) -> str:
        """Of the files' content, so that a set that was prepared otherwise is another set."""
        parts = [(one.skip, one.take) for one in self.instructions]
        files = [Path(one.filename) for one in self.instructions]
        names = [self.attribute_names] if self.attribute_names else []
        return digest_of(self.class_names, parts, content_digest(files), *names)

    @property
    def protocol(self) -> str:
        return f"{self._line}, content {self.digest}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self.read(indices)
        batch = {"image": empty_images(len(records), self.shape)}
        if self.num_classes is not None:
            batch["label"] = np.empty(len(records), np.int32)
        if self.attribute_names:
            batch[ATTRIBUTES] = np.empty((len(records), len(self.attribute_names)), np.int32)
        undecoded = {self.image_key: tfds.decode.SkipDecoding()}
        for i, record in enumerate(records):
            example = self.features.deserialize_example_np(record, decoders=undecoded)
            # With Pillow ourselves: the same bytes on every machine, with OpenCV or without.
            file, name = io.BytesIO(example[self.image_key]), self.name_of(indices[i])
            batch["image"][i] = decode_image(file, self.shape, name, resize=self.resize)
            if "label" in batch:
                batch["label"][i] = example["label"]
            if ATTRIBUTES in batch:
                batch[ATTRIBUTES][i] = [example[ATTRIBUTES][key] for key in self.attribute_names]
        return batch

    def name_of(self, index: int | np.integer) -> str:
        """The example's name in error messages."""
        return f"{index} of {self.name}, split {self.split}"

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The records of examples, as they are stored.

        Raises:
            ValueError: Damaged files.
        """
        try:
            records = self.records.__getitems__([int(i) for i in indices])
            if not all(records):  # the only sign of a file truncated at a block's end
                raise RuntimeError("empty records")
        except RuntimeError as error:  # array_record's checksums do not match
            raise ValueError(
                f"the set {self.name} in {self.directory} is damaged: delete that directory and "
                f"prepare it again ({error})"
            ) from error
        return list(records)


def tfds_source(
    name: str, split: str = "train", data_dir: str | Path | None = None, *, resize: Resize = None
) -> Source:
    """An image set of TensorFlow Datasets, prepared in the array_record form.

    Args:
        name: Name of the set, such as "cifar10", "cifar10:3.0.2" or "imagenet_resized/64x64";
            without a version, the newest that is prepared.
        split: Name of the split, such as "train" or "test", or a slice or sum of splits in TFDS's
            syntax, such as "train[:10%]".
        data_dir: Directory of the TFDS sets, or of the prepared set itself; None for
            $TFDS_DATA_DIR or ~/tensorflow_datasets.
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            keeps the images' own size.

    Returns:
        A source of the feature `image`, or the only image feature; of `label` if that is a class;
        of `attributes` int32 [A] where that is a dictionary of booleans, as CelebA has it; and of
        `text` uint8 [captions, bytes] where `text`, `caption` or `captions` is a text, a sequence
        of them, or one of dictionaries with `text` or `caption`, as COCO has them. For the text all
        records are read once. Nothing is downloaded.

    Raises:
        FileNotFoundError: No such directory, or a set that is not prepared there or lacks files.
        ValueError: A set in another form, without an 8-bit image feature, or with images of several
            sizes and no `resize`; an unknown split; an example without a caption.
    """
    size = target_size(resize)
    root = data_directory(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no data directory {root}; {_how_to_prepare(name, root)}")
    directory = prepared_directory(name, root)
    if directory is None:
        own = any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        hint = f". For the images that lie there: --data.name folder:{root}" if own else ""
        raise FileNotFoundError(
            f"{name} is not prepared in {root}; {_how_to_prepare(name, root)}{hint}"
        )
    formats = file_formats(directory)
    if "array_record" not in formats:
        raise ValueError(
            f"{directory} is in the form {', '.join(formats)}, which cannot be read at random "
            f"without TensorFlow; {_how_to_prepare(name, Path('OTHER'))}"
        )
    builder = tfds.builder_from_directory(directory, "array_record")
    info = builder.info
    image_key = _image_key(info, directory)
    keys = [image_key, *_label_key(info), *_attributes_key(info)]
    shape = _shape(info.features[image_key], size, f"{info.full_name} in {directory}")
    instructions = info.splits[split].file_instructions
    for instruction in instructions:
        if not os.path.exists(instruction.filename):
            raise FileNotFoundError(
                f"{instruction.filename} is missing: delete {directory} and prepare the set again; "
                f"{_how_to_prepare(name, root)}"
            )
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = TfdsSource(
        builder.as_data_source(split, deserialize_method=raw),
        tfds.features.FeaturesDict({key: info.features[key] for key in keys}),
        image_key,
        shape,
        resize=size is not None,
        name=info.full_name,
        split=split,
        directory=directory,
        instructions=instructions,
    )
    for key in _CAPTIONS:
        if (texts := _texts_of(_feature(info.features, key))) is not None:
            rows = _rows(source, key, info.features[key], texts)
            return Joined(source, entries_of(rows).arrays)
    return source


def data_directory(data_dir: str | Path | None) -> Path:
    """`data_dir`, or by default $TFDS_DATA_DIR or ~/tensorflow_datasets, as in TFDS."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def base_name(name: str) -> str:
    """The set's name without configuration and version.

    Raises:
        ValueError: A name that is not of the form `set[/config][:version]`.
    """
    return _parse(name)[0]


def known_names(data_dir: str | Path | None = None) -> list[str]:
    """The sets that TFDS has builders of, and those prepared in a data directory."""
    root = data_directory(data_dir)
    local = [root.parent.name, root.parent.parent.name] if _is_prepared(root) else []
    local += [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    return sorted({*tfds.list_builders(with_community_datasets=False), *local})


def prepared_directory(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The directory of a prepared set: `data_dir/set[/config]/version`, `data_dir` itself, or None.

    Without a version it is that of the newest, without a configuration that of the only one.

    Raises:
        ValueError: If several configurations are prepared and the name chooses none.
    """
    root, (base, config, version) = data_directory(data_dir), _parse(name)
    if _is_prepared(root):
        names = (root.parent.name, root.parent.parent.name)  # of set/version, set/config/version
        return root if base in names else None
    parent = root / base
    if config:
        return _newest(parent / config, version)
    directory = _newest(parent, version)
    if directory is None and parent.is_dir():
        paths = {d.name: _newest(d, version) for d in sorted(parent.iterdir())}
        configs = {key: path for key, path in paths.items() if path is not None}
        if len(configs) > 1:
            choices = ", ".join(f"{base}/{key}" for key in configs)
            raise ValueError(
                f"{name!r} is prepared in several configurations; choose one of {choices}"
            )
        directory = next(iter(configs.values()), None)
    return directory


def file_formats(directory: Path) -> list[str]:
    """The forms in which a set is prepared: "array_record", "tfrecord", ..."""
    info = tfds.builder_from_directory(directory).info
    return sorted(form.value for form in info.available_file_formats())


def write_set(
    name: str,
    splits: Mapping[str, Iterable[tuple[int, dict[str, Any]]]],
    data_dir: Path,
    label_names: Sequence[str] | None = None,
) -> Path:
    """Writes a set that TFDS has a builder of, in the array_record form that this builder reads.

    The set is written to a temporary directory and moved to its own at the end, so that it is
    prepared wholly or not at all.

    Args:
        name: Name of the set.
        splits: Split -> (key, example) pairs; keys give the order on the disk, images are PNG
            files.
        data_dir: Directory of the TFDS sets; created if it is missing.
        label_names: Names of the classes, where the builder reads them from the archive.

    Returns:
        The directory of the prepared set.
    """

    def prepare(builder: tfds.core.DatasetBuilder) -> None:
        if label_names is not None:
            builder.info.features["label"].names = list(label_names)
        builder._split_generators = lambda dl_manager: dict(splits)  # the hook of every builder

    return _prepare(name, data_dir, prepare)


def prepare_with_tensorflow(name: str, data_dir: Path) -> Path:
    """Lets TFDS download and prepare any set of its own, as array_record; needs TensorFlow."""
    return _prepare(name, data_dir, lambda builder: None)


def _prepare(name: str, data_dir: Path, customize: Any) -> Path:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=data_dir) as scratch:
        builder = tfds.builder(name, data_dir=scratch, file_format="array_record")
        customize(builder)
        with contextlib.redirect_stdout(io.StringIO()):  # it would name the scratch directory
            builder.download_and_prepare()
        written = Path(builder.data_dir)
        directory = data_dir / written.relative_to(scratch)
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(written, directory)
        except OSError:
            if not _is_prepared(directory):  # another process may have been faster
                raise
    return directory


def _parse(name: str) -> tuple[str, str | None, str | None]:
    """(set, configuration, version)."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"a TFDS name is set[/config][:version], got {name!r}")
    return match["base"], match["config"], match["version"]


def _is_prepared(directory: Path) -> bool:
    return all((directory / file).is_file() for file in _METADATA)


def _newest(directory: Path, version: str | None) -> Path | None:
    if not directory.is_dir():
        return None
    versions = [d for d in directory.iterdir() if _VERSION.fullmatch(d.name) and _is_prepared(d)]
    versions = [d for d in versions if version in (None, d.name)]
    return max(versions, key=lambda d: tuple(map(int, d.name.split("."))), default=None)


def _how_to_prepare(name: str, root: Path) -> str:
    base = base_name(name)
    needs, name = ("", base) if base in WITHOUT_TENSORFLOW else (_NEEDS_TENSORFLOW, name)
    return f"prepare it{needs}: python -m jaxgen.data prepare {name} --data-dir {root}"


def _image_key(info: tfds.core.DatasetInfo, directory: Path) -> str:
    images = [k for k, f in info.features.items() if isinstance(f, tfds.features.Image)]
    if "image" in images:
        return "image"
    if len(images) != 1:
        raise ValueError(
            f"{info.full_name} in {directory} has no feature 'image', and not exactly one image "
            f"feature instead; its features are {', '.join(info.features)}"
        )
    return images[0]


def _label_key(info: tfds.core.DatasetInfo) -> list[str]:
    is_class = isinstance(dict(info.features.items()).get("label"), tfds.features.ClassLabel)
    return ["label"] if is_class else []


def _feature(features: tfds.features.FeaturesDict, key: str) -> Any:
    """The feature of a name, or None; the class has no `get`."""
    return dict(features.items()).get(key)


def _attributes_key(info: tfds.core.DatasetInfo) -> list[str]:
    feature = _feature(info.features, ATTRIBUTES)
    if not isinstance(feature, tfds.features.FeaturesDict):
        return []
    booleans = [one.shape == () and one.np_dtype == np.bool_ for one in feature.values()]
    return [ATTRIBUTES] if booleans and all(booleans) else []


def _texts_of(feature: Any) -> Callable[[Any], list[bytes]] | None:
    """How to get the captions from what a feature gives; None of one that has no captions."""
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):
            key = next((key for key in _CAPTIONS if _is_text(_feature(inner, key))), None)
            return None if key is None else lambda value: list(value[key])
        return list if _is_text(inner) else None
    return (lambda value: [value]) if _is_text(feature) else None


def _is_text(feature: Any) -> bool:
    is_tensor = isinstance(feature, tfds.features.Tensor)
    return is_tensor and feature.shape == () and feature.np_dtype == np.object_


def _rows(
    source: TfdsSource, key: str, feature: Any, texts: Callable[[Any], list[bytes]]
) -> list[Row]:
    """The captions of all examples."""
    features = tfds.features.FeaturesDict({key: feature})
    rows = []
    for begin in range(0, len(source), _CHUNK):
        indices = np.arange(begin, min(begin + _CHUNK, len(source)))
        for index, record in zip(indices, source.read(indices), strict=True):
            where = f"the example {source.name_of(index)}"
            captions = texts(features.deserialize_example_np(record)[key])
            try:
                fields = {"text": [caption.decode() for caption in captions]}
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: a caption is not in UTF-8 ({error})") from error
            rows.append(Row(where, fields))
    return rows


def _shape(
    image: tfds.features.Image, size: tuple[int, int] | None, name: str
) -> tuple[int, int, int]:
    height, width, channels = image.shape
    if image.np_dtype != np.uint8 or channels not in (1, 3, 4):
        raise ValueError(
            f"the images of {name} are {np.dtype(image.np_dtype)} of {channels} channels; they "
            "must be uint8 of 1, 3 or 4 channels"
        )
    if size is None and (height is None or width is None):
        raise ValueError(
            f"the images of {name} differ in size; give resize= to crop and resize all to one size"
        )
    return (*(size or (height, width)), channels)
