"""Files written whole or not at all, whatever stops the process; one process a directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"


@contextmanager
def open_atomically(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a new file that replaces `path` when the block ends without an error.

    Parent directories are created. Until the end, and after an error, `path` is unchanged.

    Args:
        path: Path of the file to write or replace.

    Yields:
        A binary file, flushed to the disk before it is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):  # which nobody has named
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Names a file in errors of the system that do not, such as that of a full disk.

    Args:
        path: Path of the file that the block writes.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def drop_half_line(path: Path) -> None:
    """Truncates a text file after its last newline, since a line after it was half written."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def is_temporary(path: Path, of: str = "") -> bool:
    """Whether a file is what `open_atomically` leaves behind where its process is killed.

    Args:
        path: Path of the file.
        of: Name of the file that was to be written; any where it is empty.
    """
    return path.name.startswith(f".{of}") and path.name.endswith(".tmp")


@contextmanager
def held_alone(directory: str | Path) -> Iterator[None]:
    """Holds the lock of a directory until the block ends: one process at a time can have it.

    The kernel releases the lock when the process ends, in whatever way. On a file system without
    locks nothing is locked.

    Args:
        directory: Existing directory, in which a file `.lock` is created.

    Raises:
        BlockingIOError: If another process holds the lock.
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


def cache_directory() -> Path:
    """The directory of what can be made or downloaded again: `$JAXGEN_CACHE`, or `jaxgen` in
    `$XDG_CACHE_HOME`, by default `~/.cache`.
    """
    if own := os.environ.get("JAXGEN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgen"
