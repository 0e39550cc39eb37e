"""Conversion of official archives to the form that TFDS's builders read, without TensorFlow.

CIFAR-10, MNIST and Fashion-MNIST are prepared here; any other set of TFDS is left to TensorFlow.
On the command line: `python -m jaxgen.data prepare cifar10`.
"""

import hashlib
import http.client
import importlib.util
import io
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from jaxgen.data.archives import Contents, read_cifar10, read_mnist

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 18


class Preparation(NamedTuple):
    """How a set is prepared from its official files.

    Attributes:
        url: Address of the folder of the official files.
        files: Name -> SHA-256 of the files that are downloaded, all of them needed.
        alternatives: Name -> SHA-256 of files of which each holds the whole set too.
        read: Function from the files' paths, by name, to the contents.
        has_id: Whether the examples have an `id` such as "train_00042".
    """

    url: str
    files: Mapping[str, str]
    alternatives: Mapping[str, str]
    read: Callable[[Mapping[str, Path]], Contents]
    has_id: bool = False


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    archives: Sequence[str | Path] = (),
    *,
    verify: bool = True,
) -> Path:
    """Prepares a TFDS image set in the array_record form; a set that is prepared is left alone.

    Args:
        name: Name of the set: "cifar10", "mnist" or "fashion_mnist"; any other set of TFDS needs
            TensorFlow.
        data_dir: TFDS data directory; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
        archives: Paths of the official files by their official names, or of directories that hold
            them; none to download the files.
        verify: Whether to check the SHA-256 of every file.

    Returns:
        The directory of the prepared set.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: An unknown set, a file that is not the official one or is broken, a set that is
            prepared in another form.
        ConnectionError: A download that failed.
        RuntimeError: A set that needs TensorFlow, which is not installed.
    """
    from jaxgen.data import tfds

    root = tfds.data_directory(data_dir)
    if tfds.base_name(name) not in tfds.known_names(root):
        raise ValueError(f"TensorFlow Datasets has no set {name!r} to prepare")
    existing = tfds.prepared_directory(name, root)
    if existing is not None:
        if "array_record" not in tfds.file_formats(existing):
            raise ValueError(
                f"{existing} is prepared, as {', '.join(tfds.file_formats(existing))}, and is not "
                "overwritten: give another --data-dir for the array_record form"
            )
        return existing
    if name not in PREPARATIONS:
        return _prepare_with_tensorflow(name, root, archives)
    preparation = PREPARATIONS[name]
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as scratch:
        if archives:
            paths = find_files(preparation, archives)
        else:
            paths = download(preparation, Path(scratch))
        if verify:
            for file, path in paths.items():
                _check_sha256(path, {**preparation.files, **preparation.alternatives}[file])
        contents = preparation.read(paths)
    splits = {
        split: _examples(split, *arrays, has_id=preparation.has_id)
        for split, arrays in contents.splits.items()
    }
    return tfds.write_set(name, splits, root, contents.label_names)


def find_files(preparation: Preparation, archives: Sequence[str | Path]) -> dict[str, Path]:
    """The preparation's files, by name, among files and directories that were given.

    Raises:
        FileNotFoundError: A path that does not exist, or files that are missing.
    """
    given: dict[str, Path] = {}
    for path in map(Path, archives):
        if not path.exists():
            raise FileNotFoundError(f"there is no archive {path}")
        given |= {p.name: p for p in (path.iterdir() if path.is_dir() else [path])}
    for file in preparation.alternatives:
        if file in given:
            return {file: given[file]}
    missing = [file for file in preparation.files if file not in given]
    if missing:
        instead = "".join(f", or {file} alone" for file in preparation.alternatives)
        raise FileNotFoundError(
            f"--archive must give {', '.join(preparation.files)}{instead}; missing: "
            f"{', '.join(missing)}"
        )
    return {file: given[file] for file in preparation.files}


def download(preparation: Preparation, directory: Path) -> dict[str, Path]:
    """Downloads the preparation's files, with a progress bar, once each; the paths by name.

    Raises:
        ConnectionError: The server cannot be reached, or breaks off.
    """
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    paths = {file: directory / file for file in preparation.files}
    with Progress(*columns) as progress:
        for file, path in paths.items():
            task = progress.add_task(file, total=None)
            url = preparation.url + file
            request = urllib.request.Request(url, headers={"User-Agent": "jaxgen"})
            try:
                with (
                    urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response,
                    path.open("wb") as out,
                ):
                    length = response.headers.get("Content-Length")
                    progress.update(task, total=int(length) if length else None)
                    while chunk := response.read(_CHUNK_BYTES):
                        out.write(chunk)
                        progress.advance(task, len(chunk))
                    if length and out.tell() < int(length):
                        raise ConnectionError(f"broken off after {out.tell()} of {length} bytes")
            except (OSError, http.client.HTTPException) as error:
                raise ConnectionError(
                    f"could not download {url} ({error}); fetch it by other means and give it by "
                    f"--archive {file}"
                ) from error
    return paths


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise ValueError(
            f"{path} is not the official file or is damaged: its SHA-256 is {digest}, not "
            f"{expected}"
        )


def _examples(
    split: str, images: np.ndarray, labels: np.ndarray, *, has_id: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Keyed examples as TFDS's builders make them, the images as PNG files."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
        file.seek(0)
        example = {"image": file, "label": int(label)}
        yield index, {**example, "id": f"{split}_{index:05d}"} if has_id else example


def _prepare_with_tensorflow(name: str, root: Path, archives: Sequence[str | Path]) -> Path:
    from jaxgen.data import tfds

    if archives:
        raise ValueError(f"--archive is for {', '.join(PREPARATIONS)} only; {name} is left to TFDS")
    if importlib.util.find_spec("tensorflow") is None:
        raise RuntimeError(
            f"{name} can only be prepared with TensorFlow: pip install 'jaxgen[tfds-prepare]', "
            f"then repeat this command. Without it: {', '.join(PREPARATIONS)}"
        )
    return tfds.prepare_with_tensorflow(name, root)


# The SHA-256 that TFDS records for each file; that of cifar-10-python.tar.gz is Keras's.
PREPARATIONS: Mapping[str, Preparation] = {
    "cifar10": Preparation(
        "https://www.cs.toronto.edu/~kriz/",
        {
            "cifar-10-binary.tar.gz": (
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            )
        },
        {
            "cifar-10-python.tar.gz": (
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
            )
        },
        read_cifar10,
        has_id=True,
    ),
    "mnist": Preparation(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            "train-images-idx3-ubyte.gz": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            "train-labels-idx1-ubyte.gz": (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        },
        {},
        read_mnist,
    ),
    "fashion_mnist": Preparation(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
        {},
        read_mnist,
    ),
}
