"""Executes tutorials and keeps their outputs:  python docs/notebooks.py docs/tutorials/*.ipynb

Each runs in an empty directory, so that nothing goes on from an earlier time, and is written back
only if its outputs hold no error, no warning and no place of this machine.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat

_EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[\w+/=\s]+")
_PLACE = re.compile(r"(?<![\w.~:/<)-])/(?:[\w.+-]+/)+[\w.+-]*|\b[A-Z]:\\\w+")
_WARNING = re.compile(r"\b\w*Warning\b")


def main(paths: Sequence[str]) -> int:
    """Executes notebooks in place, one after another.

    Args:
        paths: Paths of the notebooks.

    Returns:
        0, or 1 if one has faults; that one is not written, and later ones are not executed.
    """
    # Commands of the notebooks (`!jaxgen`) are those of this Python's environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path in map(Path, paths):
        print(path, flush=True)
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        if problems := list(faults(notebook)):
            print(f"{path} is left as it was:", *problems, sep="\n  ", file=sys.stderr)
            return 1
        nbformat.write(notebook, path)
    return 0


def execute(notebook: Any) -> None:
    """Replaces the outputs of a notebook by those of a run in an empty directory.

    Args:
        notebook: Notebook, as nbformat reads it.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as directory:
        NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,  # or every run would change every cell
            coalesce_streams=True,
            resources={"metadata": {"path": directory}},
        ).execute()


def faults(notebook: Any) -> Iterator[str]:
    """What the outputs of a notebook must not hold, a line each.

    Args:
        notebook: Notebook, as nbformat reads it.
    """
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            text = _text(output)
            if output.output_type == "error":
                yield f"cell {number}: error {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"cell {number}: on stderr {text[:200]!r}"
            for what, pattern in (("warning", _WARNING), ("place", _PLACE)):
                if match := pattern.search(text):
                    yield f"cell {number}: {what} {match.group()!r}"


def _text(output: Any) -> str:
    """All text of an output, without pictures."""
    texts = [output.get("text", ""), *output.get("traceback", [])]
    texts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return _EMBEDDED.sub("", "\n".join(texts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
