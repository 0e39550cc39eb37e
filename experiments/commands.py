"""What the commands beside the recipes share: bad input is one line on stderr, and an exit code."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from jaxgen.training import loop
from jaxgen.training.checkpoint import CheckpointError
from jaxgen.training.cli import TRACEBACK
from jaxgen.training.writers import print_anywhere


def run_command(action: Callable[[], object]) -> int:
    """The exit code of an action: 0, 1 where it failed, 2 where its input is bad, 130 after Ctrl-C.

    Args:
        action: Function without arguments that does what the command is for.
    """
    print_anywhere()
    try:
        action()
        sys.stdout.flush()
    except (CheckpointError, loop.NonFiniteError, FloatingPointError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, TypeError, ValueError, ImportError) as error:
        return _fail(error, 2)
    return 0


def step_of(text: str) -> int | str:
    """The step of a checkpoint as commands are told it: a number, or best.

    Args:
        text: What the command line gives.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be the number of a step or best, got {text!r}")
    return text if text == "best" else int(text)


def _fail(error: Exception, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {error}\n(set {TRACEBACK}=1 for the traceback)", file=sys.stderr)
    return code
