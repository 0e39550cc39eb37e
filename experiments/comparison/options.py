"""The comparison's options: given on the command line, kept in its directory, checked early."""

import argparse
import json
from pathlib import Path
from typing import Any

from .families import ENTRANTS

DEFAULTS: dict[str, Any] = {
    "data": "digits",
    "data_dir": None,
    "resize": None,
    "families": list(ENTRANTS),
    "budget_seconds": 75.0,
    "budget_steps": None,
    "unconditional": False,
    "seed": 0,
    "run_dirs": None,
    "num_samples": None,
    "num_evaluated": 1000,
}
# What makes runs what they are; the others may change from call to call.
FIXED = ("data", "resize", "budget_seconds", "budget_steps", "unconditional", "seed")
TRAINING = (*FIXED, "data_dir", "families")
LEAST_SAMPLES, MOST_SAMPLES = 20, 1000


def parser(description: str) -> argparse.ArgumentParser:
    """The command line; what is not given is None."""
    options = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("run_dirs", nargs="*", metavar="RUN_DIR", help="compare these finished runs, train none")
    add("--run-dirs", nargs="+", dest="named_runs", help=argparse.SUPPRESS)  # as it was called
    add(
        "--run-dir",
        "--out",
        dest="out",
        metavar="DIR",
        default="runs/compare",
        help="directory of the comparison, of its own runs too (%(default)s)",
    )
    add(
        "--data.name",
        "--data",
        dest="data",
        metavar="NAME",
        help="data set: digits (embedded), folder:DIR, parquet:DIR ..., or a TFDS set",
    )
    add("--data.dir", dest="data_dir", help="TFDS data directory, or the place of the images")
    add("--data.resize", dest="resize", type=int, help="pixels a side to crop and resize to")
    add("--families", nargs="+", help=f"which of {', '.join(ENTRANTS)} (all)")
    add("--budget-seconds", type=float, help="training seconds of each family (75)")
    add("--budget-steps", type=int, help="training steps of each family, instead of seconds")
    add("--unconditional", action="store_const", const=True, help="give no family the labels")
    add("--seed", type=int, help="seed of training, samples and noise (0)")
    add(
        "--num-samples",
        type=int,
        help="samples of each family (as many as held-out images, to 1000)",
    )
    add("--num-evaluated", type=int, help="held-out images that likelihoods are measured on (1000)")
    return options


def flag(name: str) -> str:
    """What an option is called on the command line.

    Args:
        name: A key of `DEFAULTS`.
    """
    of_data = {"data": "data.name", "data_dir": "data.dir", "resize": "data.resize"}
    return "RUN_DIR" if name == "run_dirs" else f"--{of_data.get(name, name.replace('_', '-'))}"


def make_plan(out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What to do: what was given, else what this directory was made with, else the defaults.

    Args:
        out: The comparison's directory.
        given: Options that were given, as in `DEFAULTS`.

    Returns:
        `options`; `steps` and `calibrated`, what was decided of each family's training.

    Raises:
        ValueError: options out of range, or other ones than those that the directory was made with.
        FileExistsError: a directory of something else.
    """
    plan = _merged(out, given)
    _check(plan["options"])
    return plan


def _merged(out: Path, given: dict[str, Any]) -> dict[str, Any]:
    path = out / "compare.json"
    if out.exists() and not path.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"--run-dir {out} exists and is no comparison: name a new directory (finished runs are "
            "compared without a flag: compare RUN_DIR RUN_DIR)"
        )
    if "budget_seconds" in given and "budget_steps" in given:
        raise ValueError("--budget-seconds and --budget-steps exclude each other")
    if "run_dirs" in given and (odd := sorted(set(given) & set(TRAINING) - {"seed"})):
        flags = ", ".join(map(flag, odd))
        raise ValueError(f"RUN_DIR compares finished runs: it goes without {flags}")
    if not path.exists():
        options = {**DEFAULTS, **given}
        if "budget_steps" in given:
            options["budget_seconds"] = None
        return {"options": options, "steps": {}, "calibrated": {}}
    try:
        saved = json.loads(path.read_text())
        options = {name: saved["options"][name] for name in DEFAULTS}
        plan = {"options": options, "steps": saved["steps"], "calibrated": saved["calibrated"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a comparison: {error!r}") from error
    fixed = ("run_dirs", "seed") if options["run_dirs"] else (*FIXED, "run_dirs")
    for name in given:
        if name in fixed and given[name] != options[name]:
            raise ValueError(
                f"--run-dir {out} was made with another {flag(name)}: {options[name]}, "
                f"not {given[name]}; name another --run-dir"
            )
    options.update(given)
    return plan


def _check(options: dict[str, Any]) -> None:
    """Raise ValueError for options out of range."""
    unknown = [name for name in options["families"] if name not in ENTRANTS]
    if unknown:
        raise ValueError(f"--families must be of {', '.join(ENTRANTS)}, got {' '.join(unknown)}")
    options["families"] = list(dict.fromkeys(options["families"]))
    seconds, seed = options["budget_seconds"], options["seed"]
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"--budget-seconds must be positive, got {seconds}")
    for name, least in (("budget_steps", 1), ("num_samples", LEAST_SAMPLES), ("num_evaluated", 2)):
        value = options[name]
        if value is not None and value < least:
            raise ValueError(f"{flag(name)} must be at least {least}, got {value}")
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed must be from 0 to 2**31 - 1, got {seed}")
