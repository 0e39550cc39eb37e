"""The families side by side: trained on the same data under the same budget, measured alike.

One model of each family (GAN, autoencoder, VAE, flow, autoregressive network, diffusion) is trained
by its digits recipe, in an ordinary run directory, then measured: samples, likelihood, Frechet
distance and its floor, precision and recall, cost, speed, inversion, memorization. The page
`compare.html` needs no network and no other file; `compare.csv` and `compare.md` have its numbers.

    python -m experiments.compare                          the embedded digits, some ten minutes
    python -m experiments.compare --families gan vae --budget-seconds 30
    python -m experiments.compare --data mnist --data.dir DIR --data.resize 16
    python -m experiments.compare --run-dirs runs/vae_digits runs/ddpm_digits --out runs/two

The same command goes on where it was stopped: a finished run is not trained again, and what was
measured is kept; the three files are made anew from it. Other data are trained by the same recipes,
at the data's size. Bad input ends in one line on stderr and exit code 2.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.harness import machine
from experiments.comparison import families, page, table
from experiments.comparison.families import FAMILIES, Run
from experiments.comparison.measure import VERSION, Reference, make_reference, measure, measure_real
from experiments.comparison.options import LEAST_SAMPLES, MOST_SAMPLES, make_plan, parser
from jaxgen.core import State
from jaxgen.data.sources import load
from jaxgen.training import cli, loop
from jaxgen.training.checkpoint import CheckpointError
from jaxgen.training.files import open_atomically
from jaxgen.training.strategies import make_strategy
from jaxgen.training.writers import describe_environment, write_json


def main(args: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        given = vars(parser(__doc__ or "").parse_args(args))
        compare(Path(given.pop("out")), {k: v for k, v in given.items() if v is not None})
    except (CheckpointError, loop.NonFiniteError) as error:
        return _fail(error, 1)
    except (ValueError, TypeError, OSError) as error:
        return _fail(error, 2)
    return 0


def _fail(error: Exception, code: int) -> int:
    if os.environ.get(cli.TRACEBACK):
        raise error
    print(f"error: {error}\n(set {cli.TRACEBACK}=1 for the traceback)", file=sys.stderr)
    return code


def compare(out: Path, given: dict[str, Any], *, classifier_steps: int = 600) -> Path:
    """Train what is missing, measure what is missing, write the page; returns its path.

    Args:
        out: the comparison's directory.
        given: the options that were given, as in `DEFAULTS`.
        classifier_steps: of the extractor's training.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: for bad input, before anything is trained.
    """
    plan = make_plan(out, given)
    options = plan["options"]
    if options["run_dirs"]:
        runs = _open_all(options["run_dirs"])
        data = runs[0].config.data
        names = (data.split, data.held_out)
        train, held_out = (load(data.name, s, data.dir, resize=data.resize) for s in names)
        pairs: Iterable[tuple[Run, State]] = [(run, _restore(run)) for run in runs]
    else:
        chosen = options["families"]
        data_dir, resize = options["data_dir"], options["resize"]
        train, held_out = (
            load(options["data"], split, data_dir, resize=resize) for split in ("train", "test")
        )
        for name in chosen:
            _make(out, plan, name, plan["steps"].get(name, 100), train)
        pairs = (_trained(out, plan, name, train) for name in chosen)  # one after the other
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
    real = _kept(out, "real", reference, 0, partial(measure_real, reference))
    found = []
    for run, state in pairs:
        found.append(_measured(out, reference, run, state))
        jax.clear_caches()
    return _write(out, real, found, _about(options))


def _open_all(run_dirs: Sequence[str]) -> list[Run]:
    """The runs to compare, which must be of one data set and have names of their own."""
    runs = [families.open_run(Path(run_dir)) for run_dir in run_dirs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names) or "real" in names:
        raise ValueError(f"--run-dirs must have different last names (not 'real'), got {names}")
    first = runs[0].config.data
    for run in runs[1:]:
        data = run.config.data
        for field in ("name", "split", "held_out", "resize"):
            if getattr(data, field) != getattr(first, field):
                raise ValueError(
                    f"--run-dirs must be of the same data: {field} is {getattr(first, field)} in "
                    f"{runs[0].config.run_dir}, {getattr(data, field)} in {run.config.run_dir}"
                )
    return runs


def _make(out: Path, plan: dict[str, Any], name: str, steps: int, train: Any) -> Run:
    """A family's run of so many steps, built but not trained."""
    return families.make_run(name, out / "runs" / name, _fields(plan, name, steps, train))


