"""The pieces' results as tables in Markdown, ready for docs/results.md."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.files import open_atomically

Result = Mapping[str, Any]


def read_results(directory: Path) -> dict[str, Result]:
    """The results of all pieces in a directory, by name."""
    results = (json.loads(path.read_text()) for path in sorted(directory.glob("*.json")))
    return {result["piece"]: result for result in results if "piece" in result}


def write_report(directory: Path) -> Path:
    """Write `report.md` of the results in a directory.

    Args:
        directory: Directory of the pieces' JSON files.

    Returns:
        The path of the report.
    """
    path = directory / "report.md"
    with open_atomically(path) as file:
        file.write(report(read_results(directory)).encode())
    return path


def report(results: Mapping[str, Result]) -> str:
    """All results as Markdown."""
    good = {k: v for k, v in results.items() if "error" not in v and "skipped" not in v}
    parts = [_machine(good.get("probe"))]
    sections: Sequence[tuple[str, Callable[[Mapping[str, Result], Result | None], list[str]]]] = (
        ("Numbers beside the CPU's", _correctness),
        ("Training on one device", _training),
        ("Sampling", _sampling),
        ("Beside PyTorch", _peers),
        ("Several devices", _scaling),
        ("Reached in some minutes", _reached),
    )
    for title, section in sections:
        lines = section(good, good.get("probe"))
        if lines:
            parts.append("\n".join([f"### {title}", "", *lines]))
    without = [
        f"- `{name}`: {(result.get('error') or result['skipped']).splitlines()[0]}"
        for name, result in results.items()
        if name not in good
    ]
    if without:
        parts.append("\n".join(["### Without a result", "", *without]))
    return "\n\n".join(parts) + "\n"


def _machine(probe: Result | None) -> str:
    if probe is None:
        return "The machine was not asked (piece `probe`)."
    peaks = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in probe["peak_flops"].items())
    packages = probe["environment"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("jax", "jaxlib", "flax"))
    lines = [
        f"{probe['date']}; {probe['machine']}; {probe['driver'] or 'no NVIDIA driver'}; "
        f"{versions}; Python {probe['environment']['python']}.",
        f"Measured peaks: products of square matrices {peaks} TFLOP/s; memory "
        f"{probe['peak_bytes'] / 1e9:.3g} GB/s.",
    ]
    reduction = probe["sum_over_devices"]
    if reduction is not None:
        word = "right" if reduction["right"] else "WRONG"
        lines.append(
            f"Sum over devices: {word}, {1e3 * reduction['seconds']:.3g} ms for 64 MiB a device."
        )
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table; no lines without rows."""
    body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *body] if body else []


def _of(results: Mapping[str, Result], kind: str) -> list[Result]:
    return [result for name, result in results.items() if name.startswith(f"{kind}-")]


def _correctness(results: Mapping[str, Result], _: Result | None) -> list[str]:
    rows = []
    for name, result in results.items():
        if "differences" not in result:
            continue
        differences = {  # JSON has null for what is not finite
            name: float("inf") if value is None else value
            for name, value in result["differences"].items()
        }
        worst = max(differences, key=lambda k: differences[k])
        itself = ", the CPU beside itself" if result.get("backend") == "cpu" else ""
        verdict = "all within" if not result["failed"] else f"beyond: {', '.join(result['failed'])}"
        rows.append(
            [
                f"`{name}`",
                len(differences),
                f"{differences[worst]:.2g} ({worst})",
                f"{verdict} ({result['tolerance']:g}; samples 0.01){itself}",
            ]
        )
    return table(["piece", "compared", "largest relative difference", "verdict"], rows)


def _size(result: Result) -> str:
    return ", shrunk" if result["shrunk"] else ""


