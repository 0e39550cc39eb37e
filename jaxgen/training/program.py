"""The compiled program of a run: its loop of training steps on its data."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.core import Batch, PyTree, State
from jaxgen.data.pipeline import Pipeline
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.step import make_step
from jaxgen.training.strategies import Feed, JitStrategy, Run


def is_resident(experiment: Experiment, config: RunConfig) -> bool:
    """Whether the whole training set lies on the devices.

    Args:
        experiment: Experiment whose data are asked for.
        config: Flags of the run.
    """
    return experiment.pipeline.resident and not config.data.stream


def make_program(
    experiment: Experiment, config: RunConfig, strategy: JitStrategy, state: State
) -> Run:
    """The compiled loop of training steps, `(state, fixed, data, num_steps)`.

    Args:
        experiment: Model and data.
        config: Flags of the run.
        strategy: Strategy that compiles it.
        state: State to train, or its shapes.
    """
    step = make_step(
        experiment.family,
        averages=experiment.averages,
        accumulate=config.accumulate,
        axis_name=strategy.axis_name,
        small=strategy.small,
    )
    resident = is_resident(experiment, config)
    feed = Feed(
        _batch_function(experiment.pipeline, resident=resident),
        lambda key, raw: experiment.prepare(key, raw, True),
        config.seed,
        resident,
    )
    return strategy.compile(step, feed, state)


def _batch_function(pipeline: Pipeline, *, resident: bool):
    """`Feed.batch` for a set on the device, or for batches from the host."""
    if not resident:
        return lambda batch, step, shard: batch

    def gather(arrays: PyTree, step: jax.Array, shard: tuple[Any, int]) -> Batch:
        index, count = shard
        rows = pipeline.indices(step, jnp)
        if count > 1:
            size = rows.shape[0] // count
            rows = lax.dynamic_slice_in_dim(rows, index * size, size)
        # In bounds by construction: spare the gather its clamps.
        return {k: v.at[rows].get(mode="promise_in_bounds") for k, v in arrays.items()}

    return gather
