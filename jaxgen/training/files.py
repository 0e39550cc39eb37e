"""Files that are either whole or absent, whatever stops the process; one writer a directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"


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


@contextmanager
def held_alone(directory: str | Path) -> Iterator[None]:
    """Keeps every other process that asks out of a directory until the block ends.

    The lock is the kernel's and dies with the process, however that ends. Where the file system
    knows no locks there is none.

    Args:
        directory: an existing directory; a file `.lock` is made in it.

    Raises:
        BlockingIOError: if another process holds it.
    """
    with (Path(directory) / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{directory} is in use: another process is training in it"
            ) from None
        except OSError:
            pass
        yield
