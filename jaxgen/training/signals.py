"""Signals that ask a run to stop."""

import contextlib
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals(contextlib.AbstractContextManager):
    """SIGTERM and SIGINT ask the loop to save and return; a second SIGINT interrupts at once."""

    def __enter__(self) -> "StopSignals":
        self.received = False
        # With several processes jax.distributed handles SIGTERM, and all stop at one step.
        self.single = jax.process_count() == 1
        self.previous: dict[int, Any] = {}
        if self.single and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def requested(self, step: int) -> bool:
        """Whether to stop before the step after `step`."""
        if self.single:
            return self.received
        return multihost_utils.reached_preemption_sync_point(step)
