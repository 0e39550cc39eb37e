"""The best checkpoint of a run: which it is, that it stays, and how it is found again."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax

from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.config import RunConfig
from jaxgen.training.tables import read_rows
from jaxgen.training.writers import EVALUATIONS, MEASUREMENTS, write_json

BEST = "best.json"
SCORE = "score"
"""Name by which `Checkpoints` rank steps, whatever the score is of."""


def ranking_table(config: RunConfig) -> str | None:
    """The name of the table that ranks a run's checkpoints; None where it has none.

    That of measured distances, once there is one, comes before that of held-out losses.

    Args:
        config: Flags of the run.
    """
    run_dir = Path(config.run_dir)
    if config.measure_every or (run_dir / MEASUREMENTS).exists():
        return MEASUREMENTS
    if config.evaluate_every or (run_dir / EVALUATIONS).exists():
        return EVALUATIONS
    return None


class Best:
    """Gives the checkpoints of a run their scores and keeps the best one's in `best.json`.

    The score is the first number of `measurements.csv`, the distance, or the held-out loss in
    `evaluations.csv`; lower is better, and what is not finite has none.

    Args:
        config: Flags of the run.
        checkpoints: Checkpoints of the run, which rank by `SCORE`.
    """

    def __init__(self, config: RunConfig, checkpoints: Checkpoints):
        self.run_dir, self.checkpoints = Path(config.run_dir), checkpoints
        self.table = ranking_table(config)
        self.name = ""

    def remember(self) -> None:
        """Rates the steps by the rows that the table has: call it when a run begins or goes on."""
        if self.table is None:
            return
        for row in read_rows(self.run_dir / self.table):
            self._rate(int(row["step"]), {name: row[name] for name in row if name != "step"})
        self._record()

    def rate(self, table: str, step: int, metrics: Mapping[str, float]) -> None:
        """Rates a step whose checkpoint is written, if it is this table that ranks.

        Args:
            table: Name of the table that the numbers stand in.
            step: Step of the checkpoint.
            metrics: Numbers of its row.
        """
        if table == self.table:
            self._rate(step, metrics)
            self.checkpoints.wait()  # what is called the best must be on the disk
            self._record()

    def _rate(self, step: int, metrics: Mapping[str, float]) -> None:
        self.name = "loss" if self.table == EVALUATIONS else next(iter(metrics), "")
        self.checkpoints.rate(step, {SCORE: metrics.get(self.name, math.nan)})

    def _record(self) -> None:
        if jax.process_index() > 0:
            return
        path, best = self.run_dir / BEST, self.checkpoints.best()
        if best is None:
            path.unlink(missing_ok=True)
            return
        step, value = best
        write_json(path, {"step": step, "metric": self.name, "value": value, "table": self.table})


def best_step(run_dir: str | Path) -> int:
    """The step of a run's best checkpoint.

    Args:
        run_dir: Path of the run directory.

    Raises:
        FileNotFoundError: If the run has not measured or evaluated a checkpoint yet.
        ValueError: If the record cannot be read.
    """
    path = Path(run_dir) / BEST
    try:
        return int(json.loads(path.read_text())["step"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{run_dir} has no best checkpoint: --measure-every or --evaluate-every finds it while "
            "training"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}") from error
