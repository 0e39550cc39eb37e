"""The comparison's numbers as tables: one definition for the page, the CSV and the Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.comparison.families import TITLES

NONE = "-"


class Cell(NamedTuple):
    """A number as text, or `-` and why there is none."""

    text: str
    why: str = ""


class Table(NamedTuple):
    """Rows by name, one cell a column.

    Attributes:
        title: of the table.
        columns: what each column is, with its unit.
        rows: name -> cells.
        notes: what a reader must know of the numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, list[Cell]]
    notes: tuple[str, ...]


def title(found: Mapping[str, Any]) -> str:
    """What a run is called on the page."""
    if found["name"] == found["kind"]:
        return TITLES[found["kind"]]
    return f"{found['name']} ({TITLES[found['kind']]})"


def tables(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """All tables of the comparison, from what `measure` found."""
    return [
        _quality(real, runs),
        _likelihood(real, runs),
        _classification(real, runs),
        _sampling(runs),
        _cost(runs),
    ]


def _quality(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {
        "Real: held-out images": _quality_cells(real["held_out"], {}, ""),
        "Real: part of the training images": _quality_cells(real["train_part"], {}, ""),
    }
    for found in runs:
        told = "label" if found["told"] == "label" else "nothing"
        rows[title(found)] = _quality_cells(found.get("quality"), found["why"], told)
    count, train = real["held_out"]["count"], real["counts"]["train"]
    part = real["train_part"]
    warnings = sorted({w for one in (real["held_out"], part) for w in one["warnings"]})
    return Table(
        "Quality of the samples",
        (
            "told",
            "FD-classifier (lower is better)",
            "precision",
            "recall",
            "density",
            "coverage",
            "distance to the training images",
            "copies",
            "images",
        ),
        rows,
        (
            "FD-classifier is the Frechet distance between features of the "
            f"{real['extractor']['name']} (held-out accuracy {real['accuracy']:.4g}) and is no "
            "FID: it compares with nothing "
            f"outside this page. The reference is all {train} training images.",
            f"The floor: {count} held-out images against the same reference, and {part['count']} "
            f"random training images against the other {part['reference_count']}. Held-out images "
            "may come from other writers or another time, so a model can be nearer to the training "
            "images than they are; one that has copied them would be nearest of all. A random part "
            "has its classes in chance proportions, which may add to its distance.",
            "Precision, recall, density and coverage: k = 5 neighbours in the same features, among "
            f"{real['counts']['neighbours']} of the training images. Recall and coverage depend on "
            "the two numbers of images: compare within a page.",
            "The distance to the training images is the median over the images of the Euclidean "
            "distance to the nearest one, in pixels of [0, 1]; a copy has distance 0. Samples much "
            "nearer than held-out images are memorized.",
            *warnings,
        ),
    )


def _quality_cells(quality: Mapping[str, Any] | None, why: Mapping[str, str], told: str):
    if quality is None:
        return [Cell(told)] + [Cell(NONE, why["samples"])] * 8
    names = ("FD-classifier", "precision", "recall", "density", "coverage", "nearest")
    numbers = [number(quality[name]) for name in names]
    return [Cell(told), *numbers, Cell(str(quality["copies"])), Cell(str(quality["count"]))]


def _likelihood(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {}
    for found in runs:
        p, why = found["likelihood"], found["why"]
        if p is None:
            cells = [Cell(NONE, why["likelihood"])] * 7
        else:
            given = p["given_label"]
            cells = [
                number(p["bits_per_dim"], why.get("bits_per_dim", "")),
                number(p["nats"]),
                number(p["standard_error"]),
                Cell(p["bound"]),
                Cell(p["dequantization"]),
                number(given, "it is not told the label"),
                Cell(str(p["num_examples"])),
            ]
        rows[title(found)] = cells
    levels: tuple[str, ...] = (
        "The embedded digits have 17 grey levels of the 256: a softmax over values learns that and "
        "gains bits that a logistic or a density of dequantized pixels cannot.",
    )
    if "UCI digits" not in real["data"]["train"]:
        levels = ()
    return Table(
        "Likelihood of held-out images",
        (
            "bits/dim (lower is better)",
            "nats an image",
            "standard error",
            "bound",
            "dequantization",
            "nats given the label",
            "images",
        ),
        rows,
        (
            "Negative log-likelihood of the 8-bit pixels, of the same held-out images for all. "
            "What is not exact is a bound from above (the ELBO, the variational bound over noise "
            "levels), and so is even an exact density of dequantized pixels, by one draw of the "
            "noise: such a family may be better than it looks.",
            "What is conditional on the label is not comparable with what is not: of a family that "
            "is told the label the first columns are log p(x) = log of the mean over the classes y "
            "of p(x | y), the unconditional likelihood with equal priors.",
            *levels,
        ),
    )


def _classification(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Table:
    names = ("accuracy", "nll", "ece", "num")
    rows = {"Plain classifier": [number(real["classifier"][name]) for name in names]}
    for found in runs:
        c, reason = found["classifier"], found["why"].get("classifier", "")
        rows[title(found)] = [number(c and c[name], reason) for name in names]
    return Table(
        "As a classifier of held-out images",
        ("accuracy", "nats of the right label", "calibration error", "images"),
        rows,
        (
            "p(y | x) by Bayes' rule with equal priors, from a family that is told the label; "
            f"beside it the {real['extractor']['name']}, which learned p(y | x) itself.",
            "Calibration error: |accuracy - confidence| in 15 bins of the confidence, averaged "
            "over the images.",
        ),
    )


def _sampling(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {}
    for found in runs:
        s, r, why = found.get("sampling"), found["round_trip"], found["why"]
        if s is None:
            cells = [Cell(NONE, why["samples"])] * 5
        else:
            cells = [
                Cell(s["order"]),
                Cell(str(s["passes"])),
                number(1e3 * s["one"]),
                number(1e3 * s["batch"]),
                number(s["batch_size"] / s["batch"]),
            ]
        cells += [
            Cell(inverts(found)),
            number(r and r["max"], why.get("round_trip", "")),
            number(r and r["mse"], why.get("round_trip", "")),
        ]
        rows[title(found)] = cells
    batches = sorted({found["sampling"]["batch_size"] for found in runs if "sampling" in found})
    batch = batches[0] if batches else 64
    return Table(
        "Sampling and inversion",
        (
            "sampling",
            "network passes",
            "one image, ms",
            f"{batch} images, ms",
            f"images/s in batches of {batch}",
            "inverts",
            "round trip, largest error",
            "round trip, mean squared error",
        ),
        rows,
        (
            "Times are medians of 5 calls (of quick ones 50) after one that compiles, from key to "
            "bytes on the host; one image and a batch are timed in turn. A cached autoregressive "
            "pass computes one position only, so its passes are cheaper than others'.",
            "Round trip: |decode(encode(x)) - x| of held-out images, pixels in [-1, 1] "
            "(one grey level of 256 is 0.0078): the largest over all pixels of all images, and the "
            "mean of the squares. A family inverts where the largest is at most 1e-3.",
        ),
    )


def inverts(found: Mapping[str, Any]) -> str:
    """Whether decode undoes encode, as measured."""
    if found["round_trip"] is None:
        return "no"
    if found["round_trip"]["max"] <= 1e-3:
        return "yes"
    return "approximately" if found["kind"] == "flow" else "no (reconstructs)"


def _cost(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {}
    for found in runs:
        t = found["training"]
        unknown = "the run is too short to time"
        rows[title(found)] = [
            Cell(str(sum(found["parameters"].values()))),
            Cell(str(found["step"])),
            Cell(str(t["batch_size"])),
            number(t["seconds"], unknown),
            number(t["seconds"] and found["step"] / t["seconds"], unknown),
            number(t["examples_per_second"], unknown),
        ]
    return Table(
        "Training cost",
        ("parameters", "steps", "batch size", "seconds", "steps/s", "examples/s"),
        rows,
        (
            "Seconds of training steps alone, from the run's own metrics.csv: compilation, "
            "checkpoints and evaluation are left out. A budget in seconds becomes steps by a short "
            "calibration, so the seconds differ from it as the machine's load does.",
            "Parameters are of all networks, a GAN's discriminator and an encoder included.",
        ),
    )


def number(value: float | None, why: str = "") -> Cell:
    """Four significant digits, without an exponent where it stays short."""
    if value is None:
        return Cell(NONE, why)
    short = f"{value:.4g}"
    return Cell(f"{value:.0f}" if "e+" in short else short)


def to_csv(made: Sequence[Table]) -> str:
    """All tables as one: a row a family, the columns' names after their table's."""
    names = list(dict.fromkeys(name for table in made for name in table.rows))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["family", *(f"{t.title}: {column}" for t in made for column in t.columns)])
    for name in names:
        cells = [cell.text for t in made for cell in t.rows.get(name, [Cell("")] * len(t.columns))]
        writer.writerow([name, *cells])
    return out.getvalue()


def to_markdown(heading: str, made: Sequence[Table]) -> str:
    """The tables, each with its notes and the reasons for what is missing."""
    parts = [f"# {heading}"]
    for t in made:
        lines = [
            "| " + " | ".join(["family", *t.columns]) + " |",
            "|" + " --- |" * (len(t.columns) + 1),
            *(
                "| " + " | ".join([name, *(cell.text for cell in cells)]) + " |"
                for name, cells in t.rows.items()
            ),
        ]
        notes = [f"- {note}" for note in (*t.notes, *reasons(t))]
        parts += [f"## {t.title}", "\n".join(lines), "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def reasons(table: Table) -> list[str]:
    """Why families have no number in some columns, once for each reason."""
    missing: dict[tuple[str, str], list[str]] = {}
    for name, cells in table.rows.items():
        for column, cell in zip(table.columns, cells, strict=True):
            if cell.why:
                missing.setdefault((name, cell.why), []).append(column.partition(" (")[0])
    families: dict[tuple[str, str], list[str]] = {}
    for (name, why), columns in missing.items():
        said = " and ".join(columns) if len(columns) < 3 else f"{columns[0]}, ..., {columns[-1]}"
        families.setdefault((said, why), []).append(name)
    return [f"{', '.join(names)}: no {said}: {why}." for (said, why), names in families.items()]
