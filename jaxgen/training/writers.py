"""The records of a run: versions, metrics (console, CSV, TensorBoard) and sample grids.

A run that was killed replays its steps exactly when it resumes. So the writers here drop what was
half written and what comes after the checkpoint: nothing is lost and nothing is doubled.
"""

import io
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
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

METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as indented JSON, replacing the file at once; NaN and infinities become null."""
    with open_atomically(path) as file:
        file.write((json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n").encode())


def as_json_line(obj: Any) -> str:
    """`obj` as one line of JSON; NaN and infinities become null."""
    return json.dumps(_plain(obj), allow_nan=False)


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


def _plain(obj: Any) -> Any:
    """`obj` in types of JSON: NumPy and JAX scalars as numbers, paths as text."""
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, np.generic | np.ndarray | jax.Array):
        return _plain(np.asarray(obj).tolist())
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


class TensorBoardWriter:
    """TensorBoard events, on the disk as soon as they are logged.

    It uses tensorboardX's event file itself rather than its `SummaryWriter`, whose queue loses the
    last points of a killed run.

    Args:
        directory: Directory of the event file; each writer creates a file of its own.
    """

    def __init__(self, directory: str | Path):
        # Slow to import where PyTorch is installed, and only training needs it.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._directory = directory
        self._summary, self._event = summary, event_pb2.Event
        Path(directory).mkdir(parents=True, exist_ok=True)
        # The name ends in seconds and the host: two runs within a second would share a file.
        prefix, suffix = str(Path(directory) / "events"), f".{time.time_ns()}"
        self._file = event_file_writer.EventsWriter(prefix, suffix)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        for name, value in metrics.items():
            self._write(step, self._summary.scalar(name, float(value)))
        self._flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._write(step, self._summary.image(name, image, dataformats="HWC"))
        self._flush()

    def _flush(self) -> None:
        with naming(self._directory):
            self._file.flush()

    def _write(self, step: int, value: Any) -> None:
        with naming(self._directory):
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=value))

    def close(self) -> None:
        """Closes the event file."""
        with naming(self._directory):
            self._file.close()


class Writers:
    """All output of a training run, in one place.

    In the run directory: `metrics.csv`, `evaluations.csv`, `tensorboard/` and
    `samples/<step>.png` (of audio with a `.wav`); on the console, the progress.

    Args:
        run_dir: Path of the run directory.
        num_steps: Number of steps in the whole run.
        unit: Name of an example, in the plural.
        enabled: Whether the methods do anything; False for all processes but the first.
        console: Console to print on; standard output by default.
    """

    def __init__(
        self,
        run_dir: str | Path,
        num_steps: int,
        *,
        unit: str = "examples",
        enabled: bool = True,
        console: Console | None = None,
    ):
        self.enabled = enabled
        if not enabled:
            return
        self._samples = Path(run_dir) / "samples"
        self._metrics = CsvWriter(Path(run_dir) / METRICS)
        self._evaluations = CsvWriter(Path(run_dir) / EVALUATIONS)
        self._tables = {t.path.name: t for t in (self._metrics, self._evaluations)}
        self._tensorboard = TensorBoardWriter(Path(run_dir) / "tensorboard")
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
            self._tensorboard.close()
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
            self._tensorboard.log(step, metrics)

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records and prints metrics on held-out examples."""
        if self.enabled and self._evaluations.log(step, metrics):
            self._tensorboard.log(step, {f"evaluation/{k}": v for k, v in metrics.items()})
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.note(f"step {step:,}: held-out {values}")

    def has_samples(self, step: int) -> bool:
        """Whether the picture of a step is there, and whole."""
        return self.enabled and is_whole_png(self._picture_of(step))

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation of a step is there."""
        return self.enabled and step in self._evaluations.steps

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
        self._tensorboard.image(step, "samples", picture)

    def _picture_of(self, step: int) -> Path:
        return self._samples / f"{step:08d}.png"
