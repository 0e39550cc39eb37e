"""The one loop: dispatch, read the last dispatch's metrics, log, sample, evaluate, save."""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from jaxgen.core import Batch, PyTree, State
from jaxgen.data.pipeline import Pipeline
from jaxgen.training import evaluation
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.step import guarded_names, init_state, make_step, max_repeats
from jaxgen.training.strategies import Feed, JitStrategy, Report, make_strategy
from jaxgen.training.writers import Writers

DISPATCH_SECONDS = 0.25  # long enough to hide the host's work, short enough to stop on a signal


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def train(experiment: Experiment, config: RunConfig, devices: Any = None) -> State:
    """Train, or go on training, in `config.run_dir`, up to `config.steps` steps.

    Everything is a function of (seed, step): a run that was stopped at any point, by a signal, an
    error or a lost machine, goes on from its newest sound checkpoint as if it had not been.

    Args:
        experiment: what to train on what.
        config: the run's flags.
        devices: the devices to use, all by default.

    Returns:
        The state after the last step, or after the step at which SIGTERM or SIGINT came.

    Raises:
        ValueError: if the batch does not fit the devices.
        NonFiniteError: after `config.max_nonfinite` skipped steps in a row; the last finite state
            is saved.
        CheckpointError: if the checkpoints cannot be read or written.
    """
    strategy = make_strategy(config.strategy, devices, fsdp=config.fsdp)
    check_batch(experiment, config, strategy)
    with (
        Checkpoints(
            checkpoint_directory(config),
            keep=config.keep,
            best_metric="loss" if config.evaluate_every else None,
        ) as checkpoints,
        Writers(config.run_dir, config.steps, enabled=jax.process_index() == 0) as writers,
        _StopSignals() as stop,
    ):
        state = start(experiment, config, strategy, checkpoints, writers.note)
        loop = _Loop(experiment, config, strategy, checkpoints, writers, state)
        return loop.run(state, stop)


def checkpoint_directory(config: RunConfig) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(config.run_dir) / "checkpoints"


