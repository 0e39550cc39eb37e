"""What folders and files of examples share: which files count, and a digest of their content."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_READ_BYTES = 2**31  # of all files together, up to which a digest reads every byte
_BLOCK = 4096


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
