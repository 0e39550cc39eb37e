"""The command line of every experiment: train (the default), sample, evaluate."""

import dataclasses
import logging
import math
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import jax
import tyro

from jaxgen.conditioning.asked import asked
from jaxgen.core import Variables
from jaxgen.files import held_alone
from jaxgen.training import evaluation, loop, outputs, picture_labels, runs, short_help, states
from jaxgen.training.checkpoint import CheckpointError, check_directory
from jaxgen.training.compilation import keep_programs
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import IMAGES, Experiment
from jaxgen.training.flag_checks import check_flags
from jaxgen.training.recipe import Recipe
from jaxgen.training.signals import StopSignals
from jaxgen.training.strategies import JitStrategy, make_strategy
from jaxgen.training.summary import print_summary
from jaxgen.training.writers import (
    SAMPLES,
    append_json_line,
    as_json_line,
    as_plain,
    describe_environment,
    print_anywhere,
)

C = TypeVar("C")  # a config, or what help shows of one
Flat = tyro.conf.arg(name="")
VERBS = ("train", "sample", "evaluate")
TRACEBACK = "JAXGEN_TRACEBACK"


@dataclass(frozen=True)
class Train(Generic[C]):
    """Flags of `train`."""

    config: Annotated[C, Flat]


@dataclass(frozen=True)
class Sample(Generic[C]):
    """Flags of `sample`."""

    config: Annotated[C, Flat]
    num: int = 64
    """Number of samples."""
    label: tuple[str, ...] = ()
    """Classes of the samples by name or number, in turn, of a model that is told a class; by
    default all of them."""
    attributes: tuple[str, ...] = ()
    """Attributes by name or number that all samples are to have, of a model that is told
    attributes; the others are those of examples of the data that have these. By default each in
    turn."""
    text: tuple[str, ...] = ()
    """Captions of the samples, in turn, of a model that is told a text; by default some of the
    data."""
    picture: str = "samples"
    """Name of what is drawn: `samples`, or an experiment's picture, such as `interpolation`."""
    columns: int | None = None
    """Number of images in a row of a .png; a picture of `num` images has num / columns rows."""
    out: Path | None = None
    """File to write: .png for a grid, or .npz for the samples (key `samples`, uint8 [N, H, W, C]);
    for audio .wav, with a .png of its spectrograms; of images also a new directory, for a .png of
    each. By default a new file in the run's directory: drawn/samples_001.png, samples_002.png..."""
    step: int | Literal["best"] | None = None
    """Step of the checkpoint to use, or `best`: that of the smallest distance that training has
    measured, else of the smallest held-out loss. The newest by default."""
    average: str | None = None
    """Name of the average of the parameters to use; `raw` for the trained ones, the first average
    by default."""


@dataclass(frozen=True)
class Evaluate(Generic[C]):
    """Flags of `evaluate`."""

    config: Annotated[C, Flat]
    step: int | Literal["best"] | None = None
    """Step of the checkpoint to use, or `best`: that of the smallest distance that training has
    measured, else of the smallest held-out loss. The newest by default."""
    average: str | None = None
    """Name of the average of the parameters to use; `raw` for the trained ones, the first average
    by default."""
    json: bool = False
    """Print the result as one line of JSON with its whole protocol, for programs."""


def main(recipe: Recipe, args: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line, and exit.

    `[train]` trains, or resumes where the run directory exists; `sample` and `evaluate` read a run
    directory. The flags are the fields of the config; for an existing run directory their defaults
    are its own. Bad input ends in one line on stderr and exit code 2, a run that failed in 1, one
    that SIGINT or SIGTERM stopped before its end in 130 or 143.

    Args:
        recipe: Recipe to run, which its module holds by the name `recipe`.
        args: Arguments of the command line, `sys.argv[1:]` by default.
    """
    print_anywhere()
    if not os.environ.get(TRACEBACK):  # Orbax logs tracebacks of what it raises too
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    arguments = list(sys.argv[1:] if args is None else args)
    verb = arguments.pop(0) if arguments and arguments[0] in VERBS else "train"
    command = {"train": _train, "sample": _sample, "evaluate": _evaluate}[verb]
    doc = recipe.module().__doc__ or ""
    try:
        sys.exit(command(_Invocation(recipe.name(), doc, recipe, arguments)))
    except (CheckpointError, loop.NonFiniteError, FloatingPointError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("error: interrupted", file=sys.stderr)
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, TypeError, OSError) as error:
        _fail(error, 2)


def _leave(code: int) -> None:
    """Exit without waiting for what other threads are at."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(error: Exception, code: int) -> None:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {error}\n(set {TRACEBACK}=1 for the traceback)", file=sys.stderr)
    sys.exit(code)


