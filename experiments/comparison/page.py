"""The comparison as one HTML page that needs nothing else: no network, no scripts, no files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..pages import charts, parts
from ..pages.tables import Table
from .measure import STRIPS
from .table import tables, title

Pictures = Mapping[str, np.ndarray]

HEADING = "Generative families, compared"


def page(
    real: tuple[Mapping[str, Any], Pictures],
    runs: Sequence[tuple[Mapping[str, Any], Pictures]],
    about: Mapping[str, Any],
) -> str:
    """The whole page.

    Args:
        real: Numbers and pictures of the real images, as `measure_real` returns them.
        runs: Numbers and pictures of each run, as `measure` returns them.
        about: What else to say, name -> text: budget, machine, versions.
    """
    results = [one for one, _ in runs]
    all_tables = tables(real[0], results)
    sections = [
        parts.section("Samples side by side", _samples(real, runs)),
        *(parts.section(t.title, parts.table(t) + _chart(t, results)) for t in all_tables),
        parts.section("Reconstruction and interpolation", _strips(runs)),
        parts.section("The nearest training images", _neighbours(runs)),
        parts.section("Training curves", _curves(results)),
        parts.section("Protocol", _protocols(real[0], results, about)),
    ]
    return parts.document(HEADING, _summary(real[0], results, about), sections)


def _summary(real: Mapping[str, Any], results: Sequence[Any], about: Mapping[str, Any]) -> str:
    height, width, channels = real["shape"]
    return (
        f"{len(results)} models of {real['data']['train']}: {real['counts']['train']} images of "
        f"{height}x{width}x{channels}. "
        f"Budget of each: {about['budget']}. Small models and short runs: the numbers rank these "
        "runs, not the families at their best. A dash means that a family has no such number; "
        "why stands below each table."
    )


def _chart(table: Table, results: Sequence[Mapping[str, Any]]) -> str:
    """Quality against speed, below the table of sampling."""
    shown = [one for one in results if "sampling" in one]
    if table.title != "Sampling and inversion" or len(shown) < 2:
        return ""
    points = {
        title(one): (1e3 * one["sampling"]["one"], one["quality"]["FD-classifier"]) for one in shown
    }
    return parts.figure(
        charts.scatter(points, "ms for one image (log)", "FD-classifier (log)"),
        "Quality against time: left and low is good.",
    )


def _samples(real: tuple[Any, Pictures], runs: Sequence[tuple[Any, Pictures]]) -> str:
    figures = [parts.pictures(real[1]["samples"], "Real: held-out images", "not used in training")]
    for one, pictures in runs:
        if "samples" in pictures:
            given = one["condition"]
            words = "unconditional" if given == "nothing" else f"conditional on the {given}"
            figures.append(parts.pictures(pictures["samples"], title(one), words))
    absent = [
        f"{title(one)} ({one['why']['samples']})"
        for one, pictures in runs
        if "samples" not in pictures
    ]
    note = f"<p>No samples: {parts.text(', '.join(absent))}.</p>" if absent else ""
    return parts.cards(figures) + note


def _strips(runs: Sequence[tuple[Any, Pictures]]) -> str:
    figures = [
        parts.pictures(pictures[name], title(one), words)
        for one, pictures in runs
        for name, words in STRIPS.items()
        if name in pictures
    ]
    absent = [title(one) for one, pictures in runs if not set(STRIPS) & set(pictures)]
    note = f"<p>Without latents to rebuild from or to mix: {parts.text(', '.join(absent))}.</p>"
    return parts.cards(figures, size="wide") + (note if absent else "")


def _neighbours(runs: Sequence[tuple[Any, Pictures]]) -> str:
    figures = [
        parts.pictures(pictures["neighbours"], title(one), "samples, each left of its neighbour")
        for one, pictures in runs
        if "neighbours" in pictures
    ]
    return (
        "<p>Pairs: a sample, and the training image that is nearest in pixels. A model that "
        f"memorizes shows the same image twice.</p>{parts.cards(figures)}"
    )


def _curves(results: Sequence[Mapping[str, Any]]) -> str:
    figures = [
        parts.figure(
            charts.lines(one["training"]["curves"], f"Training loss of {title(one)} by step"),
            "training objective by step; scales differ from family to family",
            title(one),
        )
        for one in results
        if one["training"]["curves"]
    ]
    return parts.cards(figures, size="wide")


def _protocols(
    real: Mapping[str, Any], results: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> str:
    common = {
        **about,
        "training images": real["data"]["train"],
        "held-out images": real["data"]["held_out"],
        **{f"extractor: {name}": value for name, value in real["extractor"].items()},
    }
    bodies = [parts.details("All families", parts.entries(common), is_open=True)]
    for one in results:
        values: dict[str, Any] = {
            "command": one["command"],
            "parameters used": "average" if one["average"] else "last",
            "step": one["step"],
            "condition": one["condition"],
            **{f"parameters of the {name}": n for name, n in one["parameters"].items()},
            **one["protocol"],
        }
        if "sampling" in one:
            values["sampling"] = one["sampling"]["note"]
            values["warnings"] = "; ".join(one["quality"]["warnings"]) or "none"
        bodies.append(parts.details(title(one), parts.entries(values)))
    return "".join(bodies)
