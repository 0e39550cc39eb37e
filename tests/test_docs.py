"""The documentation: its notebooks, its pages' code, and what its site is made of."""

import importlib.util
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


def maker():
    """The module that executes the notebooks."""
    pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_notebooks_keep_no_error_no_warning_and_no_place_of_a_machine(path):
    assert not list(maker().faults(read(path)))
    assert not re.search(r"/(?:home|root|tmp|work)/", path.read_text())


def cell(nbformat, source, outputs=()):
    v4 = nbformat.v4
    outputs = [v4.new_output(kind, **fields) for kind, fields in outputs]
    return v4.new_code_cell(source, outputs=outputs)


def test_what_outputs_must_not_hold():
    nbformat = pytest.importorskip("nbformat")
    picture = {"text/html": '<img src="data:image/png;base64,/9j/4A/bc/=="></p> 0.3 bits/dim'}
    kept = [
        ("display_data", {"data": picture}),
        ("stream", {"text": "https://host.org/a/b and runs/tutorial: 3/4 done"}),
    ]
    bad = [
        ("error", {"ename": "KeyError", "evalue": "x"}),
        ("stream", {"name": "stderr", "text": "anything"}),
        ("stream", {"text": "RuntimeWarning: os.fork() was called"}),
        ("stream", {"text": "written: /opt/venv/lib/x.py:3"}),
        ("display_data", {"data": {"text/plain": "Run(/data/runs/one)"}}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell(nbformat, "1", [each]) for each in kept + bad])
    lines = list(maker().faults(notebook))
    assert [line.split()[:3] for line in lines] == [
        ["cell", "2:", "error"],
        ["cell", "3:", "on"],
        ["cell", "4:", "warning"],
        ["cell", "5:", "place"],
        ["cell", "6:", "place"],
    ]


FORKS = """import jax
jax.numpy.zeros(3).block_until_ready()
!echo from a command"""


@pytest.mark.slow
def test_a_notebook_is_executed_and_a_warning_never_written(tmp_path):
    """A command after "!" forks the kernel, of which JAX warns, with a place of the machine."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    paths = [tmp_path / f"{name}.ipynb" for name in ("quiet", "warned")]
    quiet = "import warnings\nwarnings.filterwarnings('ignore', r'os\\.fork')\n" + FORKS
    for path, source in zip(paths, (quiet, FORKS), strict=True):
        nbformat.write(nbformat.v4.new_notebook(cells=[cell(nbformat, source)]), path)
    before = paths[1].read_bytes()
    command = [sys.executable, DOCS / "notebooks.py", *paths]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"warned.ipynb is left as it was:\s+cell 0: .*os.fork", result.stderr)
    assert paths[1].read_bytes() == before
    (executed,) = read(paths[0]).cells
    assert [output.text.split() for output in executed.outputs] == [["from", "a", "command"]]
    assert executed.metadata == {}


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
