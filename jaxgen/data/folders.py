"""What folders of images and of recordings share: which files count, which of them are held out,
and a digest of their content.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_READ_BYTES = 2**31  # of all files together, up to which a digest reads every byte
_BLOCK = 4096
_ARCHIVERS = ("__MACOSX",)  # besides what is hidden: folders that hold no data of the user's
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval")
"""Usual names of splits, as folders and files have them."""
METADATA = ("metadata.jsonl", "metadata.csv")
"""Names of the files that say what the images beside them show (`jaxgen.data.metadata`)."""


def files_in(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of a folder and of all its subfolders, in the order of their names.

    Symbolic links are followed. What is hidden (its name begins with ".", as Jupyter's and macOS's
    copies do) does not count; of what is visible nothing is left out silently: a warning counts the
    files with other suffixes, but for a folder's own `METADATA`.

    Args:
        root: Existing folder.
        suffixes: Suffixes of the files that count, in lower case.

    Raises:
        FileNotFoundError: A symbolic link to nothing, by the name of a file that counts.
        OSError: A folder that cannot be read.
    """
    files: list[Path] = []
    others: Counter[str] = Counter()

    def walk(directory: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(directory)
        if real in above:  # a link to a folder that is being read
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.is_dir():
                    walk(entry.path, (*above, real))
                elif not above and entry.name in METADATA:
                    continue
                elif suffix not in suffixes:
                    others[suffix or "none"] += 1
                elif entry.is_file():
                    files.append(Path(entry.path))
                else:
                    raise FileNotFoundError(f"{entry.path} is no file, or a link to nothing")

    walk(str(root), ())
    if files and others:
        kinds = ", ".join(sorted(others))
        warnings.warn(
            f"{root}: {others.total()} files of other kinds ({kinds}) are left out; read are "
            f"{', '.join(suffixes)}",
            stacklevel=3,
        )
    return sorted(files)


def find_split(path: Path, split: str | None, what: str) -> tuple[Path, str | None]:
    """The folder of a split, and which part of it where it is to be split by names.

    Args:
        path: Folder of the data.
        split: Name of the split: a subfolder; "train", "test" or "all" where there is no subfolder
            of a usual name; None for the folder itself.
        what: What the folder holds, in error messages.

    Raises:
        FileNotFoundError: No such folder; says which there are.
    """
    root = path if split is None else path / split
    if root.is_dir():
        return root, None
    if split not in ("train", "test", "all") or not path.is_dir():
        raise FileNotFoundError(f"there is no folder of {what} {root}")
    others = [d.name for d in path.iterdir() if d.name.lower() in SPLITS and d.is_dir()]
    if others:
        raise FileNotFoundError(
            f"there is no folder of {what} {root}, only {', '.join(sorted(others))}: name the "
            "subfolders by --data.split and --data.held-out"
        )
    return path, split


def named_split(
    names: Collection[str], split: str | None, where: str
) -> tuple[str | None, str | None]:
    """Which of a set's named splits to read, and which part of it where it is to be split here.

    A set without named splits, or with `train` alone, has nothing that is held out. So it is split
    itself, into the parts "train" and "test" (`split_by_name`), and "all".

    Args:
        names: Names of the splits that the set has.
        split: Name of the split that is asked for; None for all examples.
        where: Place of the set, for errors.

    Returns:
        The split to read, None for all of them; the part of it, None for the whole.

    Raises:
        FileNotFoundError: No such split; says which there are.
    """
    parts = ("train", "test", "all")
    if split is None:
        return None, None
    if set(names) <= {"train"}:
        if split in parts:
            return None, split
        raise FileNotFoundError(
            f"{where} has no split {split!r}: it is split itself, into {', '.join(parts)}"
        )
    if split in names or split == "all":
        return (split, None) if split in names else (None, None)
    raise FileNotFoundError(
        f"{where} has no split {split!r}, only {', '.join(sorted(names))}: name them by "
        "--data.split and --data.held-out"
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name does not count as data."""
    return name.startswith(".") or name in _ARCHIVERS


def split_by_name(names: Sequence[str], split: str, held_out: float) -> list[int]:
    """Which of several files belong to a split, by a hash of their names.

    So another run or machine, and more files, leave each file in its split; where no hash is low
    enough to be held out, the lowest is.

    Args:
        names: Names of the files, relative to the folder.
        split: Name of the split: "train", "test" (what is held out) or "all".
        held_out: Share of the files, roughly, that are held out.

    Returns:
        The places of the files among `names`, in order.

    Raises:
        ValueError: One file alone, of which none can be held out.
    """
    if split == "all":
        return list(range(len(names)))
    if len(names) < 2:
        raise ValueError(f"{names[0]} is the only file, so none can be held out: use split 'all'")
    hashes = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    count = min(max(sum(h < held_out for h in hashes), 1), len(names) - 1)
    return sorted(order[:count] if split == "test" else order[count:])


def digest_of(*parts: object) -> str:
    """16 hexadecimal digits, the beginning of the SHA-256 of parts that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def content_digest(files: Sequence[Path], read_bytes: int = _READ_BYTES) -> str:
    """A digest of the content of files, in their order, whatever their names and directories.

    Where the files have more than `read_bytes` together, only the length of each one and blocks of
    it are read, the first and the last one among them, so that it takes seconds.

    Args:
        files: Paths of the files.
        read_bytes: Number of bytes to read, roughly, at most.

    Returns:
        16 hexadecimal digits.

    Raises:
        OSError: A file that cannot be read.
    """
    whole = sum(file.stat().st_size for file in files) <= read_bytes
    num_blocks = None if whole else max(2, read_bytes // _BLOCK // len(files))
    with ThreadPoolExecutor() as pool:
        return digest_of(*pool.map(lambda file: _file_digest(file, num_blocks), files))


def _file_digest(path: Path, num_blocks: int | None) -> str:
    """SHA-256 of a file, or of its length and so many blocks of it."""
    with path.open("rb") as file:
        if num_blocks is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        for i in range(num_blocks):
            file.seek(max(0, size - _BLOCK) * i // (num_blocks - 1))
            digest.update(file.read(_BLOCK))
        return digest.hexdigest()