def check_batch(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> None:
    """Raise ValueError unless the batch can be cut for devices, micro-batches and repeats."""
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
    """The newest checkpoint's state, or a new one."""
    restored = checkpoints.restore(abstract_state(experiment, config, strategy))
    if restored is None:
        init, args = _initializer(experiment, config, strategy)
        return strategy.init(init, *args)
    step, state = restored
    experiment.check(state.params)
    note(f"resuming {config.run_dir} at step {step}")
    return state


def restore(
    experiment: Experiment, config: RunConfig, strategy: JitStrategy, *, step: int | None = None
) -> State:
    """The state of a run's checkpoint without its optimizer, for sampling and evaluation.

    Args:
        experiment: the run's experiment.
        config: its flags; `run_dir` names it.
        strategy: where to put it.
        step: which checkpoint; the newest by default.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is another model's.
        CheckpointError: if it is damaged.
    """
    target = abstract_state(experiment, config, strategy)
    directory = checkpoint_directory(config)
    if directory.is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore(target._replace(opt_state={}), step=step, partial=True)
        if restored is not None:
            experiment.check(restored[1].params)
            return restored[1]
    raise FileNotFoundError(f"{config.run_dir} has no checkpoint yet: train on for a while")


def abstract_state(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> State:
    """The state's shapes and shardings, without computing it."""
    init, args = _initializer(experiment, config, strategy)
    shapes = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        strategy.shardings(shapes),
    )


def _initializer(experiment: Experiment, config: RunConfig, strategy: JitStrategy):
    """`init(key, raw batch) -> State` and its arguments."""

    def init(key: jax.Array, raw: Batch) -> State:
        prepare_key, init_key = jax.random.split(key)
        batch = experiment.prepare(prepare_key, raw, False)
        return init_state(experiment.family, init_key, batch, ema_of=experiment.ema_of)

    pipeline = experiment.pipeline
    raw = pipeline.host_batch(
        0, process_index=jax.process_index(), process_count=jax.process_count()
    )
    return init, (jax.random.key(config.seed), strategy.put_global(raw))


class _Loop:
    """The compiled step and what surrounds it, for one call of `train`."""

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
        self.names = guarded_names(experiment.family, state.params)
        self.resident = experiment.pipeline.resident and not config.data.stream
        self.data = self._data(int(state.step))
        step = make_step(
            experiment.family,
            ema=experiment.ema,
            accumulate=config.accumulate,
            axis_name=strategy.axis_name,
        )
        feed = Feed(
            _batch_function(experiment.pipeline, resident=self.resident),
            lambda key, raw: experiment.prepare(key, raw, True),
            config.seed,
            self.resident,
        )
        self.compiled = strategy.compile(step, feed, state)
        self.draw = self._drawer()
        self.evaluate = evaluation.make_evaluate(experiment, strategy, config.seed)
        self.pace = _Pace(1 if not self.resident else 1000)
        self.totals: dict[str, np.ndarray] = {}
        self.skipped = 0
        self.warned: list[str] = []

    def _data(self, step: int) -> Iterator[PyTree]:
        """What each dispatch is given: the whole set again and again, or the next batch."""
        pipeline, strategy = self.experiment.pipeline, self.strategy
        if self.resident:
            return itertools.repeat(strategy.put_replicated(pipeline.arrays))
        stream = pipeline.stream(
            step, process_index=jax.process_index(), process_count=jax.process_count()
        )
        return map(strategy.put_batch, stream)

    def _drawer(self) -> Callable[[State, int, int], np.ndarray] | None:
        """What training shows now and then: samples, or a picture; None where there is nothing."""
        experiment, key = self.experiment, jax.random.key(self.config.seed)
        if experiment.grid_picture is not None:
            picture = evaluation.make_picture(experiment, experiment.grid_picture)
            return lambda state, rows, columns: picture(state, key, rows, columns)
        if not experiment.samples_are_images and experiment.sample_files is None:
            return None
        sample = evaluation.make_sample(experiment, self.strategy, preview=True)
        return lambda state, rows, columns: sample(state, key, rows * columns)

    def run(self, state: State, stop: "_StopSignals") -> State:
        """Steps until the last one, or until a signal."""
        config, step, pending = self.config, int(state.step), None
        streak = self.strategy.put_replicated(np.int32(0))
        self.saved = step
        self.pace.start(step)
        while step < config.steps and not stop.requested(step):
            num_steps = min(self.pace.num_steps, self._boundary(step) - step)
            state, report = self.compiled(state, streak, next(self.data), num_steps)
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
        """Whether what happens every so many steps (0: never) happens now; the last step counts."""
        return every > 0 and (step % every == 0 or step == self.config.steps)

    def _read(self, pending: tuple[int, Report] | None, state: State) -> None:
        """Fetch a dispatch's metrics (waiting for it), log them, and stop on lost causes."""
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
                "images_per_second": rate * self.config.batch_size,
            }
            self.writers.log(step, {**metrics, "skipped": float(self.skipped), **rates})
            self._warn(step, metrics)
            self.totals = {}
        if host.worst_streak >= self.config.max_nonfinite:
            self._give_up(host, state)

    def _warn(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say what the experiment has to say of its metrics, each warning once until it is over."""
        warnings = list(self.experiment.watch(metrics))
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
        """Sample, evaluate and save, as is due."""
        config = self.config
        if self.draw is not None and self._due(step, config.sample_every):
            rows, columns = self.experiment.grid
            drawn, files = self.draw(state, rows, columns), self.experiment.sample_files
            if files is None or self.experiment.grid_picture is not None:
                self.writers.grid(step, drawn, columns)
            else:
                self.writers.sample_files(step, drawn, files)
        metrics = None
        if self._due(step, config.evaluate_every):
            metrics = self.evaluate(state)
            self.writers.log_evaluation(step, metrics)
        if self._due(step, config.checkpoint_every):
            self.checkpoints.save(step, state, metrics=metrics)
            self.saved = step


class _Pace:
    """How many steps to dispatch at once, and how fast they go."""

    def __init__(self, most: int):
        self.most, self.num_steps, self.rate = most, 1, 0.0
        self.step, self.time = 0, 0.0
        self.counted = [0, 0.0]  # steps and seconds since the last average

    def start(self, step: int) -> None:
        """Begin to count: nothing is in flight, and the next reading ends no interval."""
        self.step, self.time = step, 0.0

    def finished(self, step: int) -> float:
        """The device has finished up to `step`: the rate since the last call, in steps/s."""
        now, done = time.perf_counter(), step - self.step
        if self.time and done > 0:
            seconds = now - self.time
            self.rate = done / seconds
            self.counted = [self.counted[0] + done, self.counted[1] + seconds]
            aim = int(self.rate * DISPATCH_SECONDS)
            if jax.process_count() == 1:  # all processes must dispatch the same steps
                self.num_steps = max(1, min(self.most, 2 * self.num_steps, aim))
        self.step, self.time = step, now
        return self.rate

    def average(self) -> float:
        """The rate since the last call of this, events left out; 0 where unknown."""
        steps, seconds = self.counted
        self.counted = [0, 0.0]
        return steps / seconds if steps else self.rate


class _StopSignals(contextlib.AbstractContextManager):
    """SIGTERM and SIGINT ask the loop to save and return; a second SIGINT interrupts at once."""

    def __enter__(self) -> "_StopSignals":
        self.received = False
        # With several processes jax.distributed handles SIGTERM, and all stop at one step.
        self.single = jax.process_count() == 1
        self.previous: dict[int, Any] = {}
        if self.single and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def requested(self, step: int) -> bool:
        """Whether to stop before the step after `step`."""
        if self.single:
            return self.received
        return multihost_utils.reached_preemption_sync_point(step)


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
