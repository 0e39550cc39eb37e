"""The families side by side: trained on the same data under the same budget, measured alike.

One model of each family (GAN, autoencoder, VAE, flow, autoregressive network, diffusion) is trained
by its digits recipe, in an ordinary run directory, then measured: samples, likelihood, Frechet
distance and its floor, precision and recall, cost, speed, inversion, memorization. The page
`compare.html` needs no network and no other file; `compare.csv` and `compare.md` have its numbers.

    python -m experiments.compare                          the embedded digits, some ten minutes
    python -m experiments.compare --families gan vae --budget-seconds 30
    python -m experiments.compare --data.name mnist --data.dir DIR --data.resize 16
    python -m experiments.compare runs/vae_digits runs/ddpm_digits --run-dir runs/two

The same command goes on where it was stopped: a finished run is not trained again, and what was
measured is kept; the three files are made anew from it. Other data are trained by the same recipes,
at the data's size. Bad input ends in one line on stderr and exit code 2; a number that is not
finite is a dash on the page, which is written, and then exit code 1.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.data.arrays import read_npz
from jaxgen.data.sources import Source, load_pair
from jaxgen.files import open_atomically
from jaxgen.training import loop
from jaxgen.training.runs import Run, open_run
from jaxgen.training.writers import describe_environment, write_json

from .benchmarks.harness import machine
from .commands import run_command
from .comparison import families, page, table
from .comparison.families import ENTRANTS, Planned
from .comparison.measure import VERSION, measure, measure_real
from .comparison.options import LEAST_SAMPLES, MOST_SAMPLES, make_plan, parser
from .comparison.quality import Reference, make_reference
from .pages.tables import to_csv, to_markdown


def main(args: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""

    def action() -> None:
        given = vars(parser(__doc__ or "").parse_args(args))
        given["run_dirs"] = given.pop("named_runs") or given["run_dirs"] or None
        compare(Path(given.pop("out")), {k: v for k, v in given.items() if v is not None})

    return run_command(action)


def compare(out: Path, given: dict[str, Any], *, classifier_steps: int = 600) -> Path:
    """Train what is missing, measure what is missing, write the page; returns its path.

    Args:
        out: The comparison's directory.
        given: Options that were given, as in `DEFAULTS`.
        classifier_steps: Number of training steps of the extractor.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: for bad input, before anything is trained.
        FloatingPointError: if a number is not finite; the page is written before, without it.
    """
    plan = make_plan(out, given)
    options = plan["options"]
    if options["run_dirs"]:
        named = _open_all(options["run_dirs"])
        train, held_out = _images_of(named.values())
        names = list(named)
        runs: Iterator[Run] = iter(named.values())
    else:
        chosen = options["families"]
        data_dir, resize = options["data_dir"], options["resize"]
        train, held_out = load_pair(options["data"], ("train", "test"), data_dir, resize=resize)
        for name in chosen:  # refuses what does not fit before anything is trained
            _plan_run(out, plan, name, plan["steps"].get(name, 100), train)
        names = list(chosen)
        runs = (  # one after the other
            _trained(out, plan, name, train, _Told(index, len(names), name))
            for index, name in enumerate(names)
        )
    count = options["num_samples"] or min(MOST_SAMPLES, max(LEAST_SAMPLES, len(held_out)))
    reference = make_reference(
        train,
        held_out,
        num_samples=count,
        num_evaluated=options["num_evaluated"],
        seed=options["seed"],
        classifier_steps=classifier_steps,
    )
    write_json(out / "compare.json", plan)
    print("measuring the real images", flush=True)
    real = _kept(out, "real", reference, 0, partial(measure_real, reference))
    results = []
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        say = _Told(index, len(names), name)
        measured = partial(measure, name, run, reference, say)
        results.append(_kept(out, name, reference, run.step, measured))
        jax.clear_caches()
    path = _write(out, real, results, _about(options))
    lost = [f"{one['name']}: {reason}" for one, _ in results for reason in one["lost"]]
    if lost:
        raise FloatingPointError(f"{'; '.join(lost)} (dashes in {path})")
    return path


def _open_all(run_dirs: Sequence[str]) -> dict[str, Run]:
    """The runs to compare by name; they must be of images and have names of their own.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if a run is not on images, or two have one name.
    """
    names = [Path(run_dir).name for run_dir in run_dirs]
    if len(set(names)) < len(names) or "real" in names:
        raise ValueError(f"runs must have different last names (not 'real'), got {names}")
    runs = {name: open_run(run_dir) for name, run_dir in zip(names, run_dirs, strict=True)}
    for run in runs.values():
        if run.experiment.medium.unit != "images":
            raise ValueError(f"{run.config.run_dir} is a run of {run.name}, not on images")
    return runs


def _images_of(runs: Iterable[Run]) -> tuple[Source, Source]:
    """The training and held-out images of all these runs.

    Raises:
        ValueError: if the runs are not of the same.
    """
    pairs = {}
    for run in runs:
        data = run.config.data
        splits = (data.split, data.held_out)
        pairs[run.config.run_dir] = load_pair(data.name, splits, data.dir, resize=data.resize)
    (first, pair), *others = pairs.items()
    for run_dir, other in others:
        for one, two in zip(pair, other, strict=True):
            if (one.digest, one.spec) != (two.digest, two.spec):
                raise ValueError(
                    f"runs must be of the same data: {one.protocol} in {first}, "
                    f"{two.protocol} in {run_dir}"
                )
    return pair


def _plan_run(out: Path, plan: dict[str, Any], name: str, steps: int, train: Source) -> Planned:
    """A family's run of so many steps, built but not trained."""
    return families.plan_run(name, out / "runs" / name, _fields(plan, name, steps, train))


