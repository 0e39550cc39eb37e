"""Two processes on one machine train as one: the same run directory as a single process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toys
from quick import xla_flags
from test_cli import Config

from jaxgen.training import loop
from jaxgen.training.strategies import make_strategy

PROGRAM = """
import test_cli
test_cli.recipe.main()
"""


def launch(run_dir, processes, *args):
    """Start one process each with two devices; wait for all."""
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
        command = [sys.executable, "-c", PROGRAM, "--distributed", "--run-dir", str(run_dir), *args]
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
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
    states = []
    for name in ("one", "two"):
        config = Config(run_dir=str(tmp_path / name))
        strategy_here = make_strategy("jit", jax.devices()[:1])
        states.append(loop.restore(toys.experiment(config), config, strategy_here))
        assert int(states[-1].step) == 8
    if strategy == "jit":
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states)
    table = (tmp_path / "two" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["step", "2", "4", "6", "8"]
