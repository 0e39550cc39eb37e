"""Checks of arguments: an error names the argument, what was given and what is accepted.

Shapes are checked by value, not only by annotation: arrays of shapes that differ would broadcast,
and a loss of the wrong numbers trains as well as one of the right ones.
"""

import os
from typing import Any

import numpy as np


def check_choice(argument: str, value: str, accepted: tuple[str, ...]) -> None:
    """Checks that an argument is one of the accepted values.

    Args:
        argument: Name of the argument, for the error.
        value: Value that was given.
        accepted: Values that are accepted.

    Raises:
        ValueError: If it is not; names the argument, the accepted values and the value.
    """
    if value not in accepted:
        raise ValueError(f"{argument} must be one of {', '.join(accepted)}, got {value!r}")


def check_memory(what: str, num_bytes: int) -> None:
    """Checks that something fits into the machine's memory, before it is asked for.

    Args:
        what: Name of it, for the error.
        num_bytes: Number of bytes that it takes.

    Raises:
        ValueError: If it takes more than the machine has.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        raise ValueError(
            f"{what} would take {num_bytes / 2**30:.0f} GiB, and this machine has "
            f"{memory / 2**30:.0f} GiB of memory"
        )


def check_same_shape(**arrays: Any) -> None:
    """Checks that arrays have one shape; none is broadcast.

    Args:
        **arrays: Arrays by the names of the arguments, the first of the shape that all must have.

    Raises:
        ValueError: If they have not; names the arguments and their shapes.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"{_words(list(shapes))} must match in shape, got {_words(list(shapes.values()))}"
        )


def check_batch(size: int, **arrays: Any) -> None:
    """Checks that arrays hold one number an example, [B].

    Args:
        size: Number of examples B.
        **arrays: Arrays by the names of the arguments.

    Raises:
        ValueError: If one does not; names the argument and its shape.
    """
    for name, array in arrays.items():
        if np.shape(array) != (size,):
            raise ValueError(
                f"{name} must have one number for each of {size} examples, shape ({size},), "
                f"got {np.shape(array)}"
            )


def check_broadcast(**arrays: Any) -> None:
    """Checks that arrays have one shape but for axes of size 1, and numbers without axes.

    Args:
        **arrays: Arrays or numbers by the names of the arguments.

    Raises:
        ValueError: If they have not, among them arrays with different numbers of axes; names the
            arguments and their shapes.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    with_axes = [shape for shape in shapes.values() if shape]
    fit = len({len(shape) for shape in with_axes}) <= 1 and all(
        len({size for size in sizes if size != 1}) <= 1 for sizes in zip(*with_axes, strict=False)
    )
    if not fit:
        raise ValueError(
            f"{_words(list(shapes))} must be numbers or match in shape but for axes of size 1, "
            f"got {_words(list(shapes.values()))}"
        )


def _words(values: list[Any]) -> str:
    """`a, b and c`."""
    texts = [str(value) for value in values]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