def _fields(plan: dict[str, Any], name: str, steps: int, train: Source) -> dict[str, Any]:
    options = plan["options"]
    data = {"name": options["data"], "dir": options["data_dir"], "resize": options["resize"]}
    labels = not options["unconditional"] and train.num_classes is not None
    size = train.spec["image"][0][0]
    return families.settings(name, steps, size, labels=labels, seed=options["seed"], data=data)


@dataclass(frozen=True)
class _Told:
    """What is told of a family: its place among all, its name and what is done.

    Attributes:
        index: Number of the families before it.
        count: Number of all families.
        name: What the comparison calls it.
    """

    index: int
    count: int
    name: str

    def __call__(self, doing: str) -> None:
        print(f"{self.index + 1} of {self.count}, {self.name}: {doing}", flush=True)


def _trained(out: Path, plan: dict[str, Any], name: str, train: Source, say: _Told) -> Run:
    """A family's finished run: trained, or trained on, where it is not."""
    if name not in plan["steps"]:
        _budget(out, plan, name, train, say)
    planned = _plan_run(out, plan, name, plan["steps"][name], train)
    run_dir, steps = planned.config.run_dir, planned.config.steps
    try:
        run = open_run(run_dir)
    except FileNotFoundError:
        run = None
    if run is None or run.step < steps:
        start = time.perf_counter()
        say(f"training, {steps} steps in {run_dir}{_about_seconds(plan, name, steps)}")
        run = _train(planned)
        say(f"trained in {_duration(time.perf_counter() - start)} with compilation")
    return run


def _about_seconds(plan: dict[str, Any], name: str, steps: int) -> str:
    """How long steps take by the calibration, in words; nothing where there was none."""
    rate = plan["calibrated"].get(name, {}).get("steps_per_second")
    return f", about {_duration(steps / rate)}" if rate else ""


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _train(planned: Planned) -> Run:
    """Train by the recipe's own command line, so that the run directory is an ordinary one."""
    try:
        planned.recipe.main(families.flags(planned.recipe, planned.config))
    except SystemExit as end:
        if end.code:
            raise
    run = open_run(planned.config.run_dir)
    if run.step < planned.config.steps:
        raise SystemExit(f"stopped in {planned.name} at step {run.step}; the same command goes on")
    return run


