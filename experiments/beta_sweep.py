"""What beta trades: one `beta_vae` for each beta, and a plot of reconstruction against KL.

Each run is an ordinary run directory `DIR/beta_B` of `experiments.beta_vae`, trained or resumed by
the command that anyone would give; the flags after `--` go to it. `DIR/sweep.csv` and
`DIR/sweep.png` hold the two terms of the bound on the held-out split, in nats an example: their sum
is least near beta = 1, whose objective it is.

    python -m experiments.beta_sweep --run-dir runs/beta_sweep -- --data.dir DIR
    python -m experiments.beta_sweep --betas 1 4 --run-dir runs/short -- --data.name digits
"""

import argparse
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

from jaxgen.files import open_atomically
from jaxgen.training.writers import print_anywhere

from .recipes.figures import check_matplotlib, new_figure, png_of

BETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
COLUMNS = ("beta", "step", "reconstruction", "kl", "negative_elbo", "active_units")


def run_one(beta: float, run_dir: Path, flags: list[str]) -> dict[str, float]:
    """Train, or resume, and evaluate one model; returns its terms.

    Raises:
        subprocess.CalledProcessError: if either command fails; it has said why.
    """
    program = [sys.executable, "-m", f"{__package__}.beta_vae"]
    where = ["--run-dir", str(run_dir)]
    subprocess.run([*program, *where, "--objective.beta", str(beta), *flags], check=True)
    subprocess.run([*program, "evaluate", *where], check=True, stdout=subprocess.DEVNULL)
    *_, last = (run_dir / "evaluations.jsonl").read_text().splitlines()
    result = json.loads(last)
    return {"beta": beta, **{name: result[name] for name in COLUMNS[1:]}}


def draw(rows: list[dict[str, float]]) -> bytes:
    """The plot, as a PNG file's bytes."""
    figure = new_figure(6, 4.5)
    axes = figure.add_subplot()
    kl, reconstruction = ([row[name] for row in rows] for name in ("kl", "reconstruction"))
    axes.plot(kl, reconstruction, "o-", color="tab:blue")
    for row in rows:
        axes.annotate(
            f"beta {row['beta']:g}",
            (row["kl"], row["reconstruction"]),
            xytext=(6, 6),
            textcoords="offset points",
        )
    axes.set_xlabel("KL to the prior, nats an example")
    axes.set_ylabel("reconstruction, -log p(x | z), nats an example")
    axes.set_title("What beta trades (held-out examples)")
    axes.grid(alpha=0.3)
    axes.margins(0.15)  # for the labels
    return png_of(figure)


def main(arguments: list[str] | None = None) -> None:
    """Run the sweep; write the table and the plot."""
    print_anywhere()
    given = sys.argv[1:] if arguments is None else arguments
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.beta_sweep",
        usage="%(prog)s [-h] [--betas BETA ...] [--run-dir DIR] [-- FLAGS of beta_vae]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--betas", type=float, nargs="+", default=BETAS, help="Weights of the KL, one run each."
    )
    parser.add_argument(
        "--run-dir",
        "--out",
        dest="out",
        type=Path,
        metavar="DIR",
        default=Path("runs/beta_sweep"),
        help="Directory of the sweep, of its runs too (%(default)s).",
    )
    options = parser.parse_args(given[:split])
    if min(options.betas) < 0 or len(set(options.betas)) < len(options.betas):
        parser.error(f"--betas must be at least 0 and each given once, got {options.betas}")
    try:
        check_matplotlib()
    except ImportError as error:
        parser.error(str(error))
    rows = []
    for beta in sorted(options.betas):
        try:
            rows.append(run_one(beta, options.out / f"beta_{beta:g}", given[split + 1 :]))
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    for name, content in (("sweep.csv", table.getvalue().encode()), ("sweep.png", draw(rows))):
        with open_atomically(options.out / name) as file:
            file.write(content)
    print(table.getvalue(), end="")
    print(f"plot: {options.out / 'sweep.png'}")


if __name__ == "__main__":
    main()
