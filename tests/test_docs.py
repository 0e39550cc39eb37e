"""The documentation: its notebooks, its pages' code, and what its site is made of."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from quick import xla_flags

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("tutorials/*.ipynb"))
GUIDES = [path for path in sorted(DOCS.glob("guides/*.md")) if "```python\n" in path.read_text()]
GUIDES.remove(DOCS / "guides" / "own-network.md")  # training/test_own_network.py runs it
LESSONS = ["## What it is", "## Train", "## Look", "## Vary", "## Measure", "## Go on"]


def read(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def stem(path):
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_notebooks_are_valid_and_teach_in_one_order(path):
    notebook = read(path)
    pytest.importorskip("nbformat").validate(notebook)
    headings = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    order = [heading.partition(":")[0] for heading in headings]
    assert order == LESSONS
    assert notebook.cells[0].source.startswith("# ")
    assert "%pip install" in notebook.cells[1].source
    assert "JAXGEN_TINY" in "".join(cell.source for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_notebooks_keep_no_error_and_no_place_of_a_machine(path):
    outputs = [output for cell in read(path).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not re.search(r"/(?:home|root|tmp|work)/", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_every_cell_of_a_notebook_runs(path, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # One device, as a reader has.
    flags = {"JAXGEN_TINY": "1", "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(1)}
    environment = {**os.environ, **flags}
    code = (
        "import nbformat, sys; from nbclient import NotebookClient; "
        "NotebookClient(nbformat.read(sys.argv[1], 4), timeout=600).execute()"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=tmp_path, env=environment, check=True
    )


@pytest.mark.parametrize("path", GUIDES, ids=stem)
def test_code_of_the_guides_runs(path):
    """Blocks of `python`; those of `py` need files or packages that a reader has."""
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    # Promotion of ranks is an error in the package's tests, not in its users' code.
    with jax.numpy_rank_promotion("allow"):
        exec("\n".join(blocks), {"__name__": path.stem})


def test_navigation_names_pages_that_are_there():
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"[\w./-]+\.(?:md|ipynb)\b", text.partition("nav:")[2])
    made = {"recipes.md"}
    assert not [name for name in named if name not in made and not (DOCS / name).exists()]
    assert "tutorials/*" in text  # whatever else there is, is shown
    assert "guides/*" in text