def _training(results: Mapping[str, Result], probe: Result | None) -> list[str]:
    rows = []
    for r in _of(results, "training"):
        achieved = r["flops_per_step"] / r["seconds_per_step"]
        peak = None if probe is None else probe["peak_flops"][r["precision"]]
        memory = r["memory"]
        rows.append(
            [
                f"`{r['recipe']}`{_size(r)}",
                r["precision"],
                f"{r['parameters'] / 1e6:.3g}M",
                r["batch_size"],
                f"{1 / r['seconds_per_step']:.3g}",
                f"{r['examples_per_second']:.4g}",
                f"{r['flops_per_step'] / 1e9:.3g}",
                "-" if peak is None else f"{achieved / peak:.1%}",
                "-" if memory is None else f"{memory['total'] / 2**20:.0f}",
                f"{r['trace_seconds']:.1f} + {r['compile_seconds']:.1f}",
            ]
        )
    head = [
        "recipe", "precision", "parameters", "batch", "steps/s", "examples/s", "GFLOP a step",
        "utilization", "memory, MiB", "trace + compile, s",
    ]  # fmt: skip
    return table(head, rows)


def _sampling(results: Mapping[str, Result], _: Result | None) -> list[str]:
    rows = [
        [
            f"`{r['recipe']}`{_size(r)}",
            r["precision"],
            r["samples"],
            f"{r['seconds']:.3g}",
            f"{r['samples_per_second']:.4g}",
            "-"
            if r["seconds_per_evaluation"] is None
            else f"{1e3 * r['seconds_per_evaluation']:.3g}",
            f"{r['first_call']:.1f}",
        ]
        for r in _of(results, "sampling")
    ]
    head = [
        "recipe", "precision", "samples", "seconds", "samples/s", "ms an evaluation",
        "first call, s",
    ]  # fmt: skip
    return table(head, rows)


def _peers(results: Mapping[str, Result], _: Result | None) -> list[str]:
    rows = []
    for r in _of(results, "torch"):
        for label, times in r["rows"].items():
            ours = {k: v for k, v in times.items() if k != "torch"}
            rows.append(
                [
                    label,
                    f"{1e3 * times['torch']:.4g}",
                    ", ".join(
                        f"{'' if k == 'jaxgen' else f'{k} '}{1e3 * v:.4g} "
                        f"({times['torch'] / v:.2f})"
                        for k, v in ours.items()
                    ),
                    r["setup"],
                ]
            )
    return table(["", "PyTorch, ms", "jaxgen, ms (times as fast)", "PyTorch"], rows)


def _scaling(results: Mapping[str, Result], _: Result | None) -> list[str]:
    rows = [
        [f"`{r['recipe']}`", row["devices"], f"{row['examples_per_second']:.4g}",
         f"{row['efficiency']:.0%}"]
        for r in _of(results, "scaling")
        for row in r["rows"]
    ]  # fmt: skip
    return table(["recipe", "devices", "examples/s", "of as many single ones"], rows)


def _reached(results: Mapping[str, Result], _: Result | None) -> list[str]:
    rows = []
    for r in _of(results, "train"):
        distance, floor = (_frechet(r.get(key)) for key in ("distance", "floor"))
        rows.append(
            [
                f"`{r['recipe'].removeprefix('experiments.')}`",
                f"{r['seconds'] / 60:.1f}",
                f"{r['steps']:,}",
                f"{r['examples_seen']:,}",
                f"{float(r['training']['loss']):.4g}" if r["training"] else "-",
                _held_out(r["held_out"]),
                f"{distance} ({floor}; {r['samples']} to {r['reference']})" if distance else "-",
                r["machine"],
            ]
        )
    head = [
        "recipe", "minutes", "steps", "examples seen", "training loss", "held out",
        "FD-lite0 (floor; samples to real)", "machine",
    ]  # fmt: skip
    return table(head, rows)


def _held_out(metrics: Mapping[str, float]) -> str:
    if "bits_per_dim" in metrics:
        return f"{metrics['bits_per_dim']:.4g} bits/dim"
    return f"loss {metrics['loss']:.4g}"


def _frechet(metrics: Mapping[str, float] | None) -> str | None:
    named = {k: v for k, v in (metrics or {}).items() if k.startswith("FD")}
    return f"{next(iter(named.values())):.4g}" if named else None
