"""Training in memory: the steps of a run, without its directory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource
from jaxgen.training.averages import constant
from jaxgen.training.fit import fit, prepare_fit
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import make_strategy, step_key


def test_whole_batches_are_the_steps_by_hand(key):
    """Every step sees all examples, under the key of its (seed, step)."""
    family = toys.regression(optax.sgd(0.1), noise=0.1)
    data = toys.batch(key)
    result = fit(family, data, 3, seed=5)
    state = init_state(family, jax.random.key(5), data)
    step, losses = jax.jit(make_step(family)), []
    for t in range(3):
        _, loss_key = jax.random.split(step_key(5, t))
        stepped = step(state, {}, data, loss_key)
        state = stepped.state
        losses.append(float(stepped.metrics["loss"][0] / stepped.metrics["loss"][1]))
    chex.assert_trees_all_close(result.state, state, rtol=1e-6)
    assert result.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.num_skipped == 0


def test_batches_are_those_of_the_pipeline(key):
    """The same examples in the same order as a run's, whatever the entries are called."""
    data = toys.batch(key, 10)
    seen = Pipeline(ArraySource({"index": np.arange(10)}), 4, seed=7)
    family = toys.regression(optax.sgd(0.1))
    result = fit(family, data, 5, batch_size=4, seed=7)
    first = seen.host_batch(0)["index"]
    state = init_state(family, jax.random.key(7), {k: v[first] for k, v in data.items()})
    step = jax.jit(make_step(family))
    for t in range(5):
        rows = seen.host_batch(t)["index"]
        batch = {k: v[rows] for k, v in data.items()}
        state = step(state, {}, batch, key).state  # this loss draws nothing
    chex.assert_trees_all_close(result.state, state, rtol=1e-6)


def test_goes_on_and_averages(key):
    """Three steps and two more are five; the variables are the averaged ones."""
    family, data = toys.regression(), toys.batch(key)
    averages = {"ema": constant(0.5)}
    whole = fit(family, data, 5, averages=averages)
    begun = fit(family, data, 3, averages=averages)
    ended = fit(family, data, 2, averages=averages, state=begun.state)
    chex.assert_trees_all_equal(ended.state, whole.state)
    chex.assert_trees_all_equal(whole.variables.params, whole.state.averages["ema"])
    assert set(family.evaluate(whole.variables, data, key)[1]) == {"error"}


def test_one_compilation_for_any_number_of_steps(key):
    family = toys.regression()
    strategy = make_strategy("jit", jax.devices()[:1])
    traces, phase = [], family.phases[0]

    def loss(*args):
        traces.append(1)
        return phase.loss(*args)

    family = family._replace(phases=(phase._replace(loss=loss),))
    state, run = prepare_fit(family, toys.batch(key), strategy=strategy)
    state = run(state, 1)[0]
    count = len(traces)
    for num_steps in (2, 3):
        state = run(state, num_steps)[0]
    assert len(traces) == count
    assert int(state.step) == 6


def test_lost_causes_and_bad_arguments(key):
    family, data = toys.regression(), toys.batch(key)
    bad = {**data, "y": jnp.full_like(data["y"], jnp.nan)}
    with pytest.raises(FloatingPointError, match="all 3 steps were skipped: the loss of phase"):
        fit(family, bad, 3)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        fit(family, data, 0)
    with pytest.raises(ValueError, match=r"entries of one length, at least 1, got \[8, 16\]"):
        fit(family, {**data, "y": data["y"][:8]}, 1)
    with pytest.raises(ValueError, match="batch_size must be between 1"):
        fit(family, data, 1, batch_size=0)
