"""One run as one HTML page: curves, samples over time, evaluations, configuration, environment.

    python -m experiments.report runs/ddpm_digits                    runs/ddpm_digits/report.html
    python -m experiments.report runs/ddpm_digits --out ddpm.html

The page needs no network and no other file, is made from what the run directory has, and can be
made while the run is training; nothing is computed anew. Bad input ends in one line on stderr and
exit code 2.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.files import open_atomically
from jaxgen.training import config as configs
from jaxgen.training import runs
from jaxgen.training.images import is_whole_png
from jaxgen.training.outputs import DRAWN
from jaxgen.training.recipe import Recipe
from jaxgen.training.tables import read_rows
from jaxgen.training.writers import EVALUATIONS, MEASUREMENTS, METRICS

from .commands import run_command
from .comparison.families import flags
from .measure import KEPT as MEASURED
from .pages import charts, parts
from .pages.tables import NONE, Cell, Table, number

MOST_POINTS = 300  # of a curve
MOST_GRIDS, SMALL = 8, 480  # grids over time, and pixels a side of each
HELD_OUT, SESSIONS = "held-out", "sessions.jsonl"
SPEED = "per_second"
Rows = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""

    def action() -> None:
        args = _parser().parse_args(argv)
        print(f"report: {write(args.run_dir, args.out)}")

    return run_command(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, help="Directory of the run.")
    parser.add_argument(
        "--out", type=Path, help="File of the page, .html, which is replaced (RUN_DIR/report.html)."
    )
    return parser


def write(run_dir: Path, out: Path | None = None) -> Path:
    """Write a run's page; returns its path.

    Args:
        run_dir: Directory of the run.
        out: File of the page, which is replaced; `report.html` in the run's directory by default.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If the file does not end in .html, or the run's recipe is not here.
    """
    out = run_dir / "report.html" if out is None else out
    if out.suffix.lower() != ".html":
        raise ValueError(f"--out must end in .html, got {out}")
    text = page(run_dir)
    with open_atomically(out) as file:
        file.write(text.encode())
    return out


def page(run_dir: Path) -> str:
    """The whole page.

    Args:
        run_dir: Directory of the run.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If the run's recipe is not here, or a file of the run is not as commands write
            it; names the file.
    """
    recipe = runs.recipe_of(run_dir)
    config = runs.load_config(run_dir, recipe.name(), recipe.config)
    metrics = read_rows(run_dir / METRICS)
    tables = {
        "": metrics,
        HELD_OUT: read_rows(run_dir / EVALUATIONS),
        "samples": read_rows(run_dir / MEASUREMENTS),
    }
    name = recipe.name().rpartition(".")[2]
    sections = [
        parts.section("Samples", _samples(run_dir)),
        parts.section("Curves", _curves(tables)),
        parts.section("Evaluations", _shown(run_dir / "evaluations.jsonl", _evaluations)),
        parts.section("Other measurements", _others(run_dir)),
        parts.section("Pictures drawn", _drawn(run_dir)),
        parts.section("Configuration", _configuration(run_dir, recipe, config)),
        parts.section("Environment", _shown(run_dir / SESSIONS, _environment)),
    ]
    summary = _summary(recipe, config, metrics, len(_read_lines(run_dir / SESSIONS)))
    return parts.document(f"{name}: {run_dir.resolve().name}", summary, sections)


def _summary(recipe: Recipe, config: Any, metrics: Rows, num_sessions: int) -> str:
    first, *_ = (recipe.module().__doc__ or "").splitlines() or [""]
    if not metrics:
        return f"{first} No row of metrics is written yet."
    last = metrics[-1]
    losses = [f"{key} {value:.4g}" for key, value in last.items() if key.endswith("loss")]
    words = [f"{int(last['step']):,} of {config.steps:,} steps of {config.batch_size}", *losses]
    if seconds := _seconds(metrics):
        words.append(f"{seconds:,.0f} s of training steps")
    if num_sessions > 1:
        words.append(f"{num_sessions} sessions")
    return f"{first} {'; '.join(words)}."


def _seconds(metrics: Rows) -> float:
    """Seconds of the steps of all rows with a rate."""
    total, last = 0.0, 0.0
    for row in metrics:
        rate = row.get("steps_per_second", 0.0)
        total += (row["step"] - last) / rate if rate > 0 else 0.0
        last = row["step"]
    return total


def _samples(run_dir: Path) -> str:
    """The newest grid as it is, and some of all by step."""
    grids = [path for path in sorted((run_dir / "samples").glob("*.png")) if is_whole_png(path)]
    if not grids:
        return ""
    newest = grids[-1]
    shown = parts.full(parts.picture_file(newest, _step_of(newest), "the newest"))
    sound = newest.with_suffix(".wav")
    if sound.exists():
        shown += parts.sound_file(sound)
    places = np.unique(np.linspace(0, len(grids) - 1, min(MOST_GRIDS, len(grids))).round())
    over_time = [
        parts.picture_file(grids[place], _step_of(grids[place]), "", most=SMALL)
        for place in places.astype(int)
    ]
    if len(grids) == 1:
        return shown
    return shown + "<h3>Over time</h3>" + parts.cards(over_time, size="small")


def _step_of(path: Path) -> str:
    return f"step {int(path.stem):,}" if path.stem.isdecimal() else path.stem


def _curves(tables: Mapping[str, Rows]) -> str:
    """One chart for all metrics of a name, whatever they are of, losses first and speed last.

    Args:
        tables: Rows by step, by what they are of; training's by no name.
    """
    kinds: dict[str, dict[str, list[list[float]]]] = {}
    for prefix, rows in tables.items():
        for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
            points = [[row["step"], row[key]] for row in rows if key in row]
            if key == "skipped" and not any(y for _, y in points):
                continue
            of, _, kind = key.rpartition("/")
            name = " ".join(filter(None, (prefix, of))) or "training"
            kinds.setdefault(kind, {})[name] = _thinned(points)

    def order(kind: str) -> tuple[bool, bool]:
        return kind.endswith(SPEED), not kind.endswith("loss")

    figures = []
    for kind in sorted(kinds, key=order):
        label = f"{kind} by step: {', '.join(kinds[kind])}"
        if drawn := charts.lines(kinds[kind], label):
            figures.append(parts.figure(drawn, "", kind.replace("_", " ")))
    return parts.cards(figures, size="wide")


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most so many points, each the mean of its neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    pieces = np.array_split(np.asarray(points), MOST_POINTS)
    return [[float(value) for value in piece.mean(axis=0)] for piece in pieces]


def _evaluations(evaluations: Rows) -> str:
    """A row an evaluation, the newest first, and the protocol of the newest."""
    figures = [_figures(one) for one in evaluations]
    columns = tuple(dict.fromkeys(key for one in figures for key in one))
    rows: dict[str, list[Cell]] = {}
    for index in range(len(evaluations) - 1, -1, -1):
        one = evaluations[index]
        used = one.get("protocol", {}).get("parameters", "")
        name = f"{index + 1}. step {one['step']:,}" + (f", {used}" if used else "")
        rows[name] = [number(figures[index].get(column)) for column in columns]
    protocol = dict(evaluations[-1].get("protocol", {}))
    machine = protocol.pop("environment", {}).get("devices")
    shown = parts.table(Table("Evaluations", columns, columns, rows, of="evaluation"))
    entries = {**protocol, "devices": machine}
    return shown + parts.details("Protocol of the newest", parts.entries(entries))


def _figures(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of an evaluation, each once."""
    shown: dict[str, float | None] = {}
    groups = {"": evaluation, **{k: v for k, v in evaluation.items() if isinstance(v, Mapping)}}
    groups.pop("protocol", None)
    for values in groups.values():
        for key, value in values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            known = value in shown.values() and value is not None
            if key not in ("step", *shown) and (is_number or value is None) and not known:
                shown[key] = None if value is None or not math.isfinite(value) else float(value)
    return shown