def _budget(out: Path, plan: dict[str, Any], name: str, train: Source, say: _Told) -> None:
    """Decide a family's steps, once: they are kept in the plan, so that a run can be resumed."""
    seconds, steps = plan["options"]["budget_seconds"], plan["options"]["budget_steps"]
    if steps is None:
        many = ENTRANTS[name].calibration_steps
        say(f"timing {many} steps")
        # The second half alone: the loop first finds out how many steps to dispatch at once.
        every = {"log_every": many // 2, "checkpoint_every": many}
        fields = {**_fields(plan, name, many, train), **every}
        with tempfile.TemporaryDirectory() as scratch:
            planned = families.plan_run(name, Path(scratch) / name, fields)
            done = int(loop.train(planned.experiment, planned.config).step)
            if done < many:
                raise SystemExit(f"stopped while {name} was timed; the same command goes on")
            header, _, row = (Path(scratch) / name / "metrics.csv").read_text().splitlines()
        rate = float(dict(zip(header.split(","), row.split(","), strict=True))["steps_per_second"])
        plan["calibrated"][name] = {"steps": many, "steps_per_second": rate}
        steps = max(1, round(rate * seconds))
        if plan["options"]["data"] == "digits":
            steps = min(steps, ENTRANTS[name].most_steps)
    plan["steps"][name] = steps
    write_json(out / "compare.json", plan)


def _kept(out: Path, name: str, reference: Reference, step: int, make: Callable[[], Any]) -> Any:
    """What was measured already under the same protocol, or is measured now and kept."""
    path = out / "measured" / f"{name}.json"
    protocol = {
        "version": VERSION,
        "step": step,
        "extractor": reference.extractor.checksum,
        "num_samples": reference.num_samples,
        "num_evaluated": reference.num_evaluated,
        "seed": reference.seed,
        "data": [reference.train.protocol, reference.held_out.protocol],
    }
    pictures_path = path.with_suffix(".npz")
    if path.exists() and pictures_path.exists():
        try:
            saved = json.loads(path.read_text())
            stored, results = saved["protocol"], saved["results"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as measured, remove it: {error!r}") from error
        if stored == protocol:
            return results, read_npz(pictures_path)
    results, pictures = make()
    with open_atomically(pictures_path) as handle:
        np.savez(handle, **pictures)
    write_json(path, {"protocol": protocol, "results": results})
    return json.loads(path.read_text())["results"], pictures


def _about(options: dict[str, Any]) -> dict[str, Any]:
    """What all numbers share."""
    if options["run_dirs"]:
        budget = "its own, as the run was made"
    elif options["budget_steps"] is not None:
        budget = f"{options['budget_steps']} training steps"
    else:
        budget = f"{options['budget_seconds']:g} seconds of training steps"
        if options["data"] == "digits":
            budget += ", or the recipe's own number of steps where that takes less"
    environment = describe_environment()
    return {
        "budget": budget,
        "seed": options["seed"],
        "machine": machine(),
        "jaxgen": environment["jaxgen"],
        "revision": environment["git"],
        "packages": environment["packages"],
        "labels": "given to the autoregressive network alone, for the classifier by Bayes' rule"
        if not (options["run_dirs"] or options["unconditional"])
        else "as each row says",
    }


def _write(out: Path, real: Any, results: list[Any], about: dict[str, Any]) -> Path:
    """The page, and its numbers as CSV and Markdown."""
    tables = table.tables(real[0], [one for one, _ in results])
    files = {
        "compare.csv": to_csv(tables),
        "compare.md": to_markdown(f"{page.HEADING}: {real[0]['data']['train']}", tables),
        "compare.html": page.page(real, results, about),
    }
    for name, text in files.items():
        with open_atomically(out / name) as handle:
            handle.write(text.encode())
    print(f"page: {out / 'compare.html'}", flush=True)
    return out / "compare.html"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:  # what is timed first is compiled once
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", cache)
        sys.exit(main())
