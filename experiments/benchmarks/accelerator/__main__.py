"""Everything to ask of an accelerator in its first minutes, and of a CPU, shrunk.

    python -m experiments.benchmarks.accelerator [--minutes 10] [--only PIECE] [--out DIR]
    python -m experiments.benchmarks.accelerator --train ddpm_cifar --minutes 5 -- --data.dir DIR

The first form does one piece after another, each within a time limit of its own: what the machine
is and computes at most; numbers beside the CPU's; training and sampling speed of the full recipes,
utilization and memory; scaling over the devices there are; PyTorch beside them where it is
installed. The second trains one recipe for so long and measures what it has reached.

Each piece leaves a JSON file in --out, so that another call goes on where the time was over (what
failed is tried again, last); report.md there has all of them as tables, with card, driver and
versions. On a machine without an accelerator everything is shrunk, as a rehearsal.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.training.writers import write_json

from . import probe, quality
from .pieces import Piece, pieces
from .report import read_results, write_report
from .worker import PieceError, Worker

SLOWER = 4  # a CPU's time limits, in an accelerator's
LEAST_SAMPLES = 10  # the inception score's parts


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 where a piece failed, 2 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags: list[str] = []
    if "--" in arguments:
        split = arguments.index("--")
        arguments, flags = arguments[:split], arguments[split + 1 :]
    options = _parser().parse_args(arguments)
    try:
        _check(options, flags)
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = _ask(options) if options.train is None else _train(options, flags)
    print(f"report: {write_report(options.out)}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="time in all (%(default)s)")
    add("--only", action="append", metavar="PIECE", help="a piece, or the beginning of its name")
    add("--out", type=Path, default=Path("runs/accelerator"), help="directory (%(default)s)")
    add("--train", metavar="RECIPE", help="train this recipe instead; its flags follow --")
    add("--num", type=int, help="samples of the trained recipe (1,000; on a CPU 64)")
    add("--list", action="store_true", help="name the pieces, and those done")
    return parser


def _check(options: argparse.Namespace, flags: Sequence[str]) -> None:
    if options.minutes <= 0:
        raise ValueError(f"--minutes must be positive, got {options.minutes:g}")
    if options.num is not None and options.num < LEAST_SAMPLES:
        raise ValueError(f"--num must be at least {LEAST_SAMPLES}, got {options.num}")
    if flags and options.train is None:
        raise ValueError(f"flags after -- are for --train RECIPE, got {' '.join(flags)}")
    for name in options.only or ():
        if not any(piece.startswith(name) for piece in pieces()):
            raise ValueError(f"--only must begin one of {', '.join(pieces())}, got {name!r}")


def _ask(options: argparse.Namespace) -> bool:
    """The pieces that are not done, as far as the time goes; returns whether one failed."""
    chosen = {
        name: piece
        for name, piece in pieces().items()
        if not options.only or any(name.startswith(only) for only in options.only)
    }
    results = read_results(options.out)
    done = {name for name, result in results.items() if "error" not in result}
    order = sorted(
        chosen.keys() - done, key=lambda name: (name in results, list(chosen).index(name))
    )
    if options.list:
        print("\n".join(f"{name} (done)" if name in done else name for name in chosen))
        return False
    end, failed, worker = time.monotonic() + 60 * options.minutes, [], Worker()
    try:
        shrunk = worker.call(probe.is_cpu, 120)
        for name in list(order):
            left = end - time.monotonic()
            if left < 5:
                break
            limit = chosen[name].seconds * (SLOWER if shrunk else 1)
            result = _one(worker, chosen[name], min(left, limit), shrunk)
            if "error" in result and left < limit and result["wall"] > left - 1:
                break  # the time in all was over: it is not at fault
            write_json(options.out / f"{name}.json", {"piece": name, **result})
            outcome = result.get("error", "done").split("\n")[0]
            print(f"{name}: {outcome} ({result['wall']:.0f} s)", flush=True)
            if "error" in result or result.get("failed"):
                failed.append(name)
            order.remove(name)
    finally:
        worker.stop()
    if order:
        print(f"time is over; left for another call: {', '.join(order)}")
    return bool(failed)


def _one(worker: Worker, piece: Piece, seconds: float, shrunk: bool) -> dict[str, Any]:
    begin = time.monotonic()
    arguments: Mapping[str, Any] = {"shrunk": shrunk} if piece.takes_size else {}
    try:
        result = worker.call(piece.ask, seconds, **arguments)
    except PieceError as error:
        result = {"error": str(error)}
    return {**result, "wall": time.monotonic() - begin}


def _train(options: argparse.Namespace, flags: Sequence[str]) -> bool:
    """Train a recipe, measure it and leave its row; returns whether it failed."""
    name, worker = options.train, Worker()
    run_dir = options.out / f"run-{name}"
    path, grid = options.out / f"train-{name}.json", options.out / f"samples-{name}.png"
    grid.unlink(missing_ok=True)
    try:
        trained = quality.train_for(name, 60 * options.minutes, run_dir, flags)
        is_cpu = worker.call(probe.is_cpu, 120)
        num = options.num or (64 if is_cpu else 1000)
        machine = worker.call(probe.facts, 120)
        measured = worker.call(
            quality.measure_run,
            1200,
            run_dir=str(run_dir),
            num=num,
            num_reference=256 if is_cpu else 10_000,
            num_evaluated=256 if is_cpu else 2000,
            grid_path=str(grid),
        )
        result = {**machine, **trained, **measured}
    except (PieceError, RuntimeError, ValueError) as error:
        result = {"error": str(error)}
        print(f"error: {error}", file=sys.stderr)
    finally:
        worker.stop()
    write_json(path, {"piece": f"train-{name}", **result})
    return "error" in result


if __name__ == "__main__":
    sys.exit(main())