def _others(run_dir: Path) -> str:
    """What other commands have kept in the directory, the newest of each."""
    shown = {
        "obedience.jsonl": _obedience,
        MEASURED: _distances,
        "reconstructions.jsonl": _reconstructions,
    }
    body = "".join(_shown(run_dir / name, show) for name, show in shown.items())
    if is_whole_png(run_dir / "samplers.png"):
        figure = parts.picture_file(run_dir / "samplers.png", "Solvers", "quality against cost")
        body += parts.full(figure)
    return body


def _obedience(lines: Rows) -> str:
    newest, columns = lines[-1], ("samples", "real", "floor")
    rows = {
        name: [number(score[column]) for column in columns]
        for name, score in newest["scores"].items()
    }
    notes = (f"step {newest['step']:,}; {newest['held out']}",)
    shown = Table("Obedience", columns, columns, rows, notes, of="what is obeyed")
    return "<h3>Obedience to conditions</h3>" + parts.table(shown)


def _distances(lines: Rows) -> str:
    newest = lines[-1]
    sides = {side: newest[side] for side in ("samples", "held-out images")}
    columns = tuple(sides["samples"])
    rows = {side: [number(of[column]) for column in columns] for side, of in sides.items()}
    notes = (f"step {newest['step']:,}; distances from the training images",)
    shown = Table("Measured", columns, columns, rows, notes, of="images")
    return "<h3>Distances</h3>" + parts.table(shown)


