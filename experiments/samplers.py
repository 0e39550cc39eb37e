"""One trained diffusion or score model through every solver that fits it: quality and cost.

    python -m experiments.samplers runs/edm_digits
    python -m experiments.samplers runs/ddpm_digits --evaluations 10 50 --solvers ddim heun unipc3
    python -m experiments.samplers runs/edm_cifar --extractor inception --num-samples 10000

For each solver and each number of network evaluations: the Frechet distance, precision and recall
of samples against the training images, and the seconds of 64 images, compiled, median of at least
five batches. The levels, clipping and guidance are those of the run's sampler. `samplers.csv`,
`samplers.png` and `samplers_grid.png`, the same noise through each solver, are in the run's
directory, or in `--out`; a row that is in the table for the same
checkpoint and protocol is not computed again. Where samples are not finite, the row says so. Bad
input ends in one line on stderr and exit code 2.
"""

import argparse
import csv
import dataclasses
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.data.sources import Source
from jaxgen.files import open_atomically
from jaxgen.metrics.classifier import train_classifier
from jaxgen.metrics.extractors import EXTRACTORS, load_extractor
from jaxgen.metrics.features import Extractor, weights_checksum
from jaxgen.metrics.statistics import Statistics, image_statistics
from jaxgen.noise.levels import padded
from jaxgen.training import pictures
from jaxgen.training.images import labelled_grid, save_png
from jaxgen.training.runs import Run, open_run

from .benchmarks.harness import machine
from .commands import run_command
from .comparison.options import LEAST_SAMPLES, MOST_SAMPLES
from .comparison.quality import MOST_NEIGHBOURS, distance_name, quality
from .comparison.solvers import (
    BATCH,
    ENTRANTS,
    chosen,
    plan,
    program,
    read_shown,
    write_shown,
)
from .recipes.figures import check_matplotlib, new_figure, png_of

LEAST_BATCHES = 5
SHOWN = 8  # images of each row in the grid
EVALUATIONS = (5, 10, 20, 35, 50, 100, 250)
REAL = "held-out images"
# What a row is of: those of other checkpoints and protocols stay in the table.
PROTOCOL = ("step", "weights", "sampler", "extractor", "samples", "seed")
MEASURED = ("FD", "precision", "recall", "seconds")
COLUMNS = ("solver", "evaluations", "steps", *MEASURED, "note", *PROTOCOL)
# Choices of solver, spacing and number of steps are what is varied; the rest is the protocol.
VARIED = ("solver", "name", "num_steps", "preview_steps", "variance", "eta")
Row = dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: compare(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.samplers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=Path, help="directory of the trained run")
    add(
        "--evaluations",
        type=int,
        nargs="+",
        default=EVALUATIONS,
        help="greatest numbers of network evaluations of a sample (%(default)s)",
    )
    add(
        "--solvers",
        nargs="+",
        choices=ENTRANTS,
        metavar="SOLVER",
        help=f"which of {', '.join(ENTRANTS)} (all that fit)",
    )
    add("--num-samples", type=int, help="samples of a row (as many as held-out images, to 1000)")
    add(
        "--extractor",
        choices=EXTRACTORS,
        default="classifier",
        help="network of the features (%(default)s)",
    )
    add("--weights", type=Path, help="weights of inception or lite0, see jaxgen.metrics")
    add("--step", type=int, help="step of the checkpoint (the newest)")
    add("--average", help="average of the parameters to use (the first)")
    add("--seed", type=int, default=0, help="seed of samples and classifier (%(default)s)")
    add("--out", type=Path, help="directory of samplers.csv and samplers.png (the run's)")
    return parser


