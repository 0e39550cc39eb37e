"""The command line of every experiment: train (the default), sample, evaluate."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import tyro

from jaxgen.core import State
from jaxgen.training import config as configs
from jaxgen.training import evaluation, loop
from jaxgen.training.checkpoint import CheckpointError
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.files import LOCK, held_alone
from jaxgen.training.images import check_output, save_png, save_samples
from jaxgen.training.strategies import JitStrategy, make_strategy
from jaxgen.training.writers import append_json_line, describe_environment, write_json

C = TypeVar("C", bound=RunConfig)
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
    picture: str = "samples"
    """Samples, or one of the experiment's pictures, such as `interpolation`."""
    columns: int | None = None
    """Images a row of a .png; a picture of `num` images has num / columns rows."""
    out: Path | None = None
    """A .png file for a grid, or .npz for the samples (key `samples`, uint8 [N, H, W, C]); of audio
    .wav, with a .png of its spectrograms. By default samples.png, or samples.wav."""
    step: int | None = None
    """The checkpoint to use; the newest by default."""


@dataclass(frozen=True)
class Evaluate(Generic[C]):
    """Flags of `evaluate`."""

    config: Annotated[C, Flat]
    step: int | None = None
    """The checkpoint to use; the newest by default."""


def main(
    config_type: type[C],
    build: Callable[[C], Experiment],
    args: Sequence[str] | None = None,
) -> None:
    """Run an experiment from the command line, and exit.

    `[train]` trains, or resumes where the run directory exists; `sample` and `evaluate` read a run
    directory. The flags are the fields of the config; for an existing run directory their defaults
    are its own. Bad input ends in one line on stderr and exit code 2, a run that failed in 1.

    Args:
        config_type: a frozen dataclass derived from `RunConfig`, with a default for each field.
        build: makes the experiment.
        args: the command line, `sys.argv[1:]` by default.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    verb = arguments.pop(0) if arguments and arguments[0] in VERBS else "train"
    module = sys.modules[config_type.__module__]
    name = module.__spec__.name if module.__spec__ else Path(str(module.__file__)).stem
    command = {"train": _train, "sample": _sample, "evaluate": _evaluate}[verb]
    try:
        sys.exit(command(_Invocation(name, module.__doc__ or "", config_type, build, arguments)))
    except (CheckpointError, loop.NonFiniteError) as error:
        _fail(error, 1)
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, TypeError, OSError) as error:
        _fail(error, 2)


def _fail(error: Exception, code: int) -> None:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {error}\n(set {TRACEBACK}=1 for the traceback)", file=sys.stderr)
    sys.exit(code)


@dataclass(frozen=True)
class _Invocation:
    """One call of an experiment's module: what it is, and its flags, not yet parsed."""

    name: str
    doc: str
    config_type: type[Any]
    build: Callable[[Any], Experiment]
    arguments: list[str]

    def parse(self, verb: type[Any], *, must_exist: bool) -> tuple[Any, RunConfig | None]:
        """The flags, with the run directory's own config (returned too) as their defaults."""
        default = self.config_type()
        flags = self._parse(verb, default)
        saved = load_config(Path(flags.config.run_dir), self.name, default)
        if flags.config.distributed:
            _join_processes()
        if saved is None:
            if must_exist:
                raise FileNotFoundError(
                    f"--run-dir {flags.config.run_dir} is no run of {self.name}: train one first "
                    f"(python -m {self.name} --run-dir {flags.config.run_dir})"
                )
            return flags, None
        return self._parse(verb, saved), saved

    def _parse(self, verb: type[Any], default: RunConfig) -> Any:
        word = verb.__name__.lower()
        return tyro.cli(
            verb[type(default)],
            default=verb(config=default),
            args=self.arguments,
            prog=f"python -m {self.name} {word}",
            description=f"{self.doc}\n\nVerbs: {', '.join(VERBS)} (each has its own --help).",
        )


def _join_processes() -> None:
    """Start JAX as one of several processes; before anything else asks it for its devices."""
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    else:
        jax.distributed.initialize()


