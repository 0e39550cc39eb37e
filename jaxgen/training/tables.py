"""Tables of metrics by step, which survive kills and resumes."""

import csv
import html
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxgen.files import drop_half_line, naming, open_atomically

_SHOWN = 5  # rows that a notebook shows of each end of a table


class Table(list[dict[str, float]]):
    """Rows of metrics by step, name -> value; a notebook shows the first and the last ones.

    A row has no entry for what was not measured at its step. `pandas.DataFrame(table)` is the same
    as a data frame.

    Examples:
        >>> table = Table([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "error": 2.0}])
        >>> table.columns
        ('step', 'loss', 'error')
        >>> table.column("error")
        array([nan,  2.])
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, in the order of their first values."""
        return tuple(dict.fromkeys(name for row in self for name in row))

    def column(self, name: str) -> Float[np.ndarray, " rows"]:
        """The values of a column, f64[rows], NaN where a row has none.

        Args:
            name: Name of the column.

        Raises:
            ValueError: If there is no such column; names those that there are.
        """
        if name not in self.columns:
            raise ValueError(f"name must be one of {', '.join(self.columns)}, got {name!r}")
        return np.array([row.get(name, np.nan) for row in self], np.float64)

    def _repr_html_(self) -> str:
        shown = [*self[:_SHOWN], *self[max(_SHOWN, len(self) - _SHOWN) :]]
        cells = [[f"{row[c]:.6g}" if c in row else "" for c in self.columns] for row in shown]
        if len(self) > 2 * _SHOWN:
            cells.insert(_SHOWN, ["…"] * len(self.columns))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        return f"<table><tr>{head}</tr>{body}</table><p>{len(self)} rows</p>"


def read_rows(path: Path) -> Table:
    """The rows of a table by column, without empty cells; none where there is no file.

    Args:
        path: Path of the file; of a run that goes on, a last row that is not whole is left out.

    Raises:
        ValueError: If the file is no table of numbers by step; names it.
    """
    if not path.exists():
        return Table()
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(line for line in file if line.endswith("\n"))
            table = Table({name: float(cell) for name, cell in row.items() if cell} for row in rows)
    except (ValueError, TypeError, csv.Error) as error:  # TypeError of a row that is too long
        raise ValueError(f"{path} cannot be read as a table of numbers: {error}") from error
    if any("step" not in row for row in table):
        raise ValueError(f"{path} has a row without a step: move it away, or put it right")
    return table


class CsvWriter:
    """A table with one row a step: `step` first, then a column for each metric ever logged.

    An existing file is continued; a half-written last row is dropped.

    Args:
        path: Path of the file, which is created, with its parents, at the first row.

    Raises:
        ValueError: If the file exists and is not such a table.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._columns = ["step"]
        self.steps: list[int] = []
        self._dropped: set[int] = set()
        if self.path.exists():
            self._reopen()

    def _reopen(self) -> None:
        drop_half_line(self.path)
        try:
            rows = self._read()
            self.steps = [int(row[0]) for row in rows[1:]]
            sound = all(row and len(row) == len(rows[0]) for row in rows)
        except (ValueError, IndexError, csv.Error):
            sound = False
        if not sound or (rows and rows[0][0] != "step"):
            raise ValueError(f"{self.path} is not a table of metrics by step: move it away")
        if rows:
            self._columns = rows[0]

    def _read(self) -> list[list[str]]:
        with self.path.open(newline="") as file:
            return list(csv.reader(file))

    def rewind(self, step: int) -> None:
        """Drops the rows after a step: the run goes on from there and writes them again.

        Args:
            step: Step from which the run goes on.
        """
        self._dropped = {later for later in self.steps if later > step}
        if self._dropped:
            kept = [row for row in self._read()[1:] if int(row[0]) <= step]
            self._write(kept)
            self.steps = [int(row[0]) for row in kept]

    def log(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Adds a row, unless the file already reaches `step`.

        Args:
            step: Step of the row, which must increase from call to call.
            metrics: Name -> value; a new name adds a column, a missing one leaves its cell empty.

        Returns:
            Whether the row is new: neither there, nor among those that `rewind` dropped.
        """
        if self.steps and step <= self.steps[-1]:
            return False
        new = [name for name in metrics if name not in self._columns]
        if new or not self.steps:
            rows = self._read()[1:] if self.path.exists() else []
            self._columns = self._columns + new
            self._write([row + [""] * len(new) for row in rows])
        cells = {**{name: float(value) for name, value in metrics.items()}, "step": step}
        with naming(self.path), self.path.open("a", newline="") as file:
            file.write(_csv_line([cells.get(name, "") for name in self._columns]))
        self.steps.append(step)
        return step not in self._dropped

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        if self.path.exists():
            with naming(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _write(self, rows: list[list[str]]) -> None:
        with open_atomically(self.path) as file:
            for row in [self._columns, *rows]:
                file.write(_csv_line(row).encode())


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
