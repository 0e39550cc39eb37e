"""What the steps of a run add up to, on the host: the means of its rows, and what was skipped."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.training.strategies import Report


class Added(NamedTuple):
    """What a dispatch added to a tally.

    Attributes:
        skipped: Number of steps that were skipped.
        first_bad: Step and index in `guarded_names` of the first of them, or None.
        worst_streak: Number of steps in the longest row of skipped ones that reached into it.
    """

    skipped: int
    first_bad: tuple[int, int] | None
    worst_streak: int


class Tally:
    """Sums of metrics since the last row, and the steps that were skipped since the first.

    The steps are added one after another, in float64: a tally is a function of them alone, to the
    last bit, however they were dispatched and wherever the run was stopped.

    Attributes:
        totals: Name -> [total, weight] since the last row.
        skipped: Number of steps that were skipped.
        streak: Number of steps skipped in a row up to now.
    """

    def __init__(self) -> None:
        self.totals: dict[str, list[float]] = {}
        self.skipped = 0
        self.streak = 0

    def add(self, report: Report, begin: int, num_steps: int) -> Added:
        """Adds the steps of a dispatch.

        Args:
            report: Its report, on the host.
            begin: Number of steps done before it.
            num_steps: Number of its steps.
        """
        for name, pair in report.metrics.items():
            before = self.totals.get(name, [0.0, 0.0])
            self.totals[name] = [
                _sum(start, np.asarray(values[:num_steps]))
                for start, values in zip(before, pair, strict=True)
            ]
        bad, worst = np.asarray(report.bad[:num_steps]), 0
        for is_bad in bad >= 0:
            self.streak = self.streak + 1 if is_bad else 0
            worst = max(worst, self.streak)
        (where,) = np.nonzero(bad >= 0)
        self.skipped += len(where)
        first = (begin + int(where[0]), int(bad[where[0]])) if len(where) else None
        return Added(len(where), first, worst)

    def means(self) -> dict[str, float]:
        """Name -> mean since the last row, of what has a weight."""
        return {name: total / weight for name, (total, weight) in self.totals.items() if weight}

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which keeps every bit."""
        return {"totals": self.totals, "skipped": self.skipped, "streak": self.streak}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Tally":
        """The inverse of `to_json`; of nothing, a new tally.

        Args:
            stored: Such an object, or an empty one.
        """
        tally = cls()
        tally.totals = {name: list(map(float, v)) for name, v in stored.get("totals", {}).items()}
        tally.skipped, tally.streak = (int(stored.get(n, 0)) for n in ("skipped", "streak"))
        return tally


def _sum(start: float, values: np.ndarray) -> float:
    """`start` and the values, added from left to right in float64."""
    return float(np.add.accumulate(np.append(start, values.astype(np.float64)))[-1])
