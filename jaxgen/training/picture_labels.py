"""The words beside the rows and above the columns of pictures and samples, where these mean some.

They belong to `jaxgen.training.pictures`, which says what each picture shows.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxgen.core import Family
from jaxgen.training.denoising_pictures import ratios
from jaxgen.training.experiment import Medium
from jaxgen.training.images import labelled_grid
from jaxgen.training.pictures import LIMIT

_MOST_COLUMNS = 32


class Labels(NamedTuple):
    """Words of a grid.

    Attributes:
        rows: What each row shows, or ().
        heads: What each column shows, or ().
    """

    rows: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


def names_of(family: Family) -> tuple[str, ...]:
    """The conditions of a family's sweep in words; () where it has none."""
    return () if family.conditioning is None else family.conditioning.sweep_names


def of_picture(family: Family, name: str, rows: int, columns: int) -> Labels:
    """The words of a picture.

    Args:
        family: Family that the picture is of.
        name: Name of the picture; of one that the family does not have there are no words.
        rows: Number of rows that are asked for.
        columns: Number of columns.
    """
    sweep = names_of(family)
    turns = [sweep[row % len(sweep)] for row in range(rows + 1)] if sweep else []
    pairs = max(1, rows // 2)
    words: dict[str, Callable[[], Labels]] = {
        "conditions": lambda: Labels(sweep),
        "guidance": lambda: Labels(sweep, tuple(f"scale {scale}" for scale in range(columns))),
        "interpolation": lambda: Labels(tuple(turns[:rows])),
        "between_conditions": lambda: Labels(
            tuple(f"{a} to {b}" for a, b in itertools.pairwise(turns))
        ),
        "reconstructions": lambda: Labels(("example", "rebuilt") * pairs),
        "codes": lambda: Labels(("example", "rebuilt", "codes") * max(1, rows // 3)),
        "denoising": lambda: Labels(("sample", "expected") * pairs),
        "completions": lambda: Labels((), ("example", "given")[:columns]),
        "variations": lambda: Labels((), ("example",)),
        "image_to_image": lambda: Labels(
            (), ("example", *(f"noise {ratio:.2g}" for ratio in ratios(columns)))[:columns]
        ),
        "traversal": lambda: Labels(
            (), tuple(f"{value:.1f}" for value in np.linspace(-LIMIT, LIMIT, columns))
        ),
    }
    return words[name]() if name in words else Labels()


def of_samples(names: Sequence[str], num: int, columns: int) -> Labels:
    """The words of a grid of samples whose conditions are taken in turn.

    There are some where each row is of one of several conditions.

    Args:
        names: Conditions in words, each for an equal number of consecutive samples.
        num: Number of samples.
        columns: Number of columns.
    """
    if len(names) < 2:
        return Labels()
    turn = np.arange(num) * len(names) // num  # as `pictures.in_turn` has it
    rows = [turn[begin : begin + columns] for begin in range(0, num, columns)]
    if any(len(set(row)) > 1 for row in rows):
        return Labels()
    return Labels(tuple(names[row[0]] for row in rows))


def columns_for(names: Sequence[str], num: int) -> int:
    """Columns by which each row is of one condition where that makes a grid, else about a square.

    Args:
        names: Conditions in words, each for an equal number of consecutive samples.
        num: Number of samples.
    """
    if len(names) > 1 and num % len(names) == 0 and 1 < num // len(names) <= _MOST_COLUMNS:
        return num // len(names)
    return math.ceil(math.sqrt(num))


def labelled(medium: Medium, labels: Labels, title: str = "") -> Medium:
    """The medium, whose grids of images have words; another medium as it is.

    Args:
        medium: Kind of the samples.
        labels: Words of the rows and columns.
        title: What the grid shows, or "".
    """
    if medium.unit != "images":
        return medium
    picture = partial(labelled_grid, rows=labels.rows, heads=labels.heads, title=title)
    return medium._replace(picture=picture)
