"""Parts of an HTML page that needs nothing else: no network, no scripts, no other file."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from jaxgen.training.images import grid

from .tables import NONE, Table, reasons

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
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 9rem), 1fr)); }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 24rem; height: auto;
  image-rendering: pixelated; border: 1px solid var(--line); background: #fff; }
audio { display: block; width: 100%; max-width: 24rem; margin: .5rem 0; }
figure img.smooth { image-rendering: auto; }
.full figure img { width: auto; max-width: 100%; }
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


def document(heading: str, summary: str, sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        heading: Its title.
        summary: What it is of, a paragraph.
        sections: Its sections, as `section` makes them.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(heading)}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{text(heading)}</h1>",
        f"<p>{text(summary)}</p></header><main>",
        *sections,
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def section(name: str, body: str) -> str:
    """A part of the page with a heading; nothing where there is nothing to show."""
    if not body:
        return ""
    slug = name.lower().replace(" ", "-")
    return f'<section aria-labelledby="{slug}"><h2 id="{slug}">{text(name)}</h2>{body}</section>'


def table(shown: Table) -> str:
    """A table with its notes, which scrolls where it is wider than the page."""
    kinds = [_kind([row[i].text for row in shown.rows.values()]) for i in range(len(shown.columns))]
    head = f'<th scope="col">{text(shown.of)}</th>' + "".join(
        f'<th scope="col"{kind}>{text(column)}</th>'
        for kind, column in zip(kinds, shown.columns, strict=True)
    )
    rows = []
    for name, cells in shown.rows.items():
        marked = ' class="real"' if name.startswith("Real: ") else ""
        body = "".join(
            f"<td{kind}>{text(cell.text)}</td>" for kind, cell in zip(kinds, cells, strict=True)
        )
        rows.append(f'<tr{marked}><th scope="row">{text(name)}</th>{body}</tr>')
    notes = "".join(f"<li>{text(note)}</li>" for note in (*shown.notes, *reasons(shown)))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(shown.title)}, table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _kind(column: Sequence[str]) -> str:
    """Words are set from the left, numbers from the right."""
    return "" if all(map(_is_number, column)) else ' class="words"'


def _is_number(cell: str) -> bool:
    try:
        float("0" if cell in ("", NONE) else cell)
    except ValueError:
        return False
    return True


def cards(figures: Sequence[str], *, size: Literal["small", "", "wide"] = "") -> str:
    """Figures side by side, as many in a row as fit; nothing where there are none."""
    if not figures:
        return ""
    return f'<div class="cards {size}">{"".join(figures)}</div>'


def full(shown: str) -> str:
    """A figure at its own size where the page has the room."""
    return f'<div class="full">{shown}</div>'


def figure(body: str, caption: str, name: str = "") -> str:
    """Something with a caption below, which begins with a name in bold."""
    strong = f"<b>{text(name)}</b>" if name else ""
    words = ": ".join(filter(None, (strong, text(caption))))
    return f"<figure>{body}<figcaption>{words}</figcaption></figure>"


def pictures(images: np.ndarray, name: str, caption: str) -> str:
    """A grid of images, uint8 [N, H, W, C], in rows of 8, as a figure."""
    file = io.BytesIO()
    Image.fromarray(grid(images, 8, padding=1)).save(file, format="PNG", optimize=True)
    alt = f"{len(images)} images in rows of 8. {name}: {caption}"
    return figure(_image(file.getvalue(), alt), caption, name)


def picture_file(path: Path, name: str, caption: str, *, most: int | None = None) -> str:
    """A PNG file as a figure.

    Args:
        path: Path of the file.
        name: What it is called.
        caption: What it shows.
        most: Pixels a side to which a larger one is reduced; None for as it is.
    """
    content = path.read_bytes()
    if most is not None:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > most:
                small, file = image.convert("RGB"), io.BytesIO()
                small.thumbnail((most, most), Image.Resampling.BOX)
                small.save(file, format="PNG", optimize=True)
                content = file.getvalue()
    return figure(_image(content, f"{name}: {caption}", smooth=True), caption, name)


def sound_file(path: Path) -> str:
    """A WAV file that can be played on the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


def _image(content: bytes, alt: str, *, smooth: bool = False) -> str:
    data, kind = base64.b64encode(content).decode(), ' class="smooth"' if smooth else ""
    return f'<img{kind} alt="{text(alt)}" src="data:image/png;base64,{data}">'


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """A part that opens at a click."""
    return (
        f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>{body}</details>"
    )


def entries(values: Mapping[str, Any], *, code: Sequence[str] = ("command",)) -> str:
    """Names and their values, what is no text as JSON.

    Args:
        values: Name -> value.
        code: Names whose values are set as code.
    """
    items = []
    for name, value in values.items():
        words = value if isinstance(value, str) else json.dumps(value)
        shown = f"<code>{text(words)}</code>" if name in code else text(words)
        items.append(f"<dt>{text(name)}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def text(value: Any) -> str:
    """A value as text that HTML shows as it is."""
    return html.escape(str(value))
