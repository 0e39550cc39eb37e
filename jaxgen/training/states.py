"""The state that a run begins with: a new one, or a checkpoint's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from jaxgen.core import Batch, PyTree, State
from jaxgen.training.best import best_step
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.step import init_state
from jaxgen.training.strategies import JitStrategy

Init = Callable[..., State]


def checkpoint_directory(config: RunConfig) -> Path:
    """The directory of a run's checkpoints."""
    return Path(config.run_dir) / "checkpoints"


def start(
    experiment: Experiment,
    config: RunConfig,
    strategy: JitStrategy,
    checkpoints: Checkpoints,
    note: Callable[[str], None],
) -> State:
    """The newest checkpoint's state, or a new one.

    Args:
        experiment: Model and data.
        config: Flags of the run.
        strategy: Strategy that places the state on devices.
        checkpoints: Checkpoints of the run.
        note: Function that prints a message.

    Raises:
        ValueError: If the checkpoint is of another model, or its parameters cannot be used.
        CheckpointError: If there are checkpoints, but none that can be used.
    """
    init, args = _initializer(experiment, config, strategy)
    restored = checkpoints.restore(_shapes(init, args, strategy))
    if restored is None:
        return strategy.init(init, *args)
    step, state = restored
    experiment.family.check(state.params)
    note(f"resuming {config.run_dir} at step {step}")
    return state


def new_state(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> State:
    """The state before the first step, a function of the seed.

    Args:
        experiment: Model and data.
        config: Flags of the run.
        strategy: Strategy that places the state on devices.
    """
    init, args = _initializer(experiment, config, strategy)
    return strategy.init(init, *args)


def restore(
    experiment: Experiment,
    config: RunConfig,
    strategy: JitStrategy,
    *,
    step: int | Literal["best"] | None = None,
) -> State:
    """The state of a run's checkpoint without its optimizer, for sampling and evaluation.

    Args:
        experiment: Experiment of the run.
        config: Flags of the run, `run_dir` among them.
        strategy: Strategy that places the state on devices.
        step: Step of the checkpoint, or "best" (`jaxgen.training.best`); the newest by default.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint is of another model, or its parameters cannot be used.
        CheckpointError: If the checkpoint is damaged.
    """
    if step == "best":
        step = best_step(config.run_dir)
    target = abstract_state(experiment, config, strategy)
    directory = checkpoint_directory(config)
    if directory.is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore(target._replace(opt_state={}), step=step, partial=True)
        if restored is not None:
            experiment.family.check(restored[1].params)
            return restored[1]
    raise FileNotFoundError(f"{config.run_dir} has no checkpoint yet: train on for a while")


def abstract_state(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> State:
    """The shapes and shardings of a state, which is not computed."""
    return _shapes(*_initializer(experiment, config, strategy), strategy)


def _shapes(init: Init, args: tuple[Any, ...], strategy: JitStrategy) -> State:
    shapes = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        strategy.shardings(shapes),
    )


def _initializer(
    experiment: Experiment, config: RunConfig, strategy: JitStrategy
) -> tuple[Init, tuple[Any, ...]]:
    """`init(key, raw batch, fixed) -> State` and its arguments."""

    @jax.jit  # traced once, for its shapes and for its numbers
    def init(key: jax.Array, raw: Batch, fixed: PyTree) -> State:
        prepare_key, init_key = jax.random.split(key)
        batch = experiment.prepare(prepare_key, raw, False)
        return init_state(
            experiment.family, init_key, batch, averages=experiment.averages, fixed=fixed
        )

    pipeline = experiment.pipeline
    raw = pipeline.host_batch(
        0, process_index=jax.process_index(), process_count=jax.process_count()
    )
    fixed = strategy.put_replicated(experiment.family.fixed)
    return init, (jax.random.key(config.seed), strategy.put_global(raw), fixed)