def load_config(run_dir: Path, name: str, default: C) -> C | None:
    """The config that a run directory was made by, or None where there is no such directory.

    Raises:
        FileExistsError: if the directory holds something else.
        ValueError: if the run is another experiment's or its config cannot be read.
    """
    path = run_dir / "config.json"
    if not path.exists():
        if run_dir.is_dir() and any(path.name != LOCK for path in run_dir.iterdir()):
            raise FileExistsError(
                f"--run-dir {run_dir} exists and is no run directory (it has no config.json): "
                "name a new directory"
            )
        if run_dir.exists() and not run_dir.is_dir():
            raise FileExistsError(f"--run-dir {run_dir} is a file: name a directory")
        return None
    try:
        saved = json.loads(path.read_text())
        experiment, values = saved["experiment"], saved["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a run's config: {error!r}") from error
    if experiment != name:
        raise ValueError(f"--run-dir {run_dir} is a run of {experiment}, not of {name}")
    values["run_dir"] = str(run_dir)  # it may have been moved since
    return configs.from_dict(default, values)


def _train(invocation: _Invocation) -> int:
    flags, saved = invocation.parse(Train, must_exist=False)
    config = flags.config
    if saved is not None and (found := configs.differences(saved, config)):
        raise ValueError(
            f"--run-dir {config.run_dir} was made by another config:\n  "
            + "\n  ".join(found)
            + "\nUse another --run-dir for a new run, or drop these flags to resume this one"
        )
    experiment = invocation.build(config)
    loop.check_batch(experiment, config, make_strategy(config.strategy, fsdp=config.fsdp))
    run_dir = Path(config.run_dir)
    with ExitStack() as stack:
        if jax.process_index() == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held_alone(run_dir))
            saved_config = {"experiment": invocation.name, "config": configs.to_dict(config)}
            write_json(run_dir / "config.json", saved_config)
            session = {"arguments": invocation.arguments, **describe_environment()}
            append_json_line(run_dir / "sessions.jsonl", session)
        state = loop.train(experiment, config)
    print(f"{config.run_dir}: {int(state.step)} of {config.steps} steps done")
    grids = sorted((run_dir / "samples").glob("*.png"))
    if grids:
        print(f"samples: {grids[-1]}")
    return 0


def _sample(invocation: _Invocation) -> int:
    flags, _ = invocation.parse(Sample, must_exist=True)
    if flags.num < 1:
        raise ValueError(f"--num must be at least 1, got {flags.num}")
    if flags.columns is not None and flags.columns < 1:
        raise ValueError(f"--columns must be at least 1, got {flags.columns}")
    experiment = invocation.build(flags.config)
    files = experiment.sample_files if flags.picture == "samples" else None
    out = flags.out or Path(f"samples{'.png' if files is None else files.suffix}")
    check_output(out, accepted=(".png" if files is None else files.suffix, ".npz"))
    in_files = files is not None and out.suffix.lower() == files.suffix
    if in_files:
        check_output(out.with_suffix(".png"))
    strategy, state = _restore(experiment, flags)
    key = jax.random.key(flags.config.seed)
    columns = flags.columns
    if flags.picture == "samples":
        images = evaluation.make_sample(experiment, strategy)(state, key, flags.num)
    else:
        columns = 8 if columns is None else columns
        rows = max(1, flags.num // columns)
        images = evaluation.make_picture(experiment, flags.picture)(state, key, rows, columns)
    if files is not None and in_files:
        files.save(out, images)
        save_png(out.with_suffix(".png"), files.picture(images))
    else:
        save_samples(out, images, columns=columns)
    print(f"{flags.picture}: {out}")
    return 0


def _evaluate(invocation: _Invocation) -> int:
    flags, _ = invocation.parse(Evaluate, must_exist=True)
    experiment = invocation.build(flags.config)
    strategy, state = _restore(experiment, flags)
    metrics = evaluation.make_evaluate(experiment, strategy, flags.config.seed)(state)
    found = evaluation.held_out_likelihood(experiment, metrics)
    environment = describe_environment()
    result = {
        "experiment": invocation.name,
        "step": int(state.step),
        **metrics,
        **({} if found is None else {"likelihood": found._asdict()}),
        "protocol": {
            **experiment.protocol,
            "parameters": "average" if state.ema else "last",
            "seed": flags.config.seed,
            "precision": flags.config.precision,
            "environment": environment,
        },
    }
    append_json_line(Path(flags.config.run_dir) / "evaluations.jsonl", result)
    print(json.dumps(result))
    return 0


def _restore(experiment: Experiment, flags: Any) -> tuple[JitStrategy, State]:
    """The state of one of a run directory's checkpoints, and the devices that it lies on."""
    strategy = make_strategy("jit", fsdp=flags.config.fsdp)
    state = loop.restore(experiment, flags.config, strategy, step=flags.step)
    return strategy, state
