"""Two processes on one machine train as one: the same run directory as a single process."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toys
from command_line import Config
from quick import xla_flags

from jaxgen.training import states
from jaxgen.training.strategies import make_strategy

PROGRAM = """
import command_line
command_line.recipe.main()
"""


DRAWING = """
import time
import command_line
from jaxgen.training import evaluation

def forever(*args, **kwargs):
    def sample(*args):
        print("drawing", flush=True)
        time.sleep(100)
    return sample

evaluation.make_sample = forever
command_line.recipe.main()
"""


def begin(program, run_dir, processes, *args):
    """Start one process each with two devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        environment = {
            **os.environ,
            "XLA_FLAGS": xla_flags(2),
            "PYTHONPATH": str(Path(__file__).parent),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-c", program, "--distributed", "--run-dir", str(run_dir), *args]
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def launch(run_dir, processes, *args):
    """Start them and wait for all."""
    started = begin(PROGRAM, run_dir, processes, *args)
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(outputs)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["jit", "pmap"])
@pytest.mark.parametrize("data", [(), ("--data.stream",)])
def test_two_processes_equal_one(tmp_path, strategy, data):
    args = ("--steps", "6", "--checkpoint-every", "2", "--evaluate-every", "3", *data)
    launch(tmp_path / "two", 2, "--strategy", strategy, *args)
    # Resumed by two processes as well.
    outputs = launch(tmp_path / "two", 2, "--strategy", strategy, *args, "--steps", "8")
    assert "resuming" in outputs[0]
    launch(tmp_path / "one", 1, *args, "--steps", "8")
    restored = []
    for name in ("one", "two"):
        config = Config(run_dir=str(tmp_path / name))
        strategy_here = make_strategy("jit", jax.devices()[:1])
        restored.append(states.restore(toys.experiment(config), config, strategy_here))
        assert int(restored[-1].step) == 8
    if strategy == "jit":
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *restored)
    table = (tmp_path / "two" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["step", "2", "4", "6", "8"]


@pytest.mark.slow
def test_processes_that_draw_hear_a_signal_at_once(tmp_path):
    """Both have saved; the next call draws."""
    args = ("--steps", "4", "--sample-every", "2", "--checkpoint-every", "4")
    started = begin(DRAWING, tmp_path / "run", 2, *args)
    for process in started:
        while "drawing" not in (line := process.stdout.readline()):
            assert line, "it ended before it drew"
    sent = time.monotonic()
    for process in started:
        process.terminate()
    outputs = [process.communicate(timeout=90)[0] for process in started]
    assert time.monotonic() - sent < 30, outputs
    assert [process.returncode for process in started] == [143, 143], outputs
    assert "stopped at step 2, saved" in outputs[0]
    assert not (tmp_path / "run" / "samples").exists()
    assert "resuming" in launch(tmp_path / "run", 2, *args)[0]
    names = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert names == ["00000002.png", "00000004.png"]
