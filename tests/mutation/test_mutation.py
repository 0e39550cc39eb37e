"""The mutation campaign: what it changes, and what tests notice of it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mutants import draw, places  # noqa: E402

SOURCE = b'''"""Adds 1 and 2."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    N = 3


def mean(x: "f[3]", *, \xc3\xa9: int | None = 4):
    """Twice 5."""
    if x < -y and flag:
        raise ValueError(f"x must be {y + 6}", 7)
    z.w = jnp.sum(x, axis=0)  # 8
    return not log(a, b)
'''


def test_every_kind_of_change_and_nothing_but_code():
    found = {(m.before, m.after) for place in places("a.py", SOURCE) for m in place}
    call = "jnp.sum(x, axis=0)"
    assert found == {
        ("4", "(5)"),
        ("4", "(3)"),
        ("x < -y and flag", "(not (x < -y and flag))"),
        ("x < -y and flag", "(x < -y or flag)"),
        ("x < -y and flag", "(x < -y)"),
        ("x < -y and flag", "(flag)"),
        ("x < -y", "(x <= -y)"),
        ("-y", "(y)"),
        ('raise ValueError(f"x must be {y + 6}", 7)', "pass"),
        ("z.w = " + call, "pass"),
        (call, "(jnp.sum(x))"),
        (call, "(jnp.mean(x, axis=0))"),
        (call, "(x)"),
        ("0", "(1)"),
        ("0", "(-1)"),
        ("not log(a, b)", "(log(a, b))"),
        ("log(a, b)", "(log(b, a))"),
    }
    for place in places("a.py", SOURCE):
        for mutant in place:
            ast.parse(mutant.applied(SOURCE))


def test_a_seed_draws_the_same_places_once():
    root = HERE.parents[1]
    drawn = draw(root, 3, 50, "losses/")
    assert drawn == draw(root, 3, 60, "losses/")[:50] != draw(root, 4, 50, "losses/")
    assert len(set(drawn)) == 50
    assert all(m.path.startswith("jaxgen/losses/") for m in drawn)


@pytest.fixture
def tree(tmp_path):
    """A package of one function, whose test looks at a sum and not at its rounding."""
    files = {
        "jaxgen/core.py": "",
        "jaxgen/losses/add.py": "def add(a, b):\n    return round(a + b, 9)\n",
        "tests/conftest.py": "",
        "tests/losses/test_add.py": "from jaxgen.losses.add import add\n\n\n"
        "def test_add():\n    assert add(1, 2) == 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def campaign(tree, count, *flags):
    """What a campaign says, and change -> status of its results."""
    arguments = ["--root", tree, "--out", tree / "out", "--work", tree / "work", "--count", count]
    done = subprocess.run(
        [sys.executable, "-c", "import campaign; campaign.main(())", *map(str, arguments), *flags],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tree / "out").read_text().splitlines()]
    return done.stdout, {line["id"].split(": ")[1]: line["status"] for line in lines}


@pytest.mark.slow
def test_what_tests_notice_is_told_from_what_they_miss(tree):
    """In a campaign that is continued, and once more after a test was written."""
    source = (tree / "jaxgen/losses/add.py").read_bytes()
    _, first = campaign(tree, 1)
    said, found = campaign(tree, 3)
    assert len(first) == 1
    assert first.items() <= found.items()
    assert {change.split(" -> ")[0]: status for change, status in found.items()} == {
        "a + b": "killed",
        "round(a + b, 9)": "killed",
        "9": "survived",
    }
    assert "3 mutants, 2 noticed (66.7 %)" in said
    with (tree / "tests/losses/test_add.py").open("a") as file:
        file.write("\n\ndef test_digits():\n    assert add(0.6e-9, 1e-10) == 1e-9\n")
        file.write("    assert add(4e-10, 0) == 0\n")
        file.write("    assert add(1e-9, 0) == 1e-9\n")
    said, _ = campaign(tree, 3, "--again")
    assert "3 mutants, 3 noticed (100.0 %)" in said
    assert (tree / "jaxgen/losses/add.py").read_bytes() == source
