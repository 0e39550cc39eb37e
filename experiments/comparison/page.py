"""The comparison as one HTML page that needs nothing else: no network, no scripts, no files."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxgen.training.images import grid

from . import charts
from .measure import STRIPS
from .table import Table, reasons, tables, title

Pictures = Mapping[str, np.ndarray]

STYLE = """
:root { color-scheme: light dark; --fg: #1c1f23; --muted: #5b6470; --bg: #fff; --line: #d5dae0;
  --soft: #f4f6f8; --a: #0b63b5; --b: #b5480b; --c: #1a7f4b; --d: #7a3fa8; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e7eb; --muted: #9aa4b0; --bg: #14171a;
  --line: #343b43; --soft: #1d2125; --a: #6cb2f5; --b: #f2a067; --c: #6fcf97; --d: #c79bf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; color: var(--fg);
  background: var(--bg); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p, ul { margin: .5rem 0; max-width: 48rem; }
.notes { color: var(--muted); font-size: .85rem; padding-left: 1.1rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid var(--a); }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; min-width: 6rem; background: var(--soft); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--bg);
  min-width: 7.5rem; max-width: 11rem; }
thead th:first-child { background: var(--soft); }
.words { text-align: left; white-space: nowrap; }
tr.real > * { color: var(--muted); font-style: italic; }
.cards { display: grid; gap: 1.25rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 24rem; height: auto;
  image-rendering: pixelated; border: 1px solid var(--line); background: #fff; }
figcaption { font-size: .85rem; color: var(--muted); margin-top: .3rem; }
figcaption b { color: var(--fg); }
svg { display: block; width: 100%; height: auto; max-width: 34rem; }
svg text { fill: var(--muted); font: 11px system-ui, sans-serif; }
svg text.name { fill: var(--fg); }
svg .axis { stroke: var(--line); fill: none; }
svg .line { fill: none; stroke-width: 1.5; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
summary { padding: .5rem .75rem; cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(7rem, 14rem) 1fr; gap: .25rem 1rem;
  margin: 0; padding: .25rem .75rem .75rem; font-size: .85rem; }
dt { color: var(--muted); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere; }
"""


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
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{HEADING}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{HEADING}</h1>",
        f"<p>{_text(_summary(real[0], results, about))}</p></header><main>",
        _section("Samples side by side", _samples(real, runs)),
        *(_section(table.title, _table(table) + _chart(table, results)) for table in all_tables),
        _section("Reconstruction and interpolation", _strips(runs)),
        _section("The nearest training images", _neighbours(runs)),
        _section("Training curves", _curves(results)),
        _section("Protocol", _protocols(real[0], results, about)),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _summary(real: Mapping[str, Any], results: Sequence[Any], about: Mapping[str, Any]) -> str:
    height, width, channels = real["shape"]
    return (
        f"{len(results)} models of {real['data']['train']}: {real['counts']['train']} images of "
        f"{height}x{width}x{channels}. "
        f"Budget of each: {about['budget']}. Small models and short runs: the numbers rank these "
        "runs, not the families at their best. A dash means that a family has no such number; "
        "why stands below each table."
    )


def _section(name: str, body: str) -> str:
    slug = name.lower().replace(" ", "-")
    return f'<section aria-labelledby="{slug}"><h2 id="{slug}">{_text(name)}</h2>{body}</section>'


def _table(table: Table) -> str:
    kinds = [_kind([row[i].text for row in table.rows.values()]) for i in range(len(table.columns))]
    head = '<th scope="col">family</th>' + "".join(
        f'<th scope="col"{kind}>{_text(column)}</th>'
        for kind, column in zip(kinds, table.columns, strict=True)
    )
    rows = []
    for name, cells in table.rows.items():
        marked = ' class="real"' if name.startswith("Real: ") else ""
        body = "".join(
            f"<td{kind}>{_text(cell.text)}</td>" for kind, cell in zip(kinds, cells, strict=True)
        )
        rows.append(f'<tr{marked}><th scope="row">{_text(name)}</th>{body}</tr>')
    notes = "".join(f"<li>{_text(note)}</li>" for note in (*table.notes, *reasons(table)))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}, table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<ul class="notes">{notes}</ul>'
    )


def _kind(column: Sequence[str]) -> str:
    """Words are set from the left, numbers from the right."""
    return ' class="words"' if any(text[:1].isalpha() for text in column) else ""


def _chart(table: Table, results: Sequence[Mapping[str, Any]]) -> str:
    """Quality against speed, below the table of sampling."""
    shown = [one for one in results if "sampling" in one]
    if table.title != "Sampling and inversion" or len(shown) < 2:
        return ""
    points = {
        title(one): (1e3 * one["sampling"]["one"], one["quality"]["FD-classifier"]) for one in shown
    }
    return _figure(
        charts.scatter(points, "ms for one image (log)", "FD-classifier (log)"),
        "Quality against time: left and low is good.",
    )


def _samples(real: tuple[Any, Pictures], runs: Sequence[tuple[Any, Pictures]]) -> str:
    cards = [_picture(real[1]["samples"], "Real: held-out images", "not used in training")]
    for one, pictures in runs:
        if "samples" in pictures:
            given = one["condition"]
            words = "unconditional" if given == "nothing" else f"conditional on the {given}"
            cards.append(_picture(pictures["samples"], title(one), words))
    absent = [
        f"{title(one)} ({one['why']['samples']})"
        for one, pictures in runs
        if "samples" not in pictures
    ]
    note = f"<p>No samples: {_text(', '.join(absent))}.</p>" if absent else ""
    return f'<div class="cards">{"".join(cards)}</div>{note}'


def _strips(runs: Sequence[tuple[Any, Pictures]]) -> str:
    cards = [
        _picture(pictures[name], title(one), words)
        for one, pictures in runs
        for name, words in STRIPS.items()
        if name in pictures
    ]
    absent = [title(one) for one, pictures in runs if not set(STRIPS) & set(pictures)]
    note = f"<p>Without latents to rebuild from or to mix: {_text(', '.join(absent))}.</p>"
    return f'<div class="cards wide">{"".join(cards)}</div>{note if absent else ""}'


def _neighbours(runs: Sequence[tuple[Any, Pictures]]) -> str:
    cards = [
        _picture(pictures["neighbours"], title(one), "samples, each left of its neighbour")
        for one, pictures in runs
        if "neighbours" in pictures
    ]
    return (
        "<p>Pairs: a sample, and the training image that is nearest in pixels. A model that "
        f'memorizes shows the same image twice.</p><div class="cards">{"".join(cards)}</div>'
    )


def _curves(results: Sequence[Mapping[str, Any]]) -> str:
    cards = [
        _figure(
            charts.lines(one["training"]["curves"], f"Training loss of {title(one)} by step"),
            "training objective by step; scales differ from family to family",
            title(one),
        )
        for one in results
        if one["training"]["curves"]
    ]
    return f'<div class="cards wide">{"".join(cards)}</div>'


def _picture(images: np.ndarray, name: str, caption: str) -> str:
    file = io.BytesIO()
    Image.fromarray(grid(images, 8, padding=1)).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    alt = f"{len(images)} images in rows of 8. {name}: {caption}"
    image = f'<img alt="{_text(alt)}" src="data:image/png;base64,{data}">'
    return _figure(image, caption, name)


def _figure(body: str, caption: str, name: str = "") -> str:
    strong = f"<b>{_text(name)}</b>: " if name else ""
    return f"<figure>{body}<figcaption>{strong}{_text(caption)}</figcaption></figure>"


def _protocols(
    real: Mapping[str, Any], results: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> str:
    common = {
        **about,
        "training images": real["data"]["train"],
        "held-out images": real["data"]["held_out"],
        **{f"extractor: {name}": value for name, value in real["extractor"].items()},
    }
    parts = [f"<details open><summary>All families</summary>{_list(common)}</details>"]
    for one in results:
        entries: dict[str, Any] = {
            "command": one["command"],
            "parameters used": "average" if one["average"] else "last",
            "step": one["step"],
            "condition": one["condition"],
            **{f"parameters of the {name}": n for name, n in one["parameters"].items()},
            **one["protocol"],
        }
        if "sampling" in one:
            entries["sampling"] = one["sampling"]["note"]
            entries["warnings"] = "; ".join(one["quality"]["warnings"]) or "none"
        parts.append(f"<details><summary>{_text(title(one))}</summary>{_list(entries)}</details>")
    return "".join(parts)


def _list(entries: Mapping[str, Any]) -> str:
    items = []
    for name, value in entries.items():
        words = value if isinstance(value, str) else json.dumps(value)
        shown = f"<code>{_text(words)}</code>" if name == "command" else _text(words)
        items.append(f"<dt>{_text(name)}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def _text(value: Any) -> str:
    return html.escape(str(value))
