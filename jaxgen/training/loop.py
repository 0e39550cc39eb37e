"""The training loop: dispatch, read the last dispatch's metrics, log, sample, evaluate, save."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen.core import PyTree, State, Variables
from jaxgen.data.sources import check_alike
from jaxgen.training import evaluation, picture_labels, states
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import IMAGES, Experiment
from jaxgen.training.guard import guarded_names
from jaxgen.training.pace import Pace
from jaxgen.training.program import is_resident, make_program
from jaxgen.training.signals import StoppedError, StopSignals
from jaxgen.training.step import max_repeats
from jaxgen.training.strategies import MOST_STEPS, JitStrategy, Report, make_strategy
from jaxgen.training.tables import read_rows
from jaxgen.training.tally import Tally
from jaxgen.training.writers import EVALUATIONS, Writers

T = TypeVar("T")
LATE_SECONDS = 30.0  # what is drawn in less is never called late


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss, gradient or update that is not finite."""


def train(
    experiment: Experiment,
    config: RunConfig,
    devices: Any = None,
    stop: StopSignals | None = None,
) -> State:
    """Train, or continue training, in `config.run_dir`, up to `config.steps` steps.

    Everything is a function of (seed, step): a run that was stopped at any point, by a signal, an
    error or a lost machine, continues from its newest sound checkpoint as if it had not stopped.

    Args:
        experiment: Model and data.
        config: Flags of the run.
        devices: Devices to use, all by default.
        stop: Signals that are listened to already; by default they are while this function runs.

    Returns:
        The state after the last step, or after the step at which SIGTERM or SIGINT came.

    Raises:
        ValueError: If the batch does not fit the devices, the held-out examples are not of the
            kind of the others, or rows of the run's tables are lost.
        NonFiniteError: After `config.max_nonfinite` skipped steps in a row; the last finite state
            is saved.
        CheckpointError: If the checkpoints cannot be read or written.
    """
    strategy = make_strategy(config.strategy, devices, fsdp=config.fsdp)
    check_batch(experiment, config, strategy)
    check_alike(experiment.pipeline.source, experiment.held_out)
    with (
        Checkpoints(
            states.checkpoint_directory(config),
            keep=config.keep,
            best_metric="loss" if config.evaluate_every else None,
        ) as checkpoints,
        Writers(
            config.run_dir,
            config.steps,
            unit=experiment.medium.unit,
            enabled=jax.process_index() == 0,
        ) as writers,
        nullcontext(stop) if stop is not None else StopSignals() as stop,
    ):
        for name, reason in experiment.left_out.items():
            writers.note(f"the picture {name!r} is left out: {reason}")
        state = states.start(experiment, config, strategy, checkpoints, writers.note)
        loop = _Loop(experiment, config, strategy, checkpoints, writers, stop, state)
        return loop.run(state)


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


