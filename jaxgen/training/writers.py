"""The records of a run: versions, metrics (console, CSV and what `trackers` has), sample grids.

A run that was killed replays its steps exactly when it resumes. So the writers here drop what was
half written and what comes after the checkpoint: nothing is lost and nothing is doubled.
"""

import io
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import jaxgen
from jaxgen.files import drop_half_line, naming, open_atomically
from jaxgen.training.experiment import Medium
from jaxgen.training.images import is_whole_png, save_png
from jaxgen.training.progress import Progress
from jaxgen.training.tables import CsvWriter
from jaxgen.training.trackers import TensorBoardWriter, Writer, make_writers

METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"
MEASUREMENTS = "measurements.csv"
SAMPLES = "samples"
"""Folder of the pictures of samples that training draws."""
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as indented JSON, replacing the file at once; NaN and infinities become null."""
    with open_atomically(path) as file:
        file.write((json.dumps(as_plain(obj), indent=2, allow_nan=False) + "\n").encode())


def as_json_line(obj: Any) -> str:
    """`obj` as one line of JSON; NaN and infinities become null."""
    return json.dumps(as_plain(obj), allow_nan=False)


def append_json_line(path: str | Path, obj: Any) -> None:
    """Appends `obj` as one line of JSON; a last line that was half written is dropped first."""
    line = as_json_line(obj)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_half_line(path)
    with naming(path), path.open("a") as file:
        file.write(line + "\n")


def print_anywhere() -> None:
    """Lets standard output and errors be printed where the terminal's encoding lacks a character,
    which is written as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def as_plain(obj: Any) -> Any:
    """`obj` in types of JSON: NumPy and JAX scalars as numbers, paths as text; NaN and infinities
    become None."""
    if isinstance(obj, Mapping):
        return {str(key): as_plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [as_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, np.generic | np.ndarray | jax.Array):
        return as_plain(np.asarray(obj).tolist())
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj


def describe_environment() -> dict[str, Any]:
    """The facts that a result must name beside its config: versions, devices and revision.

    Returns:
        `python`, `platform`, `jaxgen`, `packages` (name -> version), `devices` (`backend`, `kind`,
        `count`, `processes`) and `git` (`revision`, and `dirty` if files were changed since), which
        is None where jaxgen does not run from a checkout.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "jaxgen": jaxgen.__version__,
        "packages": {package: metadata.version(package) for package in _PACKAGES},
        "devices": {
            "backend": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "git": _git(Path(__file__)),
    }


def _git(source: Path) -> dict[str, Any] | None:
    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()

    try:
        # An installed copy may lie inside someone else's checkout: only a tracked file counts.
        ask("ls-files", "--error-unmatch", source.name)
        return {"revision": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


class Writers:
    """All output of a training run, in one place.

    In the run directory: `metrics.csv`, `evaluations.csv`, `measurements.csv` and
    `samples/<step>.png` (of audio with a `.wav`); on the console, the progress; and what else is
    asked for (`trackers`), which is told each row once, when its table takes it.

    Args:
        run_dir: Path of the run directory.
        num_steps: Number of steps in the whole run.
        names: Names of the writers beside the tables.
        config: Flags of the run, as JSON has them, for these writers.
        unit: Name of an example, in the plural.
        enabled: Whether the methods do anything; False for all processes but the first.
        console: Console to print on; standard output by default.

    Raises:
        ValueError: If the package of a writer is not installed.
    """

    def __init__(
        self,
        run_dir: str | Path,
        num_steps: int,
        *,
        names: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        unit: str = "examples",
        enabled: bool = True,
        console: Console | None = None,
    ):
        self.enabled = enabled
        if not enabled:
            return
        self._samples = Path(run_dir) / SAMPLES
        self._metrics = CsvWriter(Path(run_dir) / METRICS)
        self._evaluations = CsvWriter(Path(run_dir) / EVALUATIONS)
        self._measurements = CsvWriter(Path(run_dir) / MEASUREMENTS)
        tables = (self._metrics, self._evaluations, self._measurements)
        self._tables = {table.path.name: table for table in tables}
        self._others = make_writers(names, run_dir, config)
        self._progress = Progress(num_steps, unit=unit, console=console)

    def __enter__(self) -> "Writers":
        if self.enabled:
            self._progress.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.enabled:
            return
        self._progress.__exit__(kind, error, trace)
        try:
            self._tell(lambda other: other.close())
        except OSError:
            if error is None:  # `error` matters more
                raise

    def resume(self, step: int, noted: Mapping[str, int], *, accept_lost: bool = False) -> None:
        """Goes on from a checkpoint: rows after it are written again, those before must be there.

        Args:
            step: Step of the checkpoint.
            noted: What `rows` returned before it was saved; empty in older checkpoints.
            accept_lost: Whether to go on where rows are lost.

        Raises:
            ValueError: If a table has fewer rows than it had, unless that is accepted.
        """
        if not self.enabled:
            return
        for name, table in self._tables.items():
            table.rewind(step)
            if len(table.steps) < noted.get(name, 0) and not accept_lost:
                raise ValueError(
                    f"{table.path} has {len(table.steps)} rows up to step {step}, but had "
                    f"{noted[name]} when the checkpoint was saved: put the file back, or go on "
                    "without the lost rows by --accept-lost-rows"
                )

    def rows(self) -> dict[str, int]:
        """The number of rows of each table by its name; all of them are on the disk then."""
        if not self.enabled:
            return {}
        for table in self._tables.values():
            table.sync()
        return {name: len(table.steps) for name, table in self._tables.items()}

    def progress(
        self,
        step: int,
        metrics: Mapping[str, float],
        steps_per_second: float,
        examples_per_second: float,
    ) -> None:
        """Moves the progress line; nothing is kept."""
        if self.enabled:
            self._progress.update(step, metrics, steps_per_second, examples_per_second)

    def busy(self, doing: str, *, plainly: bool = True) -> None:
        """Says what takes time beside the steps (`Progress.busy`); nothing is kept."""
        if self.enabled:
            self._progress.busy(doing, plainly=plainly)

    def note(self, message: str) -> None:
        """Prints a message."""
        if self.enabled:
            self._progress.note(message)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of training at `step`."""
        if self.enabled and self._metrics.log(step, metrics):
            self._tell(lambda other: other.log(step, metrics))

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records and prints metrics on held-out examples."""
        if self.enabled and self._evaluations.log(step, metrics):
            points = {f"evaluation/{name}": value for name, value in metrics.items()}
            self._tell(lambda other: other.log(step, points))
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.note(f"step {step:,}: held-out {values}")

    def log_measurement(self, step: int, distances: Mapping[str, float]) -> None:
        """Records and prints the distances of samples from real images; the table has also those
        that are not finite."""
        if not (self.enabled and self._measurements.log(step, distances)):
            return
        finite = {name: value for name, value in distances.items() if math.isfinite(value)}
        if finite:
            points = {f"measure/{name}": value for name, value in finite.items()}
            self._tell(lambda other: other.log(step, points))
            values = ", ".join(f"{name} {value:.4g}" for name, value in finite.items())
            self.note(f"step {step:,}: samples {values}")

    def has_samples(self, step: int) -> bool:
        """Whether the picture of a step is there, and whole."""
        return self.enabled and is_whole_png(self._picture_of(step))

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation of a step is there."""
        return self.enabled and step in self._evaluations.steps

    def has_measurement(self, step: int) -> bool:
        """Whether the measurement of a step is there."""
        return self.enabled and step in self._measurements.steps

    def samples(self, step: int, samples: np.ndarray, columns: int | None, medium: Medium) -> None:
        """Writes samples at rest: their picture, named so that names sort by step, and the medium's
        own file beside it."""
        if not self.enabled or medium.picture is None or self.has_samples(step):
            return
        path = self._picture_of(step)
        if medium.save is not None and medium.suffix is not None:
            medium.save(path.with_suffix(medium.suffix), samples)
        picture = medium.picture(samples, columns)
        save_png(path, picture, overwrite=True)  # last: it ends the work
        self._tell(lambda other: other.image(step, "samples", picture))

    def _tell(self, tell: Callable[[Writer], None]) -> None:
        """Tells all but the tables. A service that fails is left out from then on, and training
        goes on: the tables have everything."""
        for other in list(self._others):
            try:
                tell(other)
            except Exception as error:
                if isinstance(other, TensorBoardWriter):  # the run's own files
                    raise
                self._others.remove(other)
                self.note(f"warning: {type(other).__name__} is told no more: {error!r}")

    def _picture_of(self, step: int) -> Path:
        return self._samples / f"{step:08d}.png"
