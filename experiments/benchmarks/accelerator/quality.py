"""What a recipe reaches on this machine in some minutes: loss, samples, distance to real images."""

import csv
import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.data.sources import ArraySource, Source
from jaxgen.metrics.extractors import load_extractor
from jaxgen.metrics.report import compare_images
from jaxgen.metrics.statistics import image_statistics
from jaxgen.training import evaluation
from jaxgen.training.images import grid, save_png
from jaxgen.training.runs import open_run
from jaxgen.training.strategies import make_strategy

SAVING = 60.0  # seconds that a run may take to stop


def train_for(recipe: str, seconds: float, run_dir: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Train a recipe by its own command for so long, then stop it by SIGTERM, as a cluster would.

    Args:
        recipe: Name of the recipe.
        seconds: Seconds from the start of the command to the signal, compilation included.
        run_dir: Directory of the run, which is resumed where it exists.
        flags: Further flags of the command.

    Raises:
        ValueError: If there is no such recipe.
        RuntimeError: If the command failed.
    """
    module = f"experiments.{recipe}"
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"--train must name a recipe of experiments/, got {recipe!r}")
    command = [sys.executable, "-m", module, "--run-dir", str(run_dir), *flags]
    begin = time.monotonic()
    process = subprocess.Popen(command)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = _wait_or_kill(process)
    if code not in (0, 128 + signal.SIGTERM):
        raise RuntimeError(f"{' '.join(command)} failed with exit code {code}")
    return {"command": command[1:], "seconds": time.monotonic() - begin}


def _wait_or_kill(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a command that was told to stop, which has a while to save."""
    try:
        return process.wait(SAVING)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def measure_run(
    run_dir: str, num: int, num_reference: int, num_evaluated: int, grid_path: str
) -> dict[str, Any]:
    """Losses, held-out figures, samples and their distance to real images, of a run.

    The distance is FD-lite0 where its weights are installed, of samples to training images; beside
    it stands its floor, the distance of as many held-out images to the same.

    Args:
        run_dir: Directory of the run.
        num: Number of samples, drawn by the recipe's quick sampler where it has one.
        num_reference: Number of training images that they are compared with.
        num_evaluated: Most held-out examples to evaluate; the recipe may say fewer.
        grid_path: New file for a picture of the first samples.
    """
    strategy = make_strategy("jit")
    run = open_run(run_dir, strategy=strategy)
    most = min(num_evaluated, run.experiment.num_evaluated or num_evaluated)
    experiment = run.experiment._replace(num_evaluated=most)
    rows = []  # none before the first one is due
    if (table := Path(run_dir) / "metrics.csv").exists():
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    result: dict[str, Any] = {
        "recipe": run.name,
        "steps": run.step,
        "examples_seen": run.step * run.config.batch_size,
        "training": rows[-1] if rows else None,
        "held_out": evaluation.make_evaluate(experiment, strategy, 0)(run.variables),
        "data": run.experiment.held_out.protocol,
    }
    if experiment.family.sample is None or experiment.medium.unit != "images":
        return result
    begin = time.monotonic()
    sample = evaluation.make_sample(experiment, strategy, preview=experiment.preview is not None)
    images = sample(run.variables, jax.random.key(1), num)
    result["sampling_seconds"] = time.monotonic() - begin
    save_png(Path(grid_path), grid(images[:64], 8))
    result["grid"] = grid_path
    train = experiment.pipeline.source
    return {**result, **_distances(images, train, experiment.held_out, num_reference)}


def _distances(
    images: np.ndarray, train: Source, held_out: Source, num_reference: int
) -> dict[str, Any]:
    try:
        extractor = load_extractor("lite0")
    except (ImportError, OSError, ValueError) as error:
        return {"distance": None, "why": str(error)}

    def statistics(source: Source, count: int, name: str) -> Any:
        rows = np.arange(min(count, len(source)))
        part = ArraySource({"image": source[rows]["image"]}, protocol=f"{source.protocol}, {name}")
        return image_statistics(extractor, part)

    real = statistics(train, num_reference, f"the first {num_reference}")
    samples = image_statistics(extractor, ArraySource({"image": images}, protocol="samples"))
    floor = statistics(held_out, len(images), f"the first {len(images)}")
    return {
        "samples": len(images),
        "reference": num_reference,
        "distance": compare_images(samples, real, extractor).metrics,
        "floor": compare_images(floor, real, extractor).metrics,
    }
