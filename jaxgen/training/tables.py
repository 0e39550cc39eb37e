"""Tables of metrics by step, which survive kills and resumes."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen.files import drop_half_line, naming, open_atomically


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a table by column, without empty cells; none where there is no file.

    Args:
        path: Path of the file, whose rows are whole.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    return [{name: float(cell) for name, cell in row.items() if cell} for row in table]


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
