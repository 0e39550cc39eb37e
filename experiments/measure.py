"""How far the samples of a trained run are from real images: FID, precision and recall.

    jaxgen measure runs/dcgan_digits --num 1000 --extractor classifier
    jaxgen measure runs/ddpm_cifar --num 50000 --step best

What `--measure-every` writes while training, of any checkpoint: samples, of a conditional model
under the conditions of training examples, against the training images; beside it the same numbers
of the held-out images, which are as good as samples can be expected to get. With fewer samples than
features a distance is biased: compare it with those of as many alone. The result is kept in the
run's measured.jsonl. Bad input ends in one line on stderr and exit code 2, a number that is not
finite in exit code 1.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.training.evaluation import make_sample
from jaxgen.training.measure import check_measurable, conditions_like
from jaxgen.training.runs import open_run
from jaxgen.training.writers import append_json_line, describe_environment

from .commands import run_command, step_of

KEPT = "measured.jsonl"
EXTRACTORS = ("inception", "lite0", "classifier")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxgen measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=Path, help="directory of the trained run")
    # By the names of `train` too.
    add("--num", "--measure-num", type=int, default=1000, help="samples (%(default)s)")
    add(
        "--extractor",
        "--measure-extractor",
        choices=EXTRACTORS,
        default="inception",
        help="network whose features are compared (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    add("--average", help="average of the parameters, raw for the trained ones (the first average)")
    add("--step", type=step_of, help="step of the checkpoint, or best (the newest)")
    add("--data-dir", help="directory of the data, where they have moved")
    return parser


def measure(args: argparse.Namespace) -> dict[str, Mapping[str, float]]:
    """The numbers of the samples and of the held-out images; prints them, and keeps them.

    Args:
        args: What the command line gives.

    Raises:
        ValueError: If the run is no model of images that samples, or too few samples are asked for.
        FloatingPointError: If a sample is not finite, and says how many, or a number.
    """
    changes: dict[str, Any] = {} if args.data_dir is None else {"data": {"dir": args.data_dir}}
    run = open_run(
        args.run_dir,
        step=args.step,
        average=args.average,
        measure_every=1,
        measure_num=args.num,
        measure_extractor=args.extractor,
        **changes,
    )
    check_measurable(run.experiment, run.config, "jaxgen measure")
    assert run.experiment.distances is not None
    train, held_out = run.experiment.pipeline.source, run.experiment.held_out
    distances = run.experiment.distances(train, held_out, run.config)
    if distances.warning is not None:
        print(f"warning: {distances.warning}", file=sys.stderr)
    real = held_out[np.arange(min(args.num, len(held_out)))]["image"]
    of_real = distances.of(real)
    conditions = conditions_like(run.experiment, args.num)
    sample = make_sample(run.experiment, run.strategy)
    samples = sample(run.variables, jax.random.key(args.seed), args.num, conditions)
    sides = {"samples": distances.of(samples), "held-out images": of_real}
    counts = {"samples": args.num, "held-out images": len(real)}
    print("| of | " + " | ".join(distances.names) + " | number |")
    print("| --- " * (2 + len(distances.names)) + "|")
    for side, numbers in sides.items():
        cells = [f"{numbers[name]:.4g}" for name in distances.names]
        print(f"| {side} | {' | '.join(cells)} | {counts[side]} |")
    result = {"experiment": run.name, "step": run.step, "average": run.average, **sides}
    protocol = {
        **distances.protocol,
        **counts,
        "held out": held_out.protocol,
        "seed": args.seed,
        "precision": run.config.precision,
        "environment": describe_environment(),
    }
    kept = args.run_dir / KEPT
    try:
        append_json_line(kept, {**result, "protocol": protocol})
        print(f"step {run.step:,}; kept in {kept}")
    except OSError as error:
        print(f"warning: the result is printed but not kept: {error}", file=sys.stderr)
    if lost := sorted({n for of in sides.values() for n, x in of.items() if not math.isfinite(x)}):
        raise FloatingPointError(f"not finite: {', '.join(lost)}")
    return sides


if __name__ == "__main__":
    sys.exit(main())