def _fields(plan: dict[str, Any], name: str, steps: int, train: Any) -> dict[str, Any]:
    options = plan["options"]
    data = {"name": options["data"], "dir": options["data_dir"], "resize": options["resize"]}
    told = not options["unconditional"] and train.num_classes is not None
    size = train.spec["image"][0][0]
    return families.settings(name, steps, size, told=told, seed=options["seed"], data=data)


def _trained(out: Path, plan: dict[str, Any], name: str, train: Any) -> tuple[Run, State]:
    """A family's finished run: trained, or trained on, where it is not."""
    if name not in plan["steps"]:
        _budget(out, plan, name, train)
    run = _make(out, plan, name, plan["steps"][name], train)
    try:
        state = _restore(run)
    except FileNotFoundError:
        state = None
    if state is None or int(state.step) < run.config.steps:
        start = time.perf_counter()
        print(f"training {name}: {run.config.steps} steps in {run.config.run_dir}", flush=True)
        _command(run)
        state = _restore(run)
        print(f"{name}: {time.perf_counter() - start:.0f} s with compilation", flush=True)
    return run, state


def _command(run: Run) -> None:
    """Train by the experiment's own command line, so that the run directory is an ordinary one."""
    module = sys.modules[run.module]
    try:
        cli.main(module.Config, module.build, families.flags(run.module, run.config))
    except SystemExit as end:
        if end.code:
            raise
    done = int(_restore(run).step)
    if done < run.config.steps:
        raise SystemExit(f"stopped in {run.name} at step {done}; the same command goes on")


def _budget(out: Path, plan: dict[str, Any], name: str, train: Any) -> None:
    """Decide a family's steps, once: they are kept in the plan, so that a run can be resumed."""
    seconds, steps = plan["options"]["budget_seconds"], plan["options"]["budget_steps"]
    if steps is None:
        many = FAMILIES[name].calibration_steps
        print(f"timing {many} steps of {name}", flush=True)
        # The second half alone: the loop first finds out how many steps to dispatch at once.
        every = {"log_every": many // 2, "checkpoint_every": many}
        fields = {**_fields(plan, name, many, train), **every}
        with tempfile.TemporaryDirectory() as scratch:
            run = families.make_run(name, Path(scratch) / name, fields)
            done = int(loop.train(run.experiment, run.config).step)
            if done < many:
                raise SystemExit(f"stopped while {name} was timed; the same command goes on")
            header, _, row = (Path(scratch) / name / "metrics.csv").read_text().splitlines()
        rate = float(dict(zip(header.split(","), row.split(","), strict=True))["steps_per_second"])
        plan["calibrated"][name] = {"steps": many, "steps_per_second": rate}
        steps = max(1, round(rate * seconds))
        if plan["options"]["data"] == "digits":
            steps = min(steps, FAMILIES[name].most_steps)
    plan["steps"][name] = steps
    write_json(out / "compare.json", plan)


def _restore(run: Run) -> State:
    return loop.restore(run.experiment, run.config, make_strategy("jit"))


def _measured(out: Path, reference: Reference, run: Run, state: State) -> Any:
    return _kept(out, run.name, reference, int(state.step), partial(measure, run, state, reference))


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
    }
    pictures_path = path.with_suffix(".npz")
    if path.exists() and pictures_path.exists():
        saved = json.loads(path.read_text())
        if saved["protocol"] == protocol:
            with np.load(pictures_path) as file:
                return saved["found"], {key: file[key] for key in file.files}
    print(f"measuring {name}", flush=True)
    found, pictures = make()
    with open_atomically(pictures_path) as handle:
        np.savez(handle, **pictures)
    write_json(path, {"protocol": protocol, "found": found})
    return json.loads(path.read_text())["found"], pictures


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
        "labels": "told to the autoregressive network alone, for the classifier by Bayes' rule"
        if not (options["run_dirs"] or options["unconditional"])
        else "as each row says",
    }


def _write(out: Path, real: Any, found: list[Any], about: dict[str, Any]) -> Path:
    """The page, and its numbers as CSV and Markdown."""
    made = table.tables(real[0], [one for one, _ in found])
    files = {
        "compare.csv": table.to_csv(made),
        "compare.md": table.to_markdown(f"{page.HEADING}: {real[0]['data']['train']}", made),
        "compare.html": page.page(real, found, about),
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
