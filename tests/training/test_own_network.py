"""The guide to one's own network: its code runs as it stands, and does what it says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own-network.md"
FIRST = 15  # lines, without the blank ones and the imports


@pytest.fixture(scope="module")
def blocks():
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def guide(blocks):
    """What the names of the guide stand for at its end."""
    names = {"__name__": "own_network"}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    return names


def test_the_first_example_is_short(blocks):
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len([line for line in lines if not re.match(r"(import|from) ", line)]) <= FIRST


@pytest.mark.parametrize("name", ["fitted", "nnx_fitted", "equinox_fitted"])
def test_networks_of_every_library_learn(guide, name):
    """The mean over all steps is below 1, the loss of a network that says nothing."""
    fitted = guide[name]
    assert fitted.num_skipped == 0
    assert 0 < fitted.metrics["loss"] < 0.95
    assert int(fitted.state.step) == (300 if name == "fitted" else 100)


def test_samples_and_the_model_outside_of_the_family(guide):
    assert guide["samples"].shape == (16, 8, 8, 1)
    assert np.isfinite(guide["samples"]).all()
    assert guide["eps"].shape == (4, 8, 8, 1)
    kernel = guide["model"].first.kernel[...]
    first = guide["Perceptron"](guide["nnx"].Rngs(0)).first.kernel[...]
    assert np.abs(kernel - first).max() > 0.01  # it is the trained one


def test_an_own_loss_with_statistics_and_dropout(guide):
    """It learns, its statistics follow, and another call is the same to the last bit."""
    fitted, data = guide["own_fitted"], guide["data"]
    assert guide["error"] < 0.5
    mean = fitted.variables.state["net"]["norm"]["mean"][...]
    assert np.abs(mean).max() > 0.01
    again = guide["fit"](guide["regression"], data, num_steps=300, batch_size=64)
    jax.tree.map(np.testing.assert_array_equal, again.variables, fitted.variables)
