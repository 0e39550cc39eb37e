"""`python -m jaxgen.data prepare NAME`: makes a TFDS image set readable without TensorFlow."""

import argparse
import sys
from collections.abc import Sequence

from jaxgen.data.prepare import RECIPES, prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxgen.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prepare",
        help="prepare a set of TensorFlow Datasets in the array_record form",
        description=f"Without TensorFlow: {', '.join(RECIPES)}. Any other needs jaxgen[prepare].",
    )
    command.add_argument("name", help="the set, as TensorFlow Datasets names it")
    command.add_argument(
        "--data-dir", help="where sets are kept (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)"
    )
    command.add_argument(
        "--archive",
        nargs="+",
        default=[],
        metavar="FILE",
        help="the official files, or a directory of them, instead of a download",
    )
    args = parser.parse_args(argv)
    try:
        place = prepare(args.name, args.data_dir, args.archive)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.name} is prepared in {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