class _Loop:
    """The compiled step with its logging, samples and checkpoints, for one call of `train`."""

    def __init__(
        self,
        experiment: Experiment,
        config: RunConfig,
        strategy: JitStrategy,
        checkpoints: Checkpoints,
        writers: Writers,
        stop: StopSignals,
        state: State,
    ):
        self.experiment, self.config, self.strategy = experiment, config, strategy
        self.checkpoints, self.writers, self.stop = checkpoints, writers, stop
        self.names = guarded_names(experiment.family, state.params, experiment.averages)
        self.resident = is_resident(experiment, config)
        self.data = self._data(int(state.step))
        self.compiled = make_program(experiment, config, strategy, state)
        self.fixed = strategy.put_replicated(experiment.family.fixed)
        self.show = self._shower()
        self.evaluate = evaluation.make_evaluate(experiment, strategy, config.seed)
        self.pace = Pace(MOST_STEPS if self.resident else 1)
        self.warned: list[str] = []
        self.compiled_asides: set[str] = set()
        self._remember(int(state.step))

    def _remember(self, step: int) -> None:
        """What the checkpoint of a step keeps beside its arrays, and its best ones' scores."""
        notes = self.checkpoints.notes(step)
        self.tally = Tally.from_json(notes.get("tally", {}))
        self.writers.resume(step, notes.get("rows", {}), accept_lost=self.config.accept_lost_rows)
        self.saved = step
        self.looked = time.monotonic()
        for row in read_rows(Path(self.config.run_dir) / EVALUATIONS):
            self.checkpoints.rate(int(row["step"]), row)

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
        family = experiment.family
        if shown is not None:
            picture = evaluation.make_picture(experiment, shown)
            labels = picture_labels.of_picture(family, shown, rows, columns)
            medium = picture_labels.labelled(IMAGES, labels)
            return lambda step, state: self.writers.samples(
                step, picture(self._variables(state), key, rows, columns), columns, medium
            )
        if experiment.medium.picture is None:
            return None
        sample = evaluation.make_sample(experiment, self.strategy, preview=True)
        names = picture_labels.names_of(family)
        labels = picture_labels.of_samples(names, rows * columns, columns)
        medium = picture_labels.labelled(experiment.medium, labels)
        return lambda step, state: self.writers.samples(
            step,
            sample(self._variables(state), key, rows * columns),
            columns,
            medium,
        )

    def _variables(self, state: State) -> Variables:
        return evaluation.variables_of(state, self.experiment.averages, self.fixed)

    def run(self, state: State) -> State:
        """Steps until the last one, or until a signal."""
        config, step, pending = self.config, int(state.step), None
        self.pace.start(step)
        is_left = not self._look(step, state)  # what was left when the run stopped at this step
        if step < config.steps:
            self.writers.busy("compiling the training step")
        while step < config.steps and not is_left and not self.stop.requested(step):
            num_steps = min(self.pace.num_steps, self._boundary(step) - step)
            state, report = self.compiled(state, self.fixed, next(self.data), num_steps)
            # Read what the device finished before this dispatch, while it works on this one.
            self._read(pending, state)
            pending = (step, num_steps, report)
            step += num_steps
            if self._is_event(step):
                self._read(pending, state)
                pending = None
                is_left = not self._events(step, state)
                self.pace.start(step)
        self._read(pending, state)
        self._save(step, state)
        self.checkpoints.wait()
        if step < config.steps:
            what = "saved" if step else "nothing is trained yet"
            self.writers.note(f"stopped at step {step}, {what}; the same command resumes it")
        elif is_left:
            self.writers.note(f"step {step} is saved; the same command draws what is missing")
        return state

    def _save(self, step: int, state: State) -> None:
        """Save a step that is not yet, after the rows that it makes final."""
        if self.saved != step:
            notes = {"tally": self.tally.to_json(), "rows": self.writers.rows()}
            self.checkpoints.save(step, state, notes=notes)
            self.saved = step

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

    def _read(self, pending: tuple[int, int, Report] | None, state: State) -> None:
        """Fetch a dispatch's metrics (waiting for it), log them, and stop where training failed."""
        if pending is None:
            return
        begin, num_steps, report = pending
        step = begin + num_steps
        added = self.tally.add(jax.device_get(report), begin, num_steps)
        rate = self.pace.finished(step)
        if added.first_bad is not None:
            bad_step, index = added.first_bad
            self.writers.note(
                f"step {bad_step}: {self.names[index]} is not finite; "
                f"{added.skipped} update(s) skipped"
            )
        metrics = self.tally.means()
        self.writers.progress(step, metrics, rate, rate * self.config.batch_size)
        if self._due(step, self.config.log_every):
            rate = self.pace.average()
            rates = {
                "steps_per_second": rate,
                f"{self.experiment.medium.unit}_per_second": rate * self.config.batch_size,
            }
            self.writers.log(step, {**metrics, "skipped": float(self.tally.skipped), **rates})
            self._warn(step, metrics)
        if step % self.config.log_every == 0:  # the last row of a run may come before its time
            self.tally.totals = {}
        if added.first_bad is not None and added.worst_streak >= self.config.max_nonfinite:
            self._give_up(added.worst_streak, self.names[added.first_bad[1]], state)

    def _warn(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the family's warnings about its metrics, each once until it no longer holds."""
        warnings = list(self.experiment.family.watch(metrics))
        for warning in warnings:
            if warning not in self.warned:
                self.writers.note(f"step {step}: warning: {warning}")
        self.warned = warnings

    def _give_up(self, streak: int, name: str, state: State) -> None:
        """Save the last finite state, which later steps did not change, and raise."""
        last = int(state.step)
        self._save(last, state)
        self.checkpoints.wait()
        raise NonFiniteError(
            f"{streak} steps in a row were skipped up to step {last}: {name} is not finite. The "
            "last finite parameters are saved there. Try a lower learning rate, gradient clipping "
            "or --precision float32, in a new --run-dir"
        )

    def _events(self, step: int, state: State) -> bool:
        """Save where it is due, then look; whether all was done that is due."""
        looks = self._due(step, self.config.sample_every) or self._due(
            step, self.config.evaluate_every
        )
        # Several processes save together, so before one of them may have to leave.
        if self._due(step, self.config.checkpoint_every) or (looks and jax.process_count() > 1):
            self._save(step, state)
        return self._look(step, state)

    def _look(self, step: int, state: State) -> bool:
        """Sample and evaluate where it is due and not done; False where a signal came first."""
        shows, evaluates = self._missing(step)
        try:
            if shows and self.show is not None:
                self._show(step, state)
            if evaluates:
                variables = self._variables(state)
                metrics = self._aside("evaluating", partial(self.evaluate, variables))
                self.writers.log_evaluation(step, metrics)
                self.checkpoints.rate(step, metrics)
        except StoppedError:
            return False
        except Exception:
            if jax.process_count() == 1:  # an error here loses no step
                self._save(step, state)
            raise
        return True

    def _show(self, step: int, state: State) -> None:
        """Draw; that it cannot be shown is said, and training goes on: it may recover."""
        assert self.show is not None
        try:
            self._aside("drawing samples", partial(self.show, step, state))
        except FloatingPointError as error:
            self.writers.note(f"step {step}: warning: nothing is shown: {error}")

    def _missing(self, step: int) -> tuple[bool, bool]:
        """Whether a picture and an evaluation are due at a step and not there."""
        if step == 0:
            return False, False
        done = np.array([self.writers.has_samples(step), self.writers.has_evaluation(step)])
        if jax.process_count() > 1:
            done = np.asarray(multihost_utils.broadcast_one_to_all(done))
        shows = self.show is not None and self._due(step, self.config.sample_every)
        evaluates = self._due(step, self.config.evaluate_every)
        return shows and not bool(done[0]), evaluates and not bool(done[1])

    def _aside(self, what: str, work: Callable[[], T]) -> T:
        """Do work beside training, which a signal ends, and say where it takes longer than that."""
        trained = time.monotonic() - self.looked
        if what in self.compiled_asides:
            self.writers.busy(what, plainly=False)
        else:
            self.writers.busy(f"compiling, then {what}")
        self.compiled_asides.add(what)

        def late() -> None:
            self.writers.note(
                f"{what} takes longer than the training since the last time ({trained:.0f} s): "
                "it can be done less often, and Ctrl-C leaves it"
            )

        result = self.stop.unless_stopped(work, patience=max(trained, LATE_SECONDS), late=late)
        self.looked = time.monotonic()
        return result