@dataclass(frozen=True)
class _Invocation:
    """One call of an experiment's module, with flags that are not yet parsed."""

    name: str
    doc: str
    recipe: Recipe
    arguments: list[str]

    def parse(self, verb: type[Any], *, must_exist: bool) -> tuple[Any, RunConfig | None]:
        """The flags, with the run directory's own config (returned too) as their defaults.

        They must not differ from it in what makes the trained model.
        """
        default = self.recipe.config
        flags = self._parse(verb, default)  # which exits where it is asked for help
        check_directory(states.checkpoint_directory(flags.config))
        saved = runs.load_config(Path(flags.config.run_dir), self.name, default)
        if flags.config.distributed:
            _join_processes()
        if saved is not None:
            flags = self._parse(verb, saved)
            # What is drawn or measured may have a seed of its own; all else is the trained model's.
            config = flags.config
            drawn = dataclasses.replace(config, seed=saved.seed) if must_exist else config
            runs.check_same(Path(config.run_dir), saved, drawn)
        elif must_exist:
            raise FileNotFoundError(
                f"--run-dir {flags.config.run_dir} is no run of {self.name}: train one first "
                f"({self.recipe.command('train')} --run-dir {flags.config.run_dir})"
            )
        place = flags.config.compilation_cache
        if place != "none":
            keep_programs(None if place == "default" else place)
        return flags, saved

    def _parse(self, verb: type[Any], default: RunConfig) -> Any:
        word, about, arguments = verb.__name__.lower(), self.doc, self.arguments
        shown: Any = default
        if asks := short_help.asked(arguments):
            stored, arguments = self._stored(default), ["--help"]
            shown = stored if asks == "all" else short_help.shown(stored, word)
            about = self.doc if asks == "all" else self.doc.partition("\n")[0]
            if verb is Sample:
                about += f"\n\n{short_help.pictures(self.recipe, stored)}"
        return tyro.cli(
            verb[type(shown)],
            default=verb(config=shown),
            args=arguments,
            prog=self.recipe.command(word),
            description=f"{about}\n\nVerbs: {', '.join(VERBS)} (each has its own --help, and "
            "--help-all shows every flag).",
        )

    def _stored(self, default: RunConfig) -> RunConfig:
        """The config of the run that is named, or the default where there is none to be read."""
        run_dir = short_help.run_dir_of(self.arguments)
        try:
            saved = run_dir and runs.load_config(Path(run_dir), self.name, default)
        except (ValueError, OSError):
            return default
        return saved or default


def _join_processes() -> None:
    """Start JAX as one of several processes; call this before anything uses its devices."""
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
            cluster_detection_method="deactivate",  # Slurm's would give it one GPU of its host
        )
    else:
        jax.distributed.initialize()


def _train(invocation: _Invocation) -> int:
    flags, saved = invocation.parse(Train, must_exist=False)
    config = flags.config
    experiment = invocation.recipe.build(config)
    check_flags(experiment, config, make_strategy(config.strategy, fsdp=config.fsdp))
    run_dir = Path(config.run_dir)
    if saved is not None:
        runs.check_fixed(run_dir, experiment.family.fixed)
        runs.check_files(run_dir, experiment)
    runs.check_data(run_dir, experiment, config)
    with ExitStack() as stack:
        if jax.process_index() == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held_alone(run_dir))
            runs.begin(run_dir, invocation.name, config, experiment)
            session = {"arguments": invocation.arguments, **describe_environment()}
            append_json_line(run_dir / "sessions.jsonl", session)
            train, held_out = experiment.pipeline.source, experiment.held_out
            print(f"data: {train.protocol}; held out: {held_out.protocol}", flush=True)
        stop = stack.enter_context(StopSignals())
        state = loop.train(experiment, config, stop=stop)
    print(f"{config.run_dir}: {int(state.step)} of {config.steps} steps done")
    grids = sorted((run_dir / SAMPLES).glob("*.png"))
    if grids:
        print(f"samples: {grids[-1]}")
    if stop.left_behind:
        _leave(stop.code)
    return stop.code if int(state.step) < config.steps else 0


