"""Checkpoints of a small state of many kinds of leaves: written, read, compared."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.core import State
from jaxgen.training.checkpoint import Checkpoints, CheckpointWarning

# Orbax leaves coroutines unfinished where a read fails.
QUIET = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def make_state(seed=0, width=64):
    """A state of many kinds of leaves: optax tuples, empty states, bfloat16, bool, no elements."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "net": {
            "kernel": jax.random.normal(keys[0], (8, width)),
            "scale": jax.random.normal(keys[1], (width,), jnp.bfloat16),
        }
    }
    gradients = jax.tree.map(lambda x: 0.1 * x, params)
    _, opt_state = OPTIMIZER.update(gradients, OPTIMIZER.init(params), params)
    model_state = {"seen": jnp.array([True, False]), "nothing": jnp.zeros((0, 3)), "none": None}
    ema = jax.tree.map(lambda x: 0.5 * x, params)
    return State(jnp.int32(seed), params, model_state, {"main": opt_state}, ema)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(actual, expected):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def write(directory, *steps):
    with Checkpoints(directory, keep=10) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))


def read(directory, **options):
    """Restores, and returns the step and the warnings, after checking every bit."""
    with warnings.catch_warnings(record=True) as caught, Checkpoints(directory) as checkpoints:
        warnings.simplefilter("always")
        step, state = checkpoints.restore(abstract(make_state()), **options)
    assert_same(state, make_state(step))
    return step, [str(w.message) for w in caught if w.category is CheckpointWarning]


def files_of(step_directory):
    return sorted(path for path in step_directory.rglob("*") if path.is_file())
