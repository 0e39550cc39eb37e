"""`python -m jaxgen.data prepare NAME`: makes a TFDS image set readable without TensorFlow."""

import argparse
import sys
from collections.abc import Sequence

from jaxgen.data.prepare import PREPARATIONS, prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxgen.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prepare",
        help="Prepare a set of TensorFlow Datasets in the array_record form.",
        description=f"Without TensorFlow: {', '.join(PREPARATIONS)}. Any other needs "
        "jaxgen[tfds-prepare].",
    )
    command.add_argument("name", help="Name of the set in TensorFlow Datasets.")
    command.add_argument(
        "--data-dir",
        help="Directory of the sets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets).",
    )
    command.add_argument(
        "--archive",
        nargs="+",
        default=[],
        metavar="FILE",
        help="Official files, or a directory of them, to read instead of a download.",
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