def _sample(invocation: _Invocation) -> int:
    flags, _ = invocation.parse(Sample, must_exist=True)
    if flags.num < 1:
        raise ValueError(f"--num must be at least 1, got {flags.num}")
    if flags.columns is not None and flags.columns < 1:
        raise ValueError(f"--columns must be at least 1, got {flags.columns}")
    experiment = invocation.recipe.build(flags.config)
    family, run_dir = experiment.family, Path(flags.config.run_dir)
    strategy = make_strategy("jit", fsdp=flags.config.fsdp)
    is_picture, names = flags.picture != "samples", tuple[str, ...]()
    medium = IMAGES if is_picture else experiment.medium
    outputs.check(flags.out, run_dir, medium)
    conditions = asked(family.conditioning, flags.label, flags.attributes, flags.text)
    if is_picture and conditions is not None:
        raise ValueError(
            "--label, --attributes and --text are of samples: they do not go with --picture"
        )
    if is_picture:
        columns = 8 if flags.columns is None else flags.columns
        rows = max(1, flags.num // columns)
        picture = evaluation.make_picture(experiment, flags.picture)
        labels = picture_labels.of_picture(family, flags.picture, rows, columns)
    else:
        names = _asked_for(flags) or picture_labels.names_of(family)
        columns, labels = flags.columns, picture_labels.Labels()
        if medium.unit == "images":
            columns = columns or picture_labels.columns_for(names, flags.num)
            labels = picture_labels.of_samples(names, flags.num, columns)
        sample = evaluation.make_sample(experiment, strategy)
    step, variables = _restore(invocation, experiment, strategy, flags)
    key = jax.random.key(flags.config.seed)
    if is_picture:
        samples = picture(variables, key, rows, columns)
    else:
        samples = sample(variables, key, flags.num, conditions)
    recipe, what = invocation.name.rpartition(".")[2], flags.picture.replace("_", " ")
    title = f"{recipe}, step {step:,}: {what}"
    title += f", {names[0]}" if len(names) == 1 else ""
    medium = picture_labels.labelled(medium, labels, title)
    out = outputs.write(flags.out, run_dir, flags.picture, samples, columns, medium)
    print(f"{flags.picture}: {out}")
    return 0


def _asked_for(flags: Sample) -> tuple[str, ...]:
    """The conditions of the flags in words, in turn; () for those of the model's sweep."""
    return flags.label or flags.text or ((", ".join(flags.attributes),) if flags.attributes else ())


def _evaluate(invocation: _Invocation) -> int:
    flags, _ = invocation.parse(Evaluate, must_exist=True)
    experiment = invocation.recipe.build(flags.config)
    strategy = make_strategy("jit", fsdp=flags.config.fsdp)
    step, variables = _restore(invocation, experiment, strategy, flags)
    metrics = evaluation.make_evaluate(experiment, strategy, flags.config.seed)(variables)
    likelihood = evaluation.held_out_likelihood(experiment, metrics)
    environment = describe_environment()
    average = flags.average or next(iter(experiment.averages), None)
    bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    result = {
        "experiment": invocation.name,
        "step": step,
        **metrics,
        **({} if likelihood is None else {"likelihood": likelihood._asdict()}),
        "protocol": {
            **experiment.protocol,
            "parameters": "last" if average in (None, evaluation.RAW) else f"average {average!r}",
            "seed": flags.config.seed,
            "precision": flags.config.precision,
            "environment": environment,
        },
    }
    kept = Path(flags.config.run_dir) / "evaluations.jsonl"
    failure: OSError | None = None
    try:
        append_json_line(kept, result)
    except OSError as error:  # no loss of what is printed
        failure = error
    if flags.json:
        print(as_json_line(result), flush=True)
    else:
        print_summary(as_plain(result), kept=None if failure else str(kept))
    if failure is not None:
        print(f"warning: the result is printed but not kept: {failure}", file=sys.stderr)
    if bad:
        print(f"error: not finite, so no number in the result: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def _restore(
    invocation: _Invocation, experiment: Experiment, strategy: JitStrategy, flags: Any
) -> tuple[int, Variables]:
    """The step of one of a run directory's checkpoints, and the variables for the family."""
    fixed = experiment.family.fixed
    runs.check_fixed(Path(flags.config.run_dir), fixed)
    runs.check_files(Path(flags.config.run_dir), experiment)
    runs.check_data(Path(flags.config.run_dir), experiment, flags.config)
    state = states.restore(experiment, flags.config, strategy, step=flags.step)
    placed = strategy.put_replicated(fixed)
    variables = evaluation.variables_of(state, experiment.averages, placed, flags.average)
    return int(state.step), variables
