"""The training loop: dispatch, read the last dispatch's metrics, log, sample, evaluate, save."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen.core import PyTree, State, Variables
from jaxgen.data.sources import check_alike
from jaxgen.training import evaluation, states
from jaxgen.training.best import SCORE, Best, ranking_table
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.config import RunConfig, to_dict
from jaxgen.training.experiment import Experiment
from jaxgen.training.flag_checks import check_flags
from jaxgen.training.guard import guarded_names
from jaxgen.training.measure import Measure
from jaxgen.training.optim import learning_rates
from jaxgen.training.pace import Pace
from jaxgen.training.profile import Profile
from jaxgen.training.program import is_resident, make_program
from jaxgen.training.signals import StoppedError, StopSignals
from jaxgen.training.strategies import MOST_STEPS, JitStrategy, Report, make_strategy
from jaxgen.training.tally import Tally
from jaxgen.training.writers import EVALUATIONS, MEASUREMENTS, Writers

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
            kind of the others, samples cannot be measured as asked, or rows of the run's tables are
            lost.
        NonFiniteError: After `config.max_nonfinite` skipped steps in a row; the last finite state
            is saved.
        CheckpointError: If the checkpoints cannot be read or written.
    """
    strategy = make_strategy(config.strategy, devices, fsdp=config.fsdp)
    check_flags(experiment, config, strategy)
    check_alike(experiment.pipeline.source, experiment.held_out)
    with (
        Checkpoints(
            states.checkpoint_directory(config),
            keep=config.keep,
            best_metric=SCORE if ranking_table(config) else None,
        ) as checkpoints,
        Writers(
            config.run_dir,
            config.steps,
            names=config.writers,
            config=to_dict(config),
            unit=experiment.medium.unit,
            enabled=jax.process_index() == 0,
        ) as writers,
        nullcontext(stop) if stop is not None else StopSignals() as stop,
    ):
        for name, reason in experiment.left_out.items():
            writers.note(f"the picture {name!r} is left out: {reason}")
        state = states.start(experiment, config, strategy, checkpoints, writers.note)
        loop = _Loop(experiment, config, strategy, checkpoints, writers, stop, state)
        with loop.profile:
            return loop.run(state)


