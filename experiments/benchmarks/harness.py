"""Interleaved timing: every benchmark of this package reports medians from here.

The candidates take turns, round after round, so that a change in the machine's load falls on all
of them alike; the median of the rounds is reported, and the machine is named beside it. A turn
lasts a tenth of a second at least, and its last call counts: the threads of the library before it
spin for a while when their work is done (OpenMP's, so PyTorch's), and take the cores from the next.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxgen.training.compilation import compiler_options

_TURN = 0.1  # seconds


def interleaved(
    fns: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 2
) -> dict[str, float]:
    """Time each function in turn, `repeats` rounds over.

    A quick function is called until its turn has lasted a tenth of a second; the last call counts.

    Args:
        fns: Name -> function of no arguments. What it returns is waited for
            (`jax.block_until_ready`), so JAX's asynchronous dispatch is not mistaken for speed.
        repeats: Number of timed rounds, at least 1.
        warmup: Number of untimed rounds before them; the first compiles.

    Returns:
        Name -> median seconds a call.

    Raises:
        ValueError: if `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for round_ in range(warmup + repeats):
        for name, fn in fns.items():
            end = begin = time.perf_counter()
            while end - begin < _TURN:
                start = end
                jax.block_until_ready(fn())
                end = time.perf_counter()
            if round_ >= warmup:
                seconds[name].append(end - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def first_call(fn: Callable[[], object]) -> float:
    """Seconds of a function's first call: what it compiles, and one run of it.

    Args:
        fn: Function of no arguments, whose result is waited for.
    """
    begin = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - begin


def jit(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` as the package compiles what it runs, for its first device.

    Args:
        fn: Function to compile.
        **options: What else `jax.jit` takes.
    """
    return jax.jit(fn, compiler_options=compiler_options(jax.devices()[0]), **options)


def timed(fn: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call, after a first one that may compile.

    Args:
        fn: Function of no arguments, whose result is waited for.
        repeats: Number of timed calls.
    """
    return interleaved({"": fn}, repeats, warmup=1)[""]


def machine() -> str:
    """One line that names the processor, its cores, the JAX version and its devices."""
    cpuinfo = Path("/proc/cpuinfo")
    processor, cores = platform.processor() or platform.machine(), 0
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor, cores = (models[0], len(models)) if models else (processor, 0)
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return f"{processor}, {cores or '?'} cores; jax {jax.__version__} on {devices}"


def print_table(
    rows: Mapping[str, Mapping[str, float]], baseline: str, columns: Sequence[str] | None = None
) -> None:
    """Print medians in milliseconds, each with its speed relative to the baseline's.

    Args:
        rows: Row label -> (column -> seconds), as `interleaved` returns them.
        baseline: Column that the others are compared with: a ratio of 2.00 is twice as fast.
        columns: Order of the columns; by default that of the first row.
    """
    columns = list(columns or next(iter(rows.values())))
    title = f"ms (times as fast as {baseline})"
    label_width = max(len(label) for label in (title, *rows))
    widths = [max(len(column), 16) for column in columns]
    heads = [f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)]
    print("  ".join([f"{title:{label_width}}", *heads]))
    for label, times in rows.items():
        cells = []
        for column, width in zip(columns, widths, strict=True):
            seconds, base = times.get(column), times.get(baseline)
            ratio = f" ({base / seconds:5.2f})" if seconds and base else ""
            cells.append(f"{f'{1e3 * seconds:.2f}{ratio}' if seconds else '-':>{width}}")
        print("  ".join([f"{label:{label_width}}", *cells]))
