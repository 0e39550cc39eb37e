"""A process that does one piece of work after another, each within its time."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class PieceError(RuntimeError):
    """A piece of work that raised, died or took too long."""


class Worker:
    """Calls functions in a process of their own, which is replaced when one dies or hangs.

    So a piece that runs out of memory, or out of time, costs no other piece anything; and the
    pieces that go well share one start of JAX.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., Any], seconds: float, **arguments: Any) -> Any:
        """`function(**arguments)`, called in the process.

        Args:
            function: Function of a module, whose result can be pickled.
            seconds: Greatest time that it may take.
            arguments: Its arguments.

        Raises:
            PieceError: If it raised (with its traceback), died, or took longer.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send((function, arguments))
        if not self._pipe.poll(seconds):
            self.stop()
            raise PieceError(f"took longer than its {seconds:.0f} s")
        try:
            done, result = self._pipe.recv()
        except EOFError:
            code = self._exit_code()
            raise PieceError(f"its process died with exit code {code}") from None
        if not done:
            raise PieceError(result)
        return result

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._exit_code()

    def _exit_code(self) -> int | None:
        self._process.join()
        code = self._process.exitcode
        self._process, self._pipe = None, None
        return code

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(**arguments))
        except Exception as error:
            answer = (False, f"{_line(error)}\n{traceback.format_exc(limit=-6)}")
        pipe.send(answer)


def _line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:300]
    return f"{type(error).__name__}: {text}"
