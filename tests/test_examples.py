"""The examples in docstrings say what happens: each is run as it stands."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "jaxgen").rglob("*.py")
    if ">>> " in path.read_text()
)
COMMON = {"jax": jax, "jnp": jnp, "np": np}  # what every example may take as imported
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def how_long(name):
    """Networks are compiled, each by itself: that takes longer than all else."""
    marks = (
        [pytest.mark.slow] if name.startswith(("jaxgen.models", "jaxgen.metrics.report")) else []
    )
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [how_long(name) for name in EXAMPLES])
def test_examples_give_what_they_say(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    # Promotion of ranks is an error in the package's tests, not in its users' code.
    with jax.numpy_rank_promotion("allow"):
        for example in doctest.DocTestFinder().find(module, extraglobs=COMMON):
            runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_examples_are_under_a_heading_that_the_reference_knows():
    wrong = [
        str(path)
        for path in (ROOT / "jaxgen").rglob("*.py")
        if "Example:\n" in path.read_text()  # shown as text; of "Examples:" code is made
    ]
    assert not wrong
