"""A trained run as one safetensors file, by which others sample it.

    jaxgen export runs/ddpm_digits --out digits.safetensors
    jaxgen export runs/ddpm_digits --out trained.safetensors --average raw --step 1200

In Python, `jaxgen.convert.pretrained.from_pretrained("digits.safetensors")` opens it: the file
names the recipe and holds its config, so the run directory is not needed; the recipe's data are.
Bad input ends in one line on stderr and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxgen.convert import weights
from jaxgen.training.images import check_output

from .commands import run_command, step_of


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: export(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxgen export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=Path, help="directory of the trained run")
    add("--out", type=Path, required=True, help="a new file .safetensors")
    add("--average", help="average of the parameters, raw for the trained ones (the first average)")
    add("--step", type=step_of, help="step of the checkpoint, or best (the newest)")
    add("--data-dir", help="directory of the data, where they have moved")
    return parser


def export(args: argparse.Namespace) -> None:
    """Writes the file and prints a line about it.

    Args:
        args: What the command line gives.

    Raises:
        Exception: What `weights.of_run` and `weights.save` raise.
    """
    check_output(args.out, accepted=(weights.SUFFIX,))
    moved = {} if args.data_dir is None else {"data": {"dir": args.data_dir}}
    of_run = weights.of_run(args.run_dir, step=args.step, average=args.average, **moved)
    weights.save(args.out, of_run)
    origin, count = of_run.origin, sum(x.size for x in jax.tree.leaves(of_run.params))
    which = "" if origin.average is None else f", parameters {origin.average}"
    print(f"{args.out}: {origin.recipe}, step {origin.step}{which}, {count:,} parameters")


if __name__ == "__main__":
    sys.exit(main())
