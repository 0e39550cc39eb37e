"""A recipe that is killed in mid-run goes on to the same bits."""

import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
from recipes import launch

from experiments import vae_digits
from jaxgen.training import runs, states
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.strategies import make_strategy

STEPS, EVERY = 2000, 100
FLAGS = (
    "--model.network=dense --model.features 32 --model.latent-dim=4 --model.prior=normal "
    "--batch-size=16 --keep=100 "
    f"--steps={STEPS} --checkpoint-every={EVERY} --sample-every=0 --evaluate-every=0 --log-every=50"
).split()


def final_state(run_dir):
    """The whole last checkpoint, optimizer and average included."""
    recipe, strategy = vae_digits.recipe, make_strategy("jit", jax.devices()[:1])
    saved = runs.load_config(Path(run_dir), "experiments.vae_digits", recipe.config)
    experiment = recipe.build(saved)
    target = states.abstract_state(experiment, saved, strategy)
    with Checkpoints(states.checkpoint_directory(saved), read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(target, step=STEPS)[1])


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """kill -9 in mid-run, a half-written checkpoint left behind, and the same command again."""
    launch(vae_digits, tmp_path / "straight", *FLAGS)
    process, _ = launch(vae_digits, tmp_path / "killed", *FLAGS, wait=False)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 300
    while not (checkpoints / str(2 * EVERY)).is_dir():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (checkpoints / str(STEPS)).exists()
    half = checkpoints / f"{STEPS - EVERY}.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "d").write_bytes(b"half")
    _, out = launch(vae_digits, tmp_path / "killed", *FLAGS)
    resumed = re.search(r"resuming .* at step (\d+)", out)
    assert resumed
    assert int(resumed[1]) >= 2 * EVERY
    a, b = (final_state(tmp_path / name) for name in ("straight", "killed"))
    assert int(a.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, a, b)
    steps = [
        int(line.split(",")[0])
        for line in (tmp_path / "killed" / "metrics.csv").read_text().splitlines()[1:]
    ]
    assert steps == list(range(50, STEPS + 1, 50))
