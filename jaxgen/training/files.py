"""Files that are either whole or absent, whatever stops the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def open_atomically(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a new file that takes the place of `path` when the block ends without an error.

    Parent directories are made. Until the end, and after an error, `path` is as it was.

    Args:
        path: the file to write or replace.

    Yields:
        A binary file, flushed to the disk before it is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
