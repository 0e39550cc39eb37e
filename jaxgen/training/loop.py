"""The training loop: dispatch, read the last dispatch's metrics, log, sample, evaluate, save."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.core import Batch, PyTree, State, Variables
from jaxgen.data.sources import check_alike
from jaxgen.training import evaluation
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import IMAGES, Experiment
from jaxgen.training.guard import guarded_names
from jaxgen.training.pace import Pace
from jaxgen.training.program import is_resident, make_program
from jaxgen.training.signals import StopSignals
from jaxgen.training.step import init_state, max_repeats
from jaxgen.training.strategies import JitStrategy, Report, make_strategy
from jaxgen.training.writers import Writers


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss, gradient or update that is not finite."""


def train(experiment: Experiment, config: RunConfig, devices: Any = None) -> State:
    """Train, or continue training, in `config.run_dir`, up to `config.steps` steps.

    Everything is a function of (seed, step): a run that was stopped at any point, by a signal, an
    error or a lost machine, continues from its newest sound checkpoint as if it had not stopped.

    Args:
        experiment: Model and data.
        config: Flags of the run.
        devices: Devices to use, all by default.

    Returns:
        The state after the last step, or after the step at which SIGTERM or SIGINT came.

    Raises:
        ValueError: If the batch does not fit the devices, or the held-out examples are not of the
            kind of the others.
        NonFiniteError: After `config.max_nonfinite` skipped steps in a row; the last finite state
            is saved.
        CheckpointError: If the checkpoints cannot be read or written.
    """
    strategy = make_strategy(config.strategy, devices, fsdp=config.fsdp)
    check_batch(experiment, config, strategy)
    check_alike(experiment.pipeline.source, experiment.held_out)
    with (
        Checkpoints(
            checkpoint_directory(config),
            keep=config.keep,
            best_metric="loss" if config.evaluate_every else None,
        ) as checkpoints,
        Writers(
            config.run_dir,
            config.steps,
            unit=experiment.medium.unit,
            enabled=jax.process_index() == 0,
        ) as writers,
        StopSignals() as stop,
    ):
        for name, reason in experiment.left_out.items():
            writers.note(f"the picture {name!r} is left out: {reason}")
        state = start(experiment, config, strategy, checkpoints, writers.note)
        loop = _Loop(experiment, config, strategy, checkpoints, writers, state)
        return loop.run(state, stop)


def checkpoint_directory(config: RunConfig) -> Path:
    """The directory of a run's checkpoints."""
    return Path(config.run_dir) / "checkpoints"


def grid_of(experiment: Experiment) -> tuple[int, int]:
    """The rows and columns that training shows: one row a condition for a conditional family."""
    rows, columns = experiment.medium.grid
    conditioning = experiment.family.conditioning
    if experiment.medium.unit == "images" and conditioning and conditioning.sweep is not None:
        rows = len(conditioning.sweep)
    return rows, columns


def check_batch(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> None:
    """Checks that the batch can be split by devices, micro-batches and repeated updates.

    Args:
        experiment: Experiment whose family has the repeated updates.
        config: Flags of the run.
        strategy: Strategy whose devices share the batch.

    Raises:
        ValueError: If the batch size is not a multiple of their product.
    """
    parts = strategy.num_devices * config.accumulate * max_repeats(experiment.family)
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size must be a multiple of {parts} ({strategy.num_devices} devices x "
            f"{config.accumulate} micro-batches x {max_repeats(experiment.family)} updates a "
            f"phase), got {config.batch_size}"
        )


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
    restored = checkpoints.restore(abstract_state(experiment, config, strategy))
    if restored is None:
        return new_state(experiment, config, strategy)
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
    experiment: Experiment, config: RunConfig, strategy: JitStrategy, *, step: int | None = None
) -> State:
    """The state of a run's checkpoint without its optimizer, for sampling and evaluation.

    Args:
        experiment: Experiment of the run.
        config: Flags of the run, `run_dir` among them.
        strategy: Strategy that places the state on devices.
        step: Step of the checkpoint; the newest by default.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint is of another model, or its parameters cannot be used.
        CheckpointError: If the checkpoint is damaged.
    """
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
    init, args = _initializer(experiment, config, strategy)
    shapes = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        strategy.shardings(shapes),
    )


def _initializer(experiment: Experiment, config: RunConfig, strategy: JitStrategy):
    """`init(key, raw batch, fixed) -> State` and its arguments."""

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


