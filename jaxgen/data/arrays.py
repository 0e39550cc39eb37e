"""Arrays from files, and as JAX stores them: checked before they are used, with errors that name
the file and the row.
"""

import csv
import hashlib
import io
import lzma
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.checks import check_memory

_BROKEN = (
    ArithmeticError,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_CSV = "wanted are numbers separated by commas, a row in each line, no header"
_PRECISION = 1e-3  # the greatest rounding of a column, in its standard deviations


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a `.npy` file.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is broken, is cut off, or holds Python objects; names it.
    """
    try:
        with open(path, "rb") as file:
            _check_header(file, Path(path).stat().st_size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read as a .npy file: {error}") from error


def npz_names(path: str | Path) -> list[str]:
    """The names of the arrays of a `.npz` file, in its order.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is broken; names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read as a .npz file: {error}") from error


def read_npz(path: str | Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file.

    Args:
        path: Path of the file.
        names: Names of the arrays to read; None for all.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is broken, is cut off, lacks a name or holds Python objects; names
            it.
    """
    arrays = {}
    chosen = npz_names(path) if names is None else list(names)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in chosen:
                info = archive.getinfo(f"{name}.npy")
                check_memory(f"the array {name!r}", info.file_size)
                with archive.open(info) as member:
                    _check_header(member, info.file_size)
                with archive.open(info) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read as a .npz file: {error}") from error
    return arrays


def _check_header(file: Any, size: int) -> None:
    """Raises a ValueError for a header that promises more than a file of `size` bytes has."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its version is {version}, known are {', '.join(map(str, _HEADERS))}")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"it holds Python objects ({dtype}), wanted are numbers")
    promised, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if promised > held:
        raise ValueError(f"its header promises {promised} bytes of {dtype}{shape}, it has {held}")


def read_csv(path: str | Path) -> np.ndarray:
    """The numbers of a `.csv` file, f64 [N, D].

    They are separated by commas and may stand in quotation marks; lines that begin with "#" and
    empty ones do not count, nor does a byte-order mark.

    Args:
        path: Path of the file, UTF-8.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Anything else in it; names the file, the line and what is wanted.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of no data
            return np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig", quotechar='"')
    except FileNotFoundError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        wrong = _first_wrong_line(Path(path)) or str(error)
        raise ValueError(f"{path}: {wrong}; {_CSV}") from error


def _first_wrong_line(path: Path) -> str:
    """What is wrong in the first line that is no row of numbers; "" where nothing is found."""
    raw = path.read_bytes()
    try:
        lines = csv.reader(io.StringIO(raw.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return f"line {raw[: error.start].count(10) + 1} is no UTF-8 text"
    width, begin = None, 0
    for fields in lines:
        line = lines.line_num
        if not fields or fields[0].lstrip().startswith("#"):
            continue
        if wrong := [i for i, field in enumerate(fields) if not _is_number(field)]:
            if any(mark in fields[wrong[0]] for mark in ";\t") or len(fields[0].split()) > 1:
                return f"line {line} ({','.join(fields)[:40]}) is separated by other marks"
            if width is None and len(wrong) == len(fields):
                return f"line {line} is a header ({','.join(fields)[:40]}), remove it"
            value = fields[wrong[0]].strip()
            shown = f"{value[:40]!r}, no number" if value else "empty"
            return f"line {line}, column {wrong[0] + 1} is {shown}"
        if width not in (None, len(fields)):
            return f"line {line} has {len(fields)} values, line {begin} has {width}"
        if width is None:
            width, begin = len(fields), line
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_float32(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers as float32, checked after the conversion and not before it.

    Args:
        values: Real numbers [N, ...].
        what: Name of the array in errors.

    Returns:
        f32[N, ...].

    Raises:
        ValueError: Numbers that are no real ones, NaN or infinite, beyond what float32 can hold, or
            so near to each other that float32 rounds them by more than a thousandth of a column's
            standard deviation; names the row and the column.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} must hold real numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        place = np.unravel_index(int(np.argmin(np.isfinite(narrow))), values.shape)
        value = values[place]
        beyond = " is beyond float32" if np.isfinite(value) else ""
        raise ValueError(f"{what} must hold finite numbers: {_place(place)} {value}{beyond}")
    if values.dtype.itemsize > 4 and values.size:
        exact = values.reshape(len(values), -1).astype(np.float64)
        kept = narrow.reshape(exact.shape).astype(np.float64)
        kept[np.abs(kept) < np.finfo(np.float32).tiny] = 0  # as a device takes them
        spread, error = exact.std(axis=0), np.abs(kept - exact).max(axis=0)
        if (lost := error > _PRECISION * spread)[spread > 0].any():
            column = int(np.argmax(lost & (spread > 0)))
            raise ValueError(
                f"{what} has values in column {column + 1} around {exact[:, column].mean():.6g} "
                f"with a deviation of {spread[column]:.3g}, which float32 rounds by up to "
                f"{error[column]:.3g}: subtract a constant from them, or rescale them"
            )
    return narrow


def standardized(
    rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray, what: str
) -> np.ndarray:
    """Rows in deviations from the mean, column by column, as float32.

    Args:
        rows: Real numbers [N, D].
        mean: Mean of each column, f64 [D].
        deviation: Standard deviation of each column, f64 [D].
        what: Name of the rows in errors.

    Returns:
        f32[N, D], `(rows - mean) / deviation`.

    Raises:
        ValueError: A column that does not vary, and what `as_float32` raises.
    """
    if np.isfinite(rows).all() and not (deviation > 0).all():
        column = int(np.argmin(deviation > 0)) + 1
        raise ValueError(
            f"{what} cannot be standardized: column {column} has a deviation of "
            f"{deviation[column - 1]}, it must be positive"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        return as_float32((rows - mean) / deviation, what)


def _place(place: Iterable[Any]) -> str:
    row, *rest = (int(i) + 1 for i in place)
    return ", ".join([f"row {row}", *(f"column {i}" for i in rest)]) + " (from 1) is"


def as_stored(values: np.ndarray, what: str) -> np.ndarray:
    """An array in the 32 bits that JAX keeps of 64, checked to be the same numbers.

    Args:
        values: Booleans, integers or real numbers [N, ...].
        what: Name of the array in errors.

    Returns:
        The array: float32 for wider floats, int32 for wider integers, others as they are.

    Raises:
        TypeError: An array of anything else.
        ValueError: Integers that 32 bits cannot hold, or as `as_float32`.
    """
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise TypeError(f"{what} must hold real numbers, got {values.dtype}")
    if values.dtype.itemsize <= 4:
        return values
    if values.dtype.kind == "f":
        return as_float32(values, what)
    limits = np.iinfo(np.int32)
    if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
        raise ValueError(
            f"{what} must be in the range of int32, got {values.min()}..{values.max()}"
        )
    return values.astype(np.int32)


def content_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, list[int], str]]:
    """The type, shape and SHA-256 of each array, by its name in alphabetical order, for a digest.

    Args:
        arrays: The arrays by name.
    """
    return {name: _content(array) for name, array in sorted(arrays.items())}


def _content(array: np.ndarray) -> tuple[str, list[int], str]:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return str(array.dtype), list(array.shape), hashlib.sha256(content.data).hexdigest()