def _reconstructions(lines: Rows) -> str:
    return "<h3>Reconstructions</h3>" + parts.entries(lines[-1]["metrics"])


def _drawn(run_dir: Path) -> str:
    """The newest of each name that `sample` has drawn."""
    newest: dict[str, Path] = {}
    for path in sorted((run_dir / DRAWN).glob("*.png")):
        if is_whole_png(path):
            newest[path.stem.rpartition("_")[0]] = path
    figures = [
        parts.picture_file(path, name.replace("_", " "), path.name) for name, path in newest.items()
    ]
    return parts.cards(figures, size="wide")


def _configuration(run_dir: Path, recipe: Recipe, config: Any) -> str:
    """The command, what differs from the recipe, and all fields."""
    default, own = (configs.flattened(configs.to_dict(each)) for each in (recipe.config, config))
    changed = {key: value for key, value in own.items() if value != default.get(key)}
    rows = {
        f"--{key.replace('_', '-')}": [Cell(_word(value)), Cell(_word(default.get(key)))]
        for key, value in changed.items()
    }
    command = f"{recipe.command('train')} {shlex.join(flags(recipe, config))}".strip()
    body = parts.entries({"command": command})
    if rows:
        columns = ("this run", "recipe")
        body += parts.table(Table("Changed flags", columns, columns, rows, of="flag"))
    data = runs.saved_config(run_dir).get("data", {})
    of_data = {role: described["protocol"] for role, described in data.items()}
    body += parts.entries({f"data, {role.replace('_', ' ')}": v for role, v in of_data.items()})
    return body + parts.details("All fields", parts.entries(own))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if value is not None else NONE


def _environment(sessions: Rows) -> str:
    """Machine and versions of the newest session, and the arguments of all."""
    newest = dict(sessions[-1])
    newest.pop("arguments", None)
    packages = newest.pop("packages", {})
    body = parts.entries({**newest, **{f"package {k}": v for k, v in packages.items()}})
    arguments = {
        f"session {index + 1}": shlex.join(session.get("arguments", [])) or "no arguments"
        for index, session in enumerate(sessions)
    }
    return body + parts.details("Sessions", parts.entries(arguments, code=tuple(arguments)))


def _shown(path: Path, show: Callable[[Rows], str]) -> str:
    """What is shown of a JSON-lines file; nothing where it has no line."""
    lines = _read_lines(path)
    try:
        return show(lines) if lines else ""
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as commands write it: {error!r}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last end of a line is not whole
    return [_object(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is no JSON object: {error}. Take the line away") from error


if __name__ == "__main__":
    sys.exit(main())
