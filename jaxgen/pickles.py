"""NumPy arrays from a pickle, read without running what is in it.

A pickle is a program. Of a stranger's only plain containers and notes of arrays are read, and the
arrays are built of the notes afterwards; anything else is refused.
"""

import io
import pickle
from typing import Any

import numpy as np

# What reading a broken or forged pickle, and building arrays of it, may raise.
ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class Recorded:
    """What a pickle says of a NumPy array or dtype.

    No pickle can build an array itself: its state would decide which bytes are pointers.

    Args:
        *args: Arguments that the pickle would call NumPy with.
    """

    def __init__(self, *args: Any):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads plain containers, and notes of NumPy arrays; refuses what could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return Recorded


def load(file: io.BufferedIOBase, *, encoding: str = "ASCII") -> Any:
    """The content of a pickle, with a `Recorded` in the place of each array.

    Args:
        file: File that is open for reading, from the pickle's first byte on.
        encoding: Encoding of strings of Python 2, as `pickle.load` takes it.

    Raises:
        Exception: Any of `ERRORS`, for what is broken or refers to anything but NumPy's arrays.
    """
    return _Unpickler(file, encoding=encoding).load()


def array_of(value: Any, kind: str) -> np.ndarray:
    """The array that a pickle describes, a view of the pickle's own bytes.

    Args:
        value: What stands in the place of the array.
        kind: Type of its elements in NumPy's letters, "u1" or "f4".

    Raises:
        ValueError: Anything else than such an array in little-endian order.
        TypeError: A shape that is none.
    """
    state = value.state if isinstance(value, Recorded) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError(f"it has no array where one should be, but {type(value).__name__}")
    _, shape, dtype, is_fortran, data = state
    letters = dtype.args[0] if isinstance(dtype, Recorded) and dtype.args else None
    order = dtype.state[1] if isinstance(dtype, Recorded) and dtype.state else None
    if letters not in (kind, kind.encode()) or not isinstance(data, bytes):
        raise ValueError(f"it has an array of {letters}, not of {kind}")
    if order in (">", b">"):
        raise ValueError(f"it has an array of {kind} in big-endian order")
    return np.frombuffer(data, f"<{kind}").reshape(shape, order="F" if is_fortran else "C")
