"""The result of `evaluate` for people: each figure once, with its unit and what it is of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_LIKELIHOOD = ("loss", "standard_error")
_APART = ("experiment", "step", "likelihood", "protocol")


def print_summary(
    result: Mapping[str, Any], *, kept: str | None = None, console: Console | None = None
) -> None:
    """Prints a result as a short table.

    Args:
        result: Result of `evaluate`, as `--json` prints it.
        kept: Path of the file that keeps it, or None.
        console: Console to print on; standard output by default.
    """
    console = console or Console()
    protocol = result["protocol"]
    data = str(protocol.get("data", "held-out examples"))
    count = protocol.get("num_examples")
    of = data if count is None else f"{count:,} examples of {data}"
    table = Table.grid(padding=(0, 2))
    for row in summary_rows(result):
        table.add_row(*row)
    name = str(result["experiment"]).rpartition(".")[2]
    _say(console, f"{name}, step {result['step']:,}, {protocol['parameters']}; {of}\n")
    console.print(table, markup=False, highlight=False)
    devices = protocol["environment"]["devices"]
    where = "" if kept is None else f"; kept with its whole protocol in {kept}"
    _say(
        console,
        f"\nseed {protocol['seed']}, {protocol['precision']}, {devices['count']} x "
        f"{devices['kind']}{where}",
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def summary_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, number and unit or note of each figure: the likelihood, then the other metrics.

    A metric that is a figure of the likelihood once more is left out.

    Args:
        result: Result of `evaluate`, as `--json` prints it.
    """
    likelihood, protocol = result.get("likelihood"), result["protocol"]
    rows, shown = [], []
    if likelihood is not None:
        error, bits = likelihood["standard_error"], likelihood["bits_per_dim"]
        rows.append(("-log p(x)", _number(likelihood["nats"], error), _of(likelihood)))
        if bits is not None:
            rows.append(("", _number(bits), "bits per dimension"))
        shown = [likelihood["nats"], bits]
    for name, value in result.items():
        is_number = value is None or isinstance(value, int | float)
        if name in _APART or not is_number:
            continue
        if likelihood is not None and (name in _LIKELIHOOD or _is_among(value, shown)):
            continue
        note = protocol.get(name)
        rows.append((name, _number(value), note if isinstance(note, str) else ""))
    return rows


def _of(likelihood: Mapping[str, Any]) -> str:
    """The unit of a likelihood, and which bound of what it is."""
    bound, noise, given = (likelihood[n] for n in ("bound", "dequantization", "given"))
    parts = ["nats an example", "exact" if bound == "exact" else f"an upper bound ({bound})"]
    parts += [] if noise == "none" else [f"{noise} dequantization"]
    parts += [] if given is None else [f"given the {given}"]
    return ", ".join(parts)


def _is_among(value: Any, shown: Sequence[Any]) -> bool:
    """Whether a figure is there already, but for rounding."""
    return value is not None and any(
        other is not None and math.isclose(value, other, rel_tol=1e-6) for other in shown
    )


def _number(value: Any, error: Any = None) -> str:
    """A number with five digits, or with as many as its standard error tells."""
    if value is None:
        return "not finite"
    if not error:
        return f"{value:.5g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
