"""Tables of numbers, each missing one with its reason: as Markdown and CSV, and for pages."""

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

NONE = "-"


class Cell(NamedTuple):
    """A number as text, or `-` and why there is none."""

    text: str
    why: str = ""


class Table(NamedTuple):
    """Rows by name, one cell a column.

    Attributes:
        title: Title of the table.
        columns: What each column is, with its unit.
        names: Short name of each column, of no other table, for programs.
        rows: Name -> cells.
        notes: What a reader must know of the numbers.
        of: What a row is of.
    """

    title: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    rows: dict[str, list[Cell]]
    notes: tuple[str, ...] = ()
    of: str = "family"


def number(value: float | None, why: str = "") -> Cell:
    """Four significant digits, without an exponent where it stays short."""
    if value is None:
        return Cell(NONE, why)
    short = f"{value:.4g}"
    return Cell(f"{value:.0f}" if "e+" in short else short)


def to_csv(all_tables: Sequence[Table]) -> str:
    """All tables as one, columns by their short names; a cell without a number is empty.

    A column of numbers has nothing but numbers, so that programs read it as such.
    """
    keys = list(dict.fromkeys(name for table in all_tables for name in table.rows))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([all_tables[0].of, *(name for t in all_tables for name in t.names)])
    for key in keys:
        cells = [
            "" if cell.text == NONE else cell.text
            for t in all_tables
            for cell in t.rows.get(key, [Cell("")] * len(t.columns))
        ]
        writer.writerow([key, *cells])
    return out.getvalue()


def to_markdown(heading: str, all_tables: Sequence[Table]) -> str:
    """The tables, each with its notes and the reasons for what is missing."""
    parts = [f"# {_plain(heading)}"]
    for t in all_tables:
        rows = [[name, *(cell.text for cell in cells)] for name, cells in t.rows.items()]
        head, *body = (
            "| " + " | ".join(map(_plain, row)) + " |" for row in ([t.of, *t.columns], *rows)
        )
        lines = [head, "|" + " --- |" * (len(t.columns) + 1), *body]
        notes = [f"- {_plain(note)}" for note in (*t.notes, *reasons(t))]
        parts += [f"## {_plain(t.title)}", "\n".join(lines), "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: a run may be called anything that a directory may."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def reasons(table: Table) -> list[str]:
    """Why families have no number in some columns, once for each reason."""
    missing: dict[tuple[str, str], list[str]] = {}
    for name, cells in table.rows.items():
        for column, cell in zip(table.columns, cells, strict=True):
            if cell.why:
                missing.setdefault((name, cell.why), []).append(column.partition(" (")[0])
    families: dict[tuple[str, str], list[str]] = {}
    for (name, why), columns in missing.items():
        short = " and ".join(columns) if len(columns) < 3 else f"{columns[0]}, ..., {columns[-1]}"
        families.setdefault((short, why), []).append(name)
    return [f"{', '.join(names)}: no {short}: {why}." for (short, why), names in families.items()]