class _Dispatch(NamedTuple):
    """Steps that the device is at: the first, how many, what it will report, and learning rates."""

    begin: int
    num_steps: int
    report: Report
    learning_rates: Mapping[str, jax.Array]


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
        self.rates = learning_rates(experiment.family)
        self.profile = Profile(config, writers.note)
        self.best = Best(config, checkpoints)
        self.warned: list[str] = []
        self.compiled_asides: set[str] = set()
        self._remember(int(state.step))
        self.measure = self._measurer()

    def _remember(self, step: int) -> None:
        """What the checkpoint of a step keeps beside its arrays, and its best ones' scores."""
        notes = self.checkpoints.notes(step)
        self.tally = Tally.from_json(notes.get("tally", {}))
        self.writers.resume(step, notes.get("rows", {}), accept_lost=self.config.accept_lost_rows)
        self.saved = step
        self.looked = time.monotonic()
        self.best.remember()

    def _data(self, step: int) -> Iterator[PyTree]:
        """The data of each dispatch: the whole set every time, or the next batch."""
        pipeline, strategy = self.experiment.pipeline, self.strategy
        if self.resident:
            return itertools.repeat(strategy.put_replicated(pipeline.arrays))
        stream = pipeline.stream(
            step, process_index=jax.process_index(), process_count=jax.process_count()
        )
        return map(strategy.put_batch, stream)

    def _shower(self) -> Callable[[Variables], evaluation.Shown] | None:
        """What training shows, as a function of the variables; None for nothing."""
        if not self.config.sample_every:
            return None
        if reason := evaluation.why_nothing_is_shown(self.experiment):
            self.writers.note(f"training shows no samples: {reason}")
            return None
        return evaluation.make_show(self.experiment, self.strategy, self.config.seed)

    def _measurer(self) -> Measure | None:
        """What measures samples, where that is asked for; a signal ends its making."""
        if not self.config.measure_every:
            return None
        self.writers.busy("preparing to measure samples")
        make = partial(Measure, self.experiment, self.config, self.strategy)
        try:
            measure = self.stop.unless_stopped(make, patience=math.inf, late=lambda: None)
        except StoppedError:
            return None
        if measure.distances.warning is not None:
            self.writers.note(f"--measure-num: {measure.distances.warning}")
        return measure

    def _variables(self, state: State) -> Variables:
        return evaluation.variables_of(state, self.experiment.averages, self.fixed)

    def run(self, state: State) -> State:
        """Steps until the last one, or until a signal."""
        config, step, pending = self.config, int(state.step), None
        self.pace.start(step)
        is_left = not self._look(step, state)  # what was left when the run stopped at this step
        if step < config.steps:
            self.writers.busy("compiling the training step")
            self.profile.resume(step)
            self.profile.begin(step)
        while step < config.steps and not is_left and not self.stop.requested(step):
            num_steps = min(self.pace.num_steps, self._boundary(step) - step)
            state, report = self.compiled(state, self.fixed, next(self.data), num_steps)
            # Read what the device finished before this dispatch, while it works on this one.
            self._read(pending, state)
            pending = _Dispatch(step, num_steps, report, self._rates(step + num_steps, state))
            step += num_steps
            if self._is_event(step):
                self._read(pending, state)
                pending = None
                self.profile.end(step)
                is_left = not self._events(step, state)
                self.profile.begin(step)
                self.pace.start(step)
        self._read(pending, state)
        self._save(step, state)
        self.checkpoints.wait()
        self.checkpoints.rotate()
        if step < config.steps:
            what = "saved" if step else "nothing is trained yet"
            self.writers.note(f"stopped at step {step}, {what}; the same command resumes it")
        elif is_left:
            self.writers.note(f"step {step} is saved; the same command draws what is missing")
        return state

    def _rates(self, step: int, state: State) -> Mapping[str, jax.Array]:
        """The learning rates of a row, computed before the next dispatch takes the state."""
        return self.rates(state.opt_state) if self._due(step, self.config.log_every) else {}

    def _save(self, step: int, state: State) -> None:
        """Save a step that is not yet, after the rows that it makes final."""
        if self.saved != step:
            notes = {"tally": self.tally.to_json(), "rows": self.writers.rows()}
            self.checkpoints.save(step, state, notes=notes)
            self.saved = step

    def _boundary(self, step: int) -> int:
        """The next step at which something other than training happens."""
        c = self.config
        every = (c.log_every, *self._looks(), c.checkpoint_every)
        later = [stop for stop in self.profile.steps if stop > step]
        return min([c.steps, *later] + [(step // n + 1) * n for n in every if n])

    def _is_event(self, step: int) -> bool:
        every = (*self._looks(), self.config.checkpoint_every)
        return step in self.profile.steps or any(self._due(step, n) for n in every)

    def _looks(self) -> tuple[int, int, int]:
        """How often samples are shown, held-out examples evaluated and samples measured."""
        return self.config.sample_every, self.config.evaluate_every, self.config.measure_every

    def _due(self, step: int, every: int) -> bool:
        """Whether an event of every so many steps (0: never) is due; the last step has all."""
        return every > 0 and (step % every == 0 or step == self.config.steps)

    def _read(self, pending: _Dispatch | None, state: State) -> None:
        """Fetch a dispatch's metrics (waiting for it), log them, and stop where training failed."""
        if pending is None:
            return
        begin, num_steps, report, row_rates = pending
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
                **{name: float(value) for name, value in row_rates.items()},
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
        c = self.config
        looks = any(self._due(step, n) for n in self._looks())
        # What is measured may be the best. Several processes save together, so before one of them
        # may have to leave.
        if (
            self._due(step, c.checkpoint_every)
            or self._due(step, c.measure_every)
            or (looks and jax.process_count() > 1)
        ):
            self._save(step, state)
        return self._look(step, state)

    def _look(self, step: int, state: State) -> bool:
        """Sample, evaluate and measure where it is due and not done; False where a signal came
        first."""
        shows, evaluates, measures = self._missing(step)
        try:
            if shows and self.show is not None:
                self._show(step, state)
            if evaluates:
                variables = self._variables(state)
                metrics = self._aside("evaluating", partial(self.evaluate, variables))
                self.writers.log_evaluation(step, metrics)
                self.best.rate(EVALUATIONS, step, metrics)
            if measures and self.measure is not None:
                distances = self._measured(step, state, self.measure)
                self.writers.log_measurement(step, distances)
                self.best.rate(MEASUREMENTS, step, distances)
        except StoppedError:
            return False
        except Exception:
            if jax.process_count() == 1:  # an error here loses no step
                self._save(step, state)
            raise
        return True

    def _measured(self, step: int, state: State, measure: Measure) -> dict[str, float]:
        """The distances of samples; where these are not finite, a row that says so."""
        try:
            return self._aside("measuring samples", partial(measure, self._variables(state)))
        except FloatingPointError as error:
            self.writers.note(f"step {step}: warning: nothing is measured: {error}")
            return measure.nothing()

    def _show(self, step: int, state: State) -> None:
        """Draw; that it cannot be shown is said, and training goes on: it may recover."""
        show, variables = self.show, self._variables(state)
        assert show is not None
        try:
            self._aside("drawing samples", lambda: self.writers.samples(step, *show(variables)))
        except FloatingPointError as error:
            self.writers.note(f"step {step}: warning: nothing is shown: {error}")

    def _missing(self, step: int) -> list[bool]:
        """Whether a picture, an evaluation and a measurement are due at a step and not there."""
        if step == 0:
            return [False, False, False]
        w = self.writers
        there = [w.has_samples(step), w.has_evaluation(step), w.has_measurement(step)]
        if jax.process_count() > 1:
            there = np.asarray(multihost_utils.broadcast_one_to_all(np.array(there))).tolist()
        due = [self._due(step, every) for every in self._looks()]
        due[0] = due[0] and self.show is not None
        return [is_due and not is_there for is_due, is_there in zip(due, there, strict=True)]

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
