"""Where a run's numbers and pictures go beside its tables: TensorBoard, and services by name.

Each is a `Writer`, made only when `--writers` asks for it; the packages of services are extras of
the same names. A row is told once: the tables decide whether it is new (`writers.Writers`), so a
resumed run goes on where the writer stopped, under the id that the run directory keeps.
"""

import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxgen.files import naming, open_atomically
from jaxgen.training.config import flattened

PROJECT = "jaxgen"
IDS = "writers.json"


@runtime_checkable
class Writer(Protocol):
    """What takes a run's numbers and pictures as they come."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to each curve."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Ends the writing; what was told is kept."""


class TensorBoardWriter:
    """TensorBoard events, on the disk as soon as they are logged.

    It uses tensorboardX's event file itself rather than its `SummaryWriter`, whose queue loses the
    last points of a killed run.

    Args:
        run_dir: Path of the run directory; each writer creates a file of its own in `tensorboard/`.
        config: Flags of the run, which the first writer shows as a text; None for none.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any] | None = None):
        # Slow to import where PyTorch is installed, and only training needs it.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._directory = directory = Path(run_dir) / "tensorboard"
        self._summary, self._event = summary, event_pb2.Event
        is_first = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        # The name ends in seconds and the host: two runs within a second would share a file.
        prefix, suffix = str(directory / "events"), f".{time.time_ns()}"
        self._file = event_file_writer.EventsWriter(prefix, suffix)
        if is_first and config is not None:
            text = json.dumps(config, indent=2)
            markdown = "".join(f"    {line}\n" for line in text.splitlines())
            self._write(0, summary.text("config", markdown))
            self._flush()

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


class WandbWriter:
    """Weights & Biases; `WANDB_MODE=offline` and its other variables are obeyed.

    Each call of a run that is offline leaves a folder; `wandb sync --append` sends them as one.

    Args:
        run_dir: Path of the run directory, in whose `wandb/` it keeps what it sends.
        config: Flags of the run.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any] | None = None):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            dir=str(run_dir),
            id=_kept_id(run_dir, "wandb", lambda: secrets.token_hex(4)),
            name=Path(run_dir).name,
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            config=dict(config or {}),
            allow_val_change=True,
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        # Steps of its own only grow, and a resumed run goes back: ours is one of the numbers.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        self._run.log({**metrics, "step": step})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._run.log({name: self._image(image), "step": step})

    def close(self) -> None:
        """Sends what is left, where it is online."""
        self._run.finish()


class MlflowWriter:
    """MLflow, by `MLFLOW_TRACKING_URI`; without it, a database in the run directory's `mlflow/`.

    `mlflow ui --backend-store-uri sqlite:///RUN_DIR/mlflow/mlflow.db` shows it.

    Args:
        run_dir: Path of the run directory.
        config: Flags of the run.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any] | None = None):
        from mlflow import MlflowClient, entities

        self._place = (Path(run_dir) / "mlflow").absolute()
        self._is_local = not os.environ.get("MLFLOW_TRACKING_URI")
        if self._is_local:
            self._place.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{self._place}/mlflow.db" if self._is_local else None
        self._client, self._entities = MlflowClient(uri), entities
        self._id = _kept_id(run_dir, "mlflow", lambda: self._begin(Path(run_dir).name, config))
        self._client.log_text(self._id, json.dumps(config or {}, indent=2), "config.json")
        self._client.update_run(self._id, status="RUNNING")

    def _begin(self, name: str, config: Mapping[str, Any] | None) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        files = (self._place / "artifacts").as_uri() if self._is_local else None
        experiment = (
            known.experiment_id if known else self._client.create_experiment(PROJECT, files)
        )
        run_id: str = self._client.create_run(experiment, run_name=name).info.run_id
        params = [self._entities.Param(k, str(v)[:500]) for k, v in flattened(config or {}).items()]
        self._client.log_batch(run_id, params=params)
        return run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        now = int(time.time() * 1000)
        points = [
            self._entities.Metric(_mlflow_name(name), float(value), now, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=points)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._client.log_image(self._id, image, artifact_file=f"{name}/{step:08d}.png")

    def close(self) -> None:
        """Marks the run as finished; one that is resumed is running again."""
        self._client.set_terminated(self._id)


class TrackioWriter:
    """Trackio, kept on this machine unless `TRACKIO_SPACE_ID` names a place.

    Args:
        run_dir: Path of the run directory.
        config: Flags of the run.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any] | None = None):
        import trackio

        self._image = trackio.Image
        name = _kept_id(run_dir, "trackio", lambda: f"{Path(run_dir).name}-{secrets.token_hex(4)}")
        self._run = trackio.init(
            project=PROJECT, name=name, config=dict(config or {}), resume="allow", embed=False
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        self._run.log(dict(metrics), step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._run.log({name: self._image(image)}, step=step)

    def close(self) -> None:
        """Waits until all is kept."""
        self._run.finish()


MAKERS: Mapping[str, Callable[..., Writer]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
    "mlflow": MlflowWriter,
    "trackio": TrackioWriter,
}
"""Every writer by its name, beside the tables, which are always written (`csv`)."""


def check_installed(names: Sequence[str]) -> None:
    """Checks that the packages of writers are there, without importing them.

    Args:
        names: Names of writers.

    Raises:
        ValueError: If one is not; names the extra that brings it.
    """
    for name in names:
        package = "tensorboardX" if name == "tensorboard" else name
        if name in MAKERS and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"--writers {name} needs the package {package}: pip install 'jaxgen[{name}]'"
            )


def make_writers(
    names: Sequence[str], run_dir: str | Path, config: Mapping[str, Any] | None
) -> list[Writer]:
    """The writers of some names; of `csv` none, since tables are always written.

    Args:
        names: Names of writers.
        run_dir: Path of the run directory.
        config: Flags of the run, as JSON has them.

    Raises:
        ValueError: If the package of one is not installed.
    """
    check_installed(names)
    return [MAKERS[name](run_dir, config) for name in dict.fromkeys(names) if name in MAKERS]


def _kept_id(run_dir: str | Path, name: str, make: Callable[[], str]) -> str:
    """The id of a run with a writer: the one that its directory keeps, or a new one."""
    path = Path(run_dir) / IDS
    ids = json.loads(path.read_text()) if path.exists() else {}
    if name not in ids:
        ids[name] = make()
        with open_atomically(path) as file:
            file.write((json.dumps(ids, indent=2) + "\n").encode())
    return str(ids[name])


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)
