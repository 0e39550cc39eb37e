"""The progress of training on the console: a live line on a terminal, otherwise a line at times."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

_PLAIN_SECONDS = 10.0  # between progress lines where the output is not a terminal
_WIDEST_BAR, _LEAST_TEXT = 20, 80  # columns; a bar is drawn where there is room beside the text


class Progress:
    """The progress of training: a live line on a terminal, otherwise a line at intervals.

    A line has the time left first and is as wide as the console at most: what does not fit, the
    rates first, is left out.

    Args:
        num_steps: Number of steps in the whole run.
        unit: Name of an example, in the plural.
        console: Console to print on; standard output by default.
        plain_seconds: Least time in seconds between lines where the output is not a terminal.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        unit: str = "examples",
        console: Console | None = None,
        plain_seconds: float = _PLAIN_SECONDS,
    ):
        self.num_steps = num_steps
        self.unit = unit
        # FORCE_COLOR, which notebooks set, would make a terminal of a file or a pipe.
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        self._plain_seconds = plain_seconds
        self._printed = -math.inf
        self._bar: RichProgress | None = None
        self._room = 0  # columns that the bar takes, with the space after it
        if self._console.is_terminal:
            width = min(_WIDEST_BAR, self._console.width - 1 - _LEAST_TEXT)
            text = TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            )
            columns = (BarColumn(bar_width=width), text) if width > 0 else (text,)
            self._room = width + 1 if width > 0 else 0
            self._bar = RichProgress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=num_steps)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(
        self,
        step: int,
        metrics: Mapping[str, float],
        steps_per_second: float,
        examples_per_second: float,
    ) -> None:
        """Shows the time left, the steps done, the losses and the rates (0 where unknown)."""
        parts = _parts(
            step, self.num_steps, metrics, steps_per_second, examples_per_second, self.unit
        )
        # A console is as wide as its window is now.
        line = _fitting(parts, self._console.width - self._room)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=line)
        elif step == self.num_steps or time.monotonic() - self._printed >= self._plain_seconds:
            self._printed = time.monotonic()
            self.note(line)

    def busy(self, doing: str, *, plainly: bool = True) -> None:
        """Says what takes time beside the steps.

        Args:
            doing: What is done, such as "compiling the training step".
            plainly: Whether to say it where the output is not a terminal, as a line that stays.
        """
        if self._bar is not None:
            self._bar.update(self._task, description=doing)
        elif plainly:
            self.note(doing)

    def note(self, message: str) -> None:
        """Prints a message that stays, above the live line."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


def _parts(
    step: int,
    num_steps: int,
    metrics: Mapping[str, float],
    steps_rate: float,
    rate: float,
    unit: str,
) -> list[str]:
    """What a line says, the most important first."""
    parts = []
    if steps_rate > 0:
        parts.append(f"{timedelta(seconds=round((num_steps - step) / steps_rate))} left")
    parts.append(f"step {step:,}/{num_steps:,}")
    losses = [name for name in metrics if name.endswith("loss")] or list(metrics)[:1]
    parts += [f"{name} {metrics[name]:.4g}" for name in losses]
    if steps_rate > 0:
        parts += [f"{steps_rate:,.4g} steps/s", f"{rate:,.4g} {unit}/s"]
    return parts


def _fitting(parts: list[str], width: int) -> str:
    """As many of the parts as fit, at least one, joined by commas."""
    line, *rest = parts
    for part in rest:
        if len(line) + 2 + len(part) > width:
            break
        line += f", {part}"
    return line
