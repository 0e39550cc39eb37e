"""Processes that train, are killed and train again: forked from one that has imported everything.

Run as a script it is that process: it reads a line of JSON for each command line, forks a child
that runs it, and answers with the child's number and its exit code. It never touches a device, so
that forking is safe.
"""

import csv
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT = 300  # seconds that a run may take
CLOCK = ("steps_per_second", "images_per_second")


class Host:
    """The process of this module's script, and the way to it."""

    def __enter__(self):
        from quick import xla_flags

        here = Path(__file__).parent
        paths = [str(here), str(here.parent / "training"), str(here.parents[1])]
        env = {**os.environ, "XLA_FLAGS": xla_flags(1), "PYTHONPATH": os.pathsep.join(paths)}
        self._log = tempfile.NamedTemporaryFile(suffix=".log")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()

    def start(self, run_dir, *flags, crash=None):
        """Starts the toy's command line; `crash` is (target, call, "before" or "after")."""
        self._log.seek(0)
        self._log.truncate()
        args = [f"--run-dir={run_dir}", *flags]
        order = {"args": args, "log": self._log.name, "crash": crash}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self):
        """The exit code of what was started last; that of a signal is negative."""
        return int(self._process.stdout.readline())

    def train(self, run_dir, *flags, crash=None):
        self.start(run_dir, *flags, crash=crash)
        return self.wait()

    def said(self):
        """All output of what was started last."""
        return Path(self._log.name).read_text()


def fingerprints(run_dir):
    """What must be the same however often a run was stopped: arrays, tables, pictures."""
    run_dir = Path(run_dir)
    kept = sorted(p for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())
    return {
        "steps": [p.name for p in kept],
        "arrays": {p.name: manifest(p)["fingerprints"] for p in kept},
        "pictures": {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in (run_dir / "samples").iterdir()
        },
        **{name: table(run_dir / name) for name in ("metrics.csv", "evaluations.csv")},
    }


def manifest(step_directory):
    (path,) = (step_directory / "manifest").glob("metadata")
    return json.loads(path.read_text())["manifest"]


def table(path):
    """Cells as they are written, without those of the clock."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def main():
    # What a run imports, once for all.
    import tensorboardX  # noqa: F401
    import toy

    import jaxgen.training.cli  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(toy.recipe, order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _child(recipe, order):
    """Run a command line as a process of its own would; never returns."""
    code = 99
    try:
        signal.alarm(TIMEOUT)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if order["crash"]:
            _crash(*order["crash"])
        try:
            recipe.main(order["args"])
        except SystemExit as leave:
            code = leave.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _crash(target, call, when):
    """SIGKILL before or after the given call of a function, "module:owner.name"."""
    module, path = target.split(":")
    owner = importlib.import_module(module)
    *owners, name = path.split(".")
    for one in owners:
        owner = getattr(owner, one)
    original, calls = getattr(owner, name), 0

    def replacement(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, replacement)


if __name__ == "__main__":
    main()
