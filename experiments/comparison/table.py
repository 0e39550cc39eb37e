"""The comparison's numbers as tables: one definition for the page, the CSV and the Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..pages.tables import NONE, Cell, Table, number


def title(run: Mapping[str, Any]) -> str:
    """What a run is called on the page: its kind, and its own name where that is another."""
    name, kind = run["name"], run["kind"]
    if name.lower() == kind.lower():
        return kind
    return f"{name} ({kind})" if kind else name


def tables(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """All tables of the comparison, from what `measure` returned."""
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
    for run in runs:
        cells = _quality_cells(run.get("quality"), run["why"], run["condition"])
        rows[title(run)] = cells
    count, train = real["held_out"]["count"], real["counts"]["train"]
    part = real["train_part"]
    warnings = sorted({w for one in (real["held_out"], part) for w in one["warnings"]})
    return Table(
        "Quality of the samples",
        (
            "condition",
            "FD-classifier (lower is better)",
            "precision",
            "recall",
            "density",
            "coverage",
            "distance to the training images",
            "copies",
            "images",
        ),
        (
            "condition",
            "fd_classifier",
            "precision",
            "recall",
            "density",
            "coverage",
            "nearest",
            "copies",
            "num_images",
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


def _quality_cells(
    quality: Mapping[str, Any] | None, why: Mapping[str, str], condition: str
) -> list[Cell]:
    if quality is None:
        return [Cell(condition)] + [Cell(NONE, why["samples"])] * 8
    names = ("FD-classifier", "precision", "recall", "density", "coverage", "nearest")
    numbers = [number(quality[name]) for name in names]
    return [Cell(condition), *numbers, Cell(str(quality["copies"])), Cell(str(quality["count"]))]


def _likelihood(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {}
    for run in runs:
        p, why = run["likelihood"], run["why"]
        if p is None:
            cells = [Cell(NONE, why["likelihood"])] * 7
        else:
            given = f", given the {p['given']}" if p["given"] else ""
            cells = [
                number(p["bits_per_dim"], why.get("bits_per_dim", "")),
                number(p["nats"]),
                number(p["standard_error"]),
                Cell(p["bound"] + given),
                Cell(p["dequantization"]),
                number(p["given_label"], why.get("given_label", "")),
                Cell(str(p["num_examples"])),
            ]
        rows[title(run)] = cells
    levels: tuple[str, ...] = (
        "The embedded digits have 17 grey levels of the 256: a softmax over values learns that, a "
        "flow with --model.values 17 is told, and gain bits that a logistic cannot.",
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
        (
            "bits_per_dim",
            "nats",
            "standard_error",
            "bound",
            "dequantization",
            "nats_given_label",
            "num_evaluated",
        ),
        rows,
        (
            "Negative log-likelihood of the 8-bit pixels, of the same held-out images for all. "
            "What is not exact is a bound from above (the ELBO, the variational bound over noise "
            "levels), and so is even an exact density of dequantized pixels, by one draw of the "
            "noise: such a family may be better than it looks.",
            "What is conditional on the label is not comparable with what is not: of a family that "
            "is conditional on the label the first columns are log p(x) = log of the mean over the "
            "classes y of p(x | y), the unconditional likelihood with equal priors.",
            *levels,
        ),
    )


def _classification(real: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Table:
    names = ("accuracy", "nll", "ece", "num")
    rows = {"Plain classifier": [number(real["classifier"][name]) for name in names]}
    for run in runs:
        c, reason = run["classifier"], run["why"].get("classifier", "")
        rows[title(run)] = [number(c and c[name], reason) for name in names]
    return Table(
        "As a classifier of held-out images",
        ("accuracy", "nats of the right label", "calibration error", "images"),
        ("accuracy", "label_nats", "calibration_error", "num_classified"),
        rows,
        (
            "p(y | x) by Bayes' rule with equal priors, from a family that is conditional "
            f"on the label; beside it the {real['extractor']['name']}, which learned p(y | x) "
            "itself.",
            "Calibration error: |accuracy - confidence| in 15 bins of the confidence, averaged "
            "over the images.",
        ),
    )


def _sampling(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {}
    for run in runs:
        s, r, why = run.get("sampling"), run["round_trip"], run["why"]
        if s is None:
            cells = [Cell(NONE, why["samples"])] * 5
        else:
            cells = [
                _order(s["passes"], why),
                number(s["passes"], why.get("passes", "")),
                number(1e3 * s["one"]),
                number(1e3 * s["batch"]),
                number(s["batch_size"] / s["batch"]),
            ]
        cells += [
            Cell(inverts(run)),
            number(r and r["max"], why.get("round_trip", "")),
            number(r and r["mse"], why.get("round_trip", "")),
        ]
        rows[title(run)] = cells
    batches = sorted({run["sampling"]["batch_size"] for run in runs if "sampling" in run})
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
        (
            "order",
            "passes",
            "ms_one",
            "ms_batch",
            "images_per_second",
            "inverts",
            "round_trip_max",
            "round_trip_mse",
        ),
        rows,
        (
            "Times are medians of 5 calls (of quick ones 50) after one that compiles, from key to "
            "bytes on the host; one image and a batch are timed in turn. A cached autoregressive "
            "pass computes one position only, so its passes are cheaper than others'.",
            "Round trip: |decode(encode(x)) - x| of held-out images, pixels in [-1, 1] "
            "(one grey level of 256 is 0.0078): the largest over all pixels of all images, and the "
            "mean of the squares. A family inverts where the largest is at most 1e-3, "
            "approximately where it is at most 0.05.",
        ),
    )


def _order(passes: int | None, why: Mapping[str, str]) -> Cell:
    """Whether all of a sample is computed at once."""
    if passes is None:
        return Cell(NONE, why.get("passes", ""))
    return Cell("parallel" if passes == 1 else "sequential")


def inverts(run: Mapping[str, Any]) -> str:
    """Whether decode undoes encode, as measured."""
    if run["round_trip"] is None:
        return "no"
    largest = run["round_trip"]["max"]
    if largest <= 1e-3:
        return "yes"
    return "approximately" if largest <= 0.05 else "no (reconstructs)"


def _cost(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = {}
    for run in runs:
        t = run["training"]
        unknown = "the run is too short to time"
        rows[title(run)] = [
            Cell(str(sum(run["parameters"].values()))),
            Cell(str(run["step"])),
            Cell(str(t["batch_size"])),
            number(t["seconds"], unknown),
            number(t["seconds"] and run["step"] / t["seconds"], unknown),
            number(t["examples_per_second"], unknown),
        ]
    return Table(
        "Training cost",
        ("parameters", "steps", "batch size", "seconds", "steps/s", "examples/s"),
        (
            "parameters",
            "steps",
            "batch_size",
            "seconds",
            "steps_per_second",
            "examples_per_second",
        ),
        rows,
        (
            "Seconds of training steps alone, from the run's own metrics.csv: compilation, "
            "checkpoints and evaluation are left out. A budget in seconds becomes steps by a short "
            "calibration, so the seconds differ from it as the machine's load does.",
            "Parameters are of all networks, a GAN's discriminator and an encoder included.",
        ),
    )
