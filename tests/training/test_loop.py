"""The loop: a run directory, resuming, signals, lost causes."""

import csv
import dataclasses
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import experiment

from jaxgen.data.transforms import to_uint8
from jaxgen.training import loop
from jaxgen.training.checkpoint import CheckpointWarning
from jaxgen.training.config import DataConfig, RunConfig
from jaxgen.training.experiment import IMAGES
from jaxgen.training.strategies import make_strategy


def config(run_dir, **changes):
    return dataclasses.replace(
        RunConfig(
            run_dir=str(run_dir),
            steps=40,
            batch_size=32,
            seed=5,
            log_every=10,
            sample_every=20,
            checkpoint_every=10,
            keep=10,
        ),
        **changes,
    )


def run(run_dir, devices=1, poison=None, **changes):
    flags = config(run_dir, **changes)
    return loop.train(experiment(flags, poison), flags, jax.devices()[:devices])


def rows(run_dir, name="metrics.csv"):
    with (Path(run_dir) / name).open() as file:
        return list(csv.DictReader(file))


def bits(state):
    return jax.tree.map(np.asarray, jax.device_get(state))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, bits(a), bits(b))


def assert_close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), bits(a), bits(b)
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    return directory, run(directory, evaluate_every=20)


def test_the_run_directory_explains_itself(uninterrupted):
    directory, state = uninterrupted
    assert int(state.step) == 40
    table = rows(directory)
    assert [int(row["step"]) for row in table] == [10, 20, 30, 40]
    assert float(table[-1]["loss"]) < float(table[0]["loss"])
    assert float(table[-1]["images_per_second"]) > 0
    assert {"error", "grad_norm", "skipped", "steps_per_second"} < set(table[0])
    assert [p.name for p in sorted((directory / "samples").iterdir())] == [
        "00000020.png",
        "00000040.png",
    ]
    assert [int(row["step"]) for row in rows(directory, "evaluations.csv")] == [20, 40]
    assert list((directory / "tensorboard").iterdir())
    steps = sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [10, 20, 30, 40]


def test_logged_loss_is_the_mean_over_the_interval(uninterrupted, tmp_path):
    """Rows of ten steps are the means of rows of one."""
    run(tmp_path, steps=10, log_every=1, sample_every=0)
    fine = [float(row["loss"]) for row in rows(tmp_path)]
    assert len(fine) == 10
    assert float(rows(uninterrupted[0])[0]["loss"]) == pytest.approx(np.mean(fine), rel=1e-6)


@pytest.mark.parametrize("stop", [10, 23])
def test_a_stopped_run_resumes_to_the_same_bits(uninterrupted, tmp_path, stop):
    run(tmp_path, steps=stop)
    assert_equal(run(tmp_path), uninterrupted[1])
    # Row 30 averages what was run since the restart; the rows are neither lost nor doubled.
    steps = [int(row["step"]) for row in rows(tmp_path)]
    assert steps == sorted({10, 20, stop, 30, 40} if stop == 23 else {10, 20, 30, 40})


def test_streamed_equals_resident(uninterrupted, tmp_path):
    """To rounding: they are two programs, with the same batches."""
    assert_close(run(tmp_path, data=DataConfig(stream=True)), uninterrupted[1])


def test_resumes_on_other_devices_and_strategies(uninterrupted, tmp_path):
    run(tmp_path, steps=10)
    run(tmp_path, steps=20, devices=8)
    run(tmp_path, steps=30, devices=8, fsdp=4)
    state = run(tmp_path)
    assert_close(state, uninterrupted[1])
    again = run(tmp_path, steps=50, devices=8, strategy="pmap")
    assert int(again.step) == 50


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path):
    run(tmp_path, steps=30)
    for path in (tmp_path / "checkpoints" / "30" / "state").rglob("*"):
        if path.is_file():
            damaged = bytearray(path.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            path.write_bytes(damaged)
    with pytest.warns(CheckpointWarning, match="checkpoint 30 is damaged.*using step 20"):
        state = run(tmp_path)
    assert_equal(state, uninterrupted[1])


def test_sigterm_saves_and_returns(uninterrupted, tmp_path):
    flags = config(tmp_path)
    built = experiment(flags)

    def at_rest(x):
        signal.raise_signal(signal.SIGTERM)  # arrives at step 20, while sampling is traced
        return to_uint8(x)

    before = signal.getsignal(signal.SIGTERM)
    state = loop.train(
        built._replace(medium=IMAGES._replace(at_rest=at_rest)), flags, jax.devices()[:1]
    )
    assert int(state.step) == 20
    assert signal.getsignal(signal.SIGTERM) is before
    assert_equal(run(tmp_path), uninterrupted[1])


def test_a_lost_cause_stops_with_its_name_and_nothing_lost(tmp_path, capsys):
    with pytest.raises(loop.NonFiniteError, match="the loss of phase 'fit' is not finite"):
        run(tmp_path, poison=0, max_nonfinite=3)
    flags = config(tmp_path)
    state = loop.restore(experiment(flags), flags, make_strategy("jit", jax.devices()[:1]))
    assert np.isfinite(state.params["net"]["mean"]).all()
    assert "step 0: the loss of phase 'fit' is not finite" in capsys.readouterr().out


def test_an_odd_bad_batch_is_skipped_and_counted(tmp_path):
    """Some batches of 2 hold a nine; the run goes on."""
    state = run(tmp_path, poison=9, batch_size=2, max_nonfinite=20, sample_every=0)
    assert int(state.step) == 40
    assert 0 < float(rows(tmp_path)[-1]["skipped"]) < 40
    assert np.isfinite(state.params["net"]["mean"]).all()


def test_nothing_to_do(uninterrupted):
    directory, state = uninterrupted
    assert_equal(run(directory), state)


def test_batches_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"--batch-size must be a multiple of 8 \(8 devices"):
        run(tmp_path, devices=8, batch_size=12)
    with pytest.raises(ValueError, match=r"multiple of 24 .*3 micro-batches"):
        run(tmp_path, devices=8, batch_size=32, accumulate=3)


def test_restore_wants_a_checkpoint(tmp_path):
    flags = config(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        loop.restore(experiment(flags), flags, make_strategy("jit", jax.devices()[:1]))
