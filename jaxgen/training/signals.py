"""Signals that ask a run to stop."""

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")
_LOOK_SECONDS = 0.1  # between looks at the signals


class StoppedError(Exception):
    """A signal came while work was under way that can be done again."""


class StopSignals(contextlib.AbstractContextManager):
    """SIGTERM and SIGINT ask the loop to save and return; a second SIGINT interrupts at once.

    Attributes:
        code: Exit code that tells of the signal, 128 and its number; 0 where none came.
        left_behind: Whether a thread is still at work that was not waited for.
    """

    def __enter__(self) -> "StopSignals":
        self.code, self.left_behind = 0, False
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        # With several processes jax.distributed handles SIGTERM, and all stop at one step.
        self._single = jax.process_count() == 1
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._single:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        else:  # beside its handler, which is not Python's: what it writes says that the signal came
            self._pipe = os.pipe()
            faulthandler.register(signal.SIGTERM, self._pipe[1], all_threads=False, chain=True)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            faulthandler.unregister(signal.SIGTERM)
            for end in self._pipe:
                os.close(end)

    def _receive(self, number: int, frame: Any) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = 128 + number

    def requested(self, step: int) -> bool:
        """Whether to stop before the step after `step`; the same in all processes."""
        if not self._single and multihost_utils.reached_preemption_sync_point(step):
            self.code = 128 + signal.SIGTERM
        return bool(self.code)

    def unless_stopped(
        self, work: Callable[[], T], *, patience: float, late: Callable[[], None]
    ) -> T:
        """Does work that can be done again, but leaves it where it is when a signal comes.

        It runs in a thread of its own, since no handler is called while the main thread waits for a
        device.

        Args:
            work: Function of no arguments.
            patience: Seconds after which `late` is called, once.
            late: Function of no arguments.

        Returns:
            What the work returns; what it raises is raised.

        Raises:
            StoppedError: If a signal came first.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # raised again where it is waited for
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        patient_until = time.monotonic() + patience
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            if self._came() and thread.is_alive():
                self.left_behind = True
                raise StoppedError
            if time.monotonic() > patient_until:
                patient_until = float("inf")
                late()
        if errors:
            raise errors[0]
        return results[0]

    def _came(self) -> bool:
        """Whether a signal came to this process."""
        if self._pipe is not None and select.select([self._pipe[0]], [], [], 0)[0]:
            self.code = 128 + signal.SIGTERM
        return bool(self.code)
