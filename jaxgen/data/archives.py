"""The official archives of CIFAR-10 and MNIST, read so that no code in them can run."""

import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen import pickles
from jaxgen.checks import check_memory


class Contents(NamedTuple):
    """The contents of an archive.

    Attributes:
        splits: Split -> (uint8 [N, H, W, C], integer labels [N]).
        label_names: Names of the classes, where TFDS takes them from the archive.
    """

    splits: Mapping[str, tuple[np.ndarray, np.ndarray]]
    label_names: Sequence[str] | None = None


def read_mnist(paths: Mapping[str, Path]) -> Contents:
    """The contents of MNIST's four files, or Fashion-MNIST's.

    Args:
        paths: Path of each file by its official name.

    Raises:
        ValueError: If a file is damaged, or another one than its name says.
    """

    def split(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images = _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"], 3)
        labels = _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"], 1)
        if images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise ValueError(
                f"the {prefix} files must hold 28x28 images, a label each; they hold images "
                f"{images.shape} and labels {labels.shape}"
            )
        return images[..., None], labels

    return Contents({"train": split("train"), "test": split("t10k")})


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """An idx file of bytes: 0, 0, 8 and the rank, then big-endian sizes, then the values."""
    start = 4 + 4 * ndim
    try:
        with gzip.open(path) as file:
            head = file.read(start)
            shape = np.frombuffer(head[4:], ">u4").tolist()
            if head[:4] != bytes((0, 0, 8, ndim)) or len(shape) != ndim:
                raise ValueError(f"{path} is not an idx file of {ndim}-dimensional bytes")
            check_memory(str(path), math.prod(shape))
            raw = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a valid gzip file: {error}") from error
    if len(raw) != math.prod(shape):
        raise ValueError(f"{path} is not an idx file of {ndim}-dimensional bytes {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def read_cifar10(paths: Mapping[str, Path]) -> Contents:
    """The contents of one of CIFAR-10's archives, the binary version or the Python version.

    Args:
        paths: Path of the archive by its official name.

    Raises:
        ValueError: If the file is damaged or no such archive.
    """
    (path,) = paths.values()
    try:
        with tarfile.open(path, "r:*") as tar:
            members = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}

            def read(name: str) -> bytes:
                check_memory(f"the member {name}", members[name].size)
                return tar.extractfile(members[name]).read()  # type: ignore[union-attr]

            return (_cifar_binary if "test_batch.bin" in members else _cifar_python)(read)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a valid tar file: {error}") from error
    except (*pickles.ERRORS, struct.error) as error:
        raise ValueError(f"{path} is not a CIFAR-10 archive: {error}") from error


def _cifar_binary(read: Callable[[str], bytes]) -> Contents:
    """The binary version: records of one byte of label and a 3x32x32 image."""

    def batches(*names: str) -> tuple[np.ndarray, np.ndarray]:
        records = np.frombuffer(b"".join(map(read, names)), np.uint8).reshape(-1, 1 + 3072)
        return _to_nhwc(records[:, 1:]), _checked_labels(records[:, 0])

    names = read("batches.meta.txt").decode().split()
    train = batches(*(f"data_batch_{i}.bin" for i in range(1, 6)))
    return Contents({"train": train, "test": batches("test_batch.bin")}, names)


def _cifar_python(read: Callable[[str], bytes]) -> Contents:
    """The Python version: batches as pickled dictionaries of Python 2."""

    def batches(*names: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [pickles.load(io.BytesIO(read(name)), encoding="bytes") for name in names]
        images = np.concatenate([pickles.array_of(part[b"data"], "u1") for part in parts])
        return _to_nhwc(images), _checked_labels([int(n) for p in parts for n in p[b"labels"]])

    meta = pickles.load(io.BytesIO(read("batches.meta")), encoding="bytes")
    train = batches(*(f"data_batch_{i}" for i in range(1, 6)))
    names = [name.decode() for name in meta[b"label_names"]]
    return Contents({"train": train, "test": batches("test_batch")}, names)


def _to_nhwc(flat: np.ndarray) -> np.ndarray:
    return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _checked_labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < 10:
        raise ValueError(f"its labels must be 0 to 9, got {labels.min()} to {labels.max()}")
    return labels
