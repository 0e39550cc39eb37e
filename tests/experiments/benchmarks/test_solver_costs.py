"""What solvers cost beside the network: which are timed, on what, and the arithmetic."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

pytest.importorskip("torch")  # the sizes are those of a benchmark beside PyTorch

from experiments.benchmarks import solvers
from experiments.benchmarks.ddpm import Size
from experiments.comparison.solvers import ENTRANTS


class Linear(nn.Module):
    """In the place of a network."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, train=False):
        return nn.Dense(1)(x) + 1e-3 * time.astype(jnp.float32).reshape(-1, 1, 1, 1)


def test_what_is_timed(monkeypatch):
    """Every solver, and its evaluations taken off."""
    cases = solvers.cases()
    assert set(ENTRANTS) <= set(cases)
    seconds = iter([{"network": 4.0, "heun": 9.0}, {"heun": 0.5}])
    monkeypatch.setattr(solvers, "interleaved", lambda *_, **__: next(seconds))
    monkeypatch.setattr(solvers, "cases", lambda: {"heun": cases["heun"]})
    results = solvers.measure(Size(Linear(), (4, 4, 1), 2, 2), 4, 5)
    # four steps of 1 s an evaluation, of which Heun's method takes seven
    assert results == {"network": (1.0, 1.0), "heun": (0.5, 0.125)}


def test_programs_run(monkeypatch):
    """One solver beside the bare network, in loops that are compiled."""
    case = solvers.cases()["ddim, chain"]
    monkeypatch.setattr(solvers, "cases", lambda: {"ddim, chain": case})
    results = solvers.measure(Size(Linear(), (4, 4, 1), 2, 2), 2, 1)
    assert all(seconds[1] > 0 for seconds in results.values())