class _Loop:
    """The compiled step with its logging, samples and checkpoints, for one call of `train`."""

    def __init__(
        self,
        experiment: Experiment,
        config: RunConfig,
        strategy: JitStrategy,
        checkpoints: Checkpoints,
        writers: Writers,
        state: State,
    ):
        self.experiment, self.config, self.strategy = experiment, config, strategy
        self.checkpoints, self.writers = checkpoints, writers
        self.names = guarded_names(experiment.family, state.params, experiment.averages)
        self.resident = is_resident(experiment, config)
        self.data = self._data(int(state.step))
        self.compiled = make_program(experiment, config, strategy, state)
        self.fixed = strategy.put_replicated(experiment.family.fixed)
        self.show = self._shower()
        self.evaluate = evaluation.make_evaluate(experiment, strategy, config.seed)
        self.pace = Pace(1 if not self.resident else 1000)
        self.totals: dict[str, np.ndarray] = {}
        self.skipped = 0
        self.warned: list[str] = []

    def _data(self, step: int) -> Iterator[PyTree]:
        """The data of each dispatch: the whole set every time, or the next batch."""
        pipeline, strategy = self.experiment.pipeline, self.strategy
        if self.resident:
            return itertools.repeat(strategy.put_replicated(pipeline.arrays))
        stream = pipeline.stream(
            step, process_index=jax.process_index(), process_count=jax.process_count()
        )
        return map(strategy.put_batch, stream)

    def _shower(self) -> Callable[[int, State], None] | None:
        """`show(step, state)`, which writes samples or a picture; None for neither."""
        experiment, key = self.experiment, jax.random.key(self.config.seed)
        if not self.config.sample_every:
            return None
        if reason := evaluation.why_nothing_is_shown(experiment):
            self.writers.note(f"training shows no samples: {reason}")
            return None
        rows, columns = grid_of(experiment)
        shown = evaluation.shown(experiment)
        if shown is not None:
            picture = evaluation.make_picture(experiment, shown)
            return lambda step, state: self.writers.samples(
                step, picture(self._variables(state), key, rows, columns), columns, IMAGES
            )
        if experiment.medium.picture is None:
            return None
        sample = evaluation.make_sample(experiment, self.strategy, preview=True)
        return lambda step, state: self.writers.samples(
            step,
            sample(self._variables(state), key, rows * columns),
            columns,
            experiment.medium,
        )

    def _variables(self, state: State) -> Variables:
        return evaluation.variables_of(state, self.experiment.averages, self.fixed)

    def run(self, state: State, stop: StopSignals) -> State:
        """Steps until the last one, or until a signal."""
        config, step, pending = self.config, int(state.step), None
        streak = self.strategy.put_replicated(np.int32(0))
        self.saved = step
        self.pace.start(step)
        if step < config.steps:
            self.writers.busy("compiling the training step")
        while step < config.steps and not stop.requested(step):
            num_steps = min(self.pace.num_steps, self._boundary(step) - step)
            state, report = self.compiled(state, self.fixed, streak, next(self.data), num_steps)
            streak, step = report.streak, step + num_steps
            # Read what the device finished before this dispatch, while it works on this one.
            self._read(pending, state)
            pending = (step, report)
            if self._is_event(step):
                self._read(pending, state)
                pending = None
                self._events(step, state)
                self.pace.start(step)
        self._read(pending, state)
        if self.saved != step:
            self.checkpoints.save(step, state)
        self.checkpoints.wait()
        if step < config.steps:
            self.writers.note(f"stopped at step {step}, saved; the same command resumes it")
        return state

    def _boundary(self, step: int) -> int:
        """The next step at which something other than training happens."""
        c = self.config
        every = (c.log_every, c.sample_every, c.evaluate_every, c.checkpoint_every)
        return min([c.steps] + [(step // n + 1) * n for n in every if n])

    def _is_event(self, step: int) -> bool:
        c = self.config
        every = (c.sample_every, c.evaluate_every, c.checkpoint_every)
        return any(self._due(step, n) for n in every)

    def _due(self, step: int, every: int) -> bool:
        """Whether an event of every so many steps (0: never) is due; the last step has all."""
        return every > 0 and (step % every == 0 or step == self.config.steps)

    def _read(self, pending: tuple[int, Report] | None, state: State) -> None:
        """Fetch a dispatch's metrics (waiting for it), log them, and stop where training failed."""
        if pending is None:
            return
        step, report = pending
        host = jax.device_get(report)
        rate = self.pace.finished(step)
        for name, pair in host.metrics.items():
            self.totals[name] = self.totals.get(name, np.zeros(2)) + np.array(pair, np.float64)
        self.skipped += int(host.skipped)
        if host.first_bad[1] >= 0:
            self.writers.note(
                f"step {host.first_bad[0]}: {self.names[host.first_bad[1]]} is not finite; "
                f"{host.skipped} update(s) skipped"
            )
        metrics = {name: total / weight for name, (total, weight) in self.totals.items() if weight}
        self.writers.progress(step, metrics, rate, rate * self.config.batch_size)
        if self._due(step, self.config.log_every):
            rate = self.pace.average()
            rates = {
                "steps_per_second": rate,
                f"{self.experiment.medium.unit}_per_second": rate * self.config.batch_size,
            }
            self.writers.log(step, {**metrics, "skipped": float(self.skipped), **rates})
            self._warn(step, metrics)
            self.totals = {}
        if host.worst_streak >= self.config.max_nonfinite:
            self._give_up(host, state)

    def _warn(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the family's warnings about its metrics, each once until it no longer holds."""
        warnings = list(self.experiment.family.watch(metrics))
        for warning in warnings:
            if warning not in self.warned:
                self.writers.note(f"step {step}: warning: {warning}")
        self.warned = warnings

    def _give_up(self, host: Report, state: State) -> None:
        """Save the last finite state, which later steps did not change, and raise."""
        last = int(state.step)
        self.checkpoints.save(last, state)
        self.checkpoints.wait()
        raise NonFiniteError(
            f"{host.worst_streak} steps in a row were skipped up to step {last}: "
            f"{self.names[host.first_bad[1]]} is not finite. The last finite parameters are saved "
            "there. Try a lower learning rate, gradient clipping or --precision float32, in a new "
            "--run-dir"
        )

    def _events(self, step: int, state: State) -> None:
        """Sample, evaluate and save where it is due."""
        config = self.config
        if self.show is not None and self._due(step, config.sample_every):
            self.show(step, state)
        metrics = None
        if self._due(step, config.evaluate_every):
            metrics = self.evaluate(self._variables(state))
            self.writers.log_evaluation(step, metrics)
        if self._due(step, config.checkpoint_every):
            self.checkpoints.save(step, state, metrics=metrics)
            self.saved = step