def compare(args: argparse.Namespace) -> list[Row]:
    """All rows of a checkpoint, those that are missing computed now; writes table and plot.

    Args:
        args: What the command line gives.

    Raises:
        ValueError: For numbers out of range, or a run that is not of denoised images.
    """
    check_matplotlib()
    if min(args.evaluations) < 1:
        raise ValueError(f"--evaluations must be at least 1, got {min(args.evaluations)}")
    if args.num_samples is not None and args.num_samples < LEAST_SAMPLES:
        raise ValueError(f"--num-samples must be at least {LEAST_SAMPLES}, got {args.num_samples}")
    run = _open(args)
    out = args.run_dir if args.out is None else args.out
    kept = read_table(out / "samplers.csv")
    train, held_out = run.experiment.pipeline.source, run.experiment.held_out
    if args.extractor == "classifier" and args.weights is None:
        extractor = train_classifier(train, held_out, seed=args.seed)
    else:
        extractor = load_extractor(args.extractor, weights=args.weights)
    count = args.num_samples or min(MOST_SAMPLES, max(LEAST_SAMPLES, len(held_out)))
    protocol = _protocol(run, extractor, count, args.seed)
    against = image_statistics(extractor, train, max_features=MOST_NEIGHBOURS)
    shown = read_shown(out / "samplers.npz", protocol)
    parts = (run, extractor, against, protocol, kept, args.solvers, args.evaluations)
    for row, images in rows_of(*parts):
        kept.append(row)
        write_table(out / "samplers.csv", kept)
        shown[_name(row)] = images[:SHOWN]
        write_shown(out / "samplers.npz", protocol, shown)
        print(_line(row), flush=True)
    ours = [row for row in kept if _is_of(row, protocol)]
    title = f"{run.name.rpartition('.')[2]}, step {run.step}, {count} samples; {machine()}"
    with open_atomically(out / "samplers.png") as file:
        file.write(plot(ours, distance_name(extractor), title))
    print(f"table: {out / 'samplers.csv'}\nplot: {out / 'samplers.png'}", flush=True)
    names = [name for name in map(_name, ours) if name in shown]
    if names:
        tiles = np.concatenate([shown[name] for name in names])
        picture = labelled_grid(tiles, len(tiles) // len(names), rows=names, title=title)
        save_png(out / "samplers_grid.png", picture, overwrite=True)
        print(f"grid: {out / 'samplers_grid.png'}", flush=True)
    return ours


def _open(args: argparse.Namespace) -> Run:
    run = open_run(args.run_dir, step=args.step, average=args.average)
    if run.family.denoising is None or run.experiment.medium.unit != "images":
        raise ValueError(
            f"{args.run_dir} must be a run of denoised images, {run.name} draws its samples "
            "otherwise"
        )
    return run


def _protocol(run: Run, extractor: Extractor, count: int, seed: int) -> Row:
    """What every row of a checkpoint names, as the table has it."""
    sampler = dataclasses.asdict(run.config.sampler)
    named = (f"{key}={value}" for key, value in sampler.items() if key not in VARIED)
    values = {
        "step": run.step,
        "weights": weights_checksum(run.variables.params)[:12],
        "sampler": " ".join(named),
        "extractor": f"{extractor.name} {extractor.checksum[:12]}",
        "samples": count,
        "seed": seed,
    }
    return {name: str(value) for name, value in values.items()}


def _is_of(row: Row, protocol: Row) -> bool:
    return all(row[name] == protocol[name] for name in PROTOCOL)


def rows_of(
    run: Run,
    extractor: Extractor,
    against: Statistics,
    protocol: Row,
    kept: Sequence[Row],
    solvers: Sequence[str] | None = None,
    evaluations: Sequence[int] = EVALUATIONS,
) -> Iterator[tuple[Row, np.ndarray]]:
    """The rows that are missing of a checkpoint, and what each was measured on.

    Args:
        run: The run, of a family with a `denoising`.
        extractor: What looks at the samples.
        against: Statistics of the training images.
        protocol: What every row names.
        kept: Rows that are known.
        solvers: Names of the solvers; None for all that fit.
        evaluations: Greatest numbers of evaluations.

    Raises:
        ValueError: If a solver that is named does not fit the process.
    """
    parts = run.family.denoising
    assert parts is not None
    count, seed = int(protocol["samples"]), int(protocol["seed"])
    known = {(row["solver"], row["evaluations"]) for row in kept if _is_of(row, protocol)}
    conditions = pictures.in_turn(run.family, BATCH * max(LEAST_BATCHES, math.ceil(count / BATCH)))
    if (REAL, "0") not in known:
        held_out: Source = run.experiment.held_out
        images = held_out[np.arange(min(count, len(held_out)))]["image"]
        yield _row(protocol, REAL, 0, 0, quality(extractor, images, against)), images
    plans = {name: plan(parts, name, evaluations) for name in chosen(parts, solvers)}
    most = max((s for planned in plans.values() for s in planned.values()), default=1)
    for name, planned in plans.items():
        compiled = program(parts, ENTRANTS[name].make(parts.process))
        warm = False
        for count_of, steps in planned.items():
            if (name, str(count_of)) in known:
                continue
            levels = parts.levels(steps)
            levels = padded(levels, max(most, levels.level.alpha.shape[0] - 1))
            call = partial(compiled, run.variables, levels)
            if not warm:
                jax.block_until_ready(call(jax.random.key(seed), _some(conditions, 0)))
                warm = True
            images, finite, seconds = _draw(call, conditions, count, seed)
            lost = count - int(finite.sum())
            note = f"{lost} of {count} samples are not finite" if lost else ""
            measured = {} if lost else quality(extractor, images, against)
            row = _row(protocol, name, count_of, steps, measured, seconds=seconds, note=note)
            yield row, images


def _draw(
    call: Callable[..., tuple[Any, Any]], conditions: np.ndarray | None, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The samples, which of them are finite, and the median seconds of a batch."""
    images, finite, seconds = [], [], []
    for index in range(max(LEAST_BATCHES, math.ceil(count / BATCH))):
        key = jax.random.fold_in(jax.random.key(seed), index)
        condition = _some(conditions, index)
        start = time.perf_counter()
        drawn = jax.block_until_ready(call(key, condition))
        seconds.append(time.perf_counter() - start)
        images.append(np.asarray(drawn[0]))
        finite.append(np.asarray(drawn[1]))
    joined, known = np.concatenate(images)[:count], np.concatenate(finite)[:count]
    return joined, known, statistics.median(seconds)


def _some(conditions: np.ndarray | None, index: int) -> np.ndarray | None:
    """Conditions of a batch: every so many of all, so that each batch has all classes."""
    if conditions is None:
        return None
    return conditions[index :: len(conditions) // BATCH]


def _row(
    protocol: Row,
    solver: str,
    evaluations: int,
    steps: int,
    measured: Mapping[str, Any],
    *,
    seconds: float | None = None,
    note: str = "",
) -> Row:
    distance = next(iter(measured.values()), None)
    values = {"FD": distance, "precision": measured.get("precision"), "seconds": seconds}
    values["recall"] = measured.get("recall")
    cells = {name: "" if value is None else f"{value:.6g}" for name, value in values.items()}
    head = {"solver": solver, "evaluations": str(evaluations), "steps": str(steps)}
    return {**head, **cells, "note": note, **protocol}


def _line(row: Row) -> str:
    cells = [f"{name} {float(row[name]):.4g}" for name in MEASURED if row[name]]
    return f"{row['solver']}, {row['evaluations']} evaluations: " + ", ".join(
        [*cells, *([row["note"]] if row["note"] else [])]
    )


def _name(row: Row) -> str:
    return REAL if row["solver"] == REAL else f"{row['solver']}, {row['evaluations']}"


def read_table(path: Path) -> list[Row]:
    """The rows of a table; none where there is no file.

    Args:
        path: Path of the table.

    Raises:
        ValueError: If it is not a table of this command.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    whole = all(None not in row and None not in row.values() for row in rows)
    if tuple(reader.fieldnames or ()) != COLUMNS or not whole:
        raise ValueError(f"{path} is not a table of samplers: move it away")
    return rows


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, replacing the file at once.

    Args:
        path: Path of the table.
        rows: The rows.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as file:
        file.write(text.getvalue().encode())


def plot(rows: Sequence[Row], distance: str, title: str) -> bytes:
    """Distance against evaluations and against seconds, as a PNG file's bytes.

    Args:
        rows: The rows of a checkpoint.
        distance: What the distance is called.
        title: What the rows are of.
    """
    figure = new_figure(11, 5.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, name in enumerate(ENTRANTS):
        points = [row for row in rows if row["solver"] == name and row["FD"]]
        points.sort(key=lambda row: int(row["evaluations"]))
        style = {
            "color": f"C{index % 10}",
            "marker": "os^vDPX*<>dph"[index],
            "linestyle": ("-", "--")[index // 10],
            "markersize": 4,
            "linewidth": 1.2,
        }
        for axes, column in ((left, "evaluations"), (right, "seconds")):
            if points:
                x, y = ([float(row[c]) for row in points] for c in (column, "FD"))
                axes.plot(x, y, label=name, **style)
    for axes, text in ((left, "network evaluations a sample"), (right, f"seconds, {BATCH} images")):
        _finish(axes, rows, text)
    costs = [int(row["evaluations"]) for row in rows if row["solver"] != REAL] or [1]
    left.set_xticks([n for n in EVALUATIONS if min(costs) <= n <= max(costs)])
    left.set_xticks([], minor=True)
    left.set_ylabel(f"{distance} to the training images")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return png_of(figure)


def _finish(axes: Any, rows: Sequence[Row], text: str) -> None:
    """Scales, the floor, and the name of the axis."""
    for row in rows:
        if row["solver"] == REAL and row["FD"]:
            axes.axhline(float(row["FD"]), color="0.4", linestyle=":", label=REAL)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(text)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)


if __name__ == "__main__":
    sys.exit(main())
