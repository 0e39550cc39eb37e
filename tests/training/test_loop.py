"""The loop: a run directory, resuming, signals, lost causes."""

import csv
import dataclasses
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from toys import experiment

from jaxgen.core import Optimizer
from jaxgen.data.transforms import to_uint8
from jaxgen.training import loop, states
from jaxgen.training.checkpoint import CheckpointWarning
from jaxgen.training.config import DataConfig, RunConfig
from jaxgen.training.experiment import IMAGES
from jaxgen.training.optim import adam
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


def numbers(run_dir):
    """The table's cells as they are written, without those of the clock."""
    return [
        {name: cell for name, cell in row.items() if "per_second" not in name}
        for row in rows(run_dir)
    ]


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
    # A run that ends has a row there; all others are those of the run that was not stopped.
    again = {row["step"]: row for row in numbers(tmp_path)}
    assert list(again) == (
        ["10", "20", "23", "30", "40"] if stop == 23 else ["10", "20", "30", "40"]
    )
    again.pop("23", None)
    assert list(again.values()) == numbers(uninterrupted[0])


def test_rows_are_the_same_whatever_the_dispatches(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_STEPS", 1)
    run(tmp_path, checkpoint_every=40)
    assert numbers(tmp_path) == numbers(uninterrupted[0])


def test_a_killed_run_writes_its_rows_again(uninterrupted, tmp_path):
    """Back to step 25, between rows, with rows of later steps, of no step and none at all."""
    run(tmp_path, poison=9, steps=40, checkpoint_every=25, max_nonfinite=99)
    whole = numbers(tmp_path)
    assert float(whole[-1]["skipped"]) > float(whole[1]["skipped"]) > 0
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1000" + ",0" * (len(whole[0]) + 1) + "\n")
    run(tmp_path, poison=9, steps=40, checkpoint_every=25, max_nonfinite=99)
    assert numbers(tmp_path) == whole


@pytest.mark.parametrize("damage", ["a row", "the end", "all"])
def test_lost_rows_are_noticed(uninterrupted, tmp_path, damage):
    directory = shutil.copytree(uninterrupted[0], tmp_path / "run")
    path = directory / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "all":
        path.unlink()
    else:
        path.write_text(
            "".join(lines[:2] + lines[3:]) if damage == "a row" else "".join(lines)[:-5]
        )
    with pytest.raises(
        ValueError, match=r"metrics\.csv has [03] rows up to step 40, but had 4 when"
    ):
        run(directory)
    run(directory, accept_lost_rows=True)


def test_checkpoints_without_notes_resume(uninterrupted, tmp_path, monkeypatch):
    """Those of before: the row after is of the steps since."""
    monkeypatch.setattr(loop.Tally, "to_json", lambda self: {})
    monkeypatch.setattr(loop.Writers, "rows", lambda self: {})
    run(tmp_path, steps=23)
    (tmp_path / "metrics.csv").unlink()
    assert_equal(run(tmp_path), uninterrupted[1])
    assert [row["step"] for row in rows(tmp_path)] == ["30", "40"]


def test_the_learning_rate_is_in_the_rows(tmp_path):
    """That of the last update, as the optimizer counts them: skipped ones are none."""
    flags = config(tmp_path, steps=20, sample_every=0)
    built = experiment(flags)
    optimizers = {"fit": Optimizer(("net",), adam(1e-2, warmup_steps=20))}
    built = built._replace(family=built.family._replace(optimizers=optimizers))
    loop.train(built, flags, jax.devices()[:1])
    written = [float(row["learning_rate"]) for row in rows(tmp_path)]
    np.testing.assert_allclose(written, [1e-2 * 9 / 20, 1e-2 * 19 / 20], rtol=1e-5)


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_samples_are_drawn_is_heard_at_once(
    uninterrupted, tmp_path, monkeypatch, number
):
    """What was trained is saved before; what was left is drawn by the next call."""
    drawing, ended = threading.Event(), threading.Event()

    def forever(*args, **kwargs):
        def sample(*args):
            assert (tmp_path / "checkpoints").exists()
            drawing.set()
            signal.raise_signal(number)
            ended.wait(60)

        return sample

    with monkeypatch.context() as patch:
        patch.setattr(loop.evaluation, "make_sample", forever)
        begin = time.monotonic()
        with loop.StopSignals() as stop:
            flags = config(tmp_path, checkpoint_every=35)
            state = loop.train(experiment(flags), flags, jax.devices()[:1], stop)
    ended.set()
    assert drawing.is_set()
    assert time.monotonic() - begin < 30
    assert (stop.code, stop.left_behind) == (128 + number, True)
    assert int(state.step) == 20
    assert not (tmp_path / "samples").exists()
    assert_equal(run(tmp_path), uninterrupted[1])
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_an_error_in_drawing_loses_nothing(uninterrupted, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        def sample(*args):
            raise MemoryError("too many pixels")

        return sample

    with monkeypatch.context() as patch:
        patch.setattr(loop.evaluation, "make_sample", broken)
        with pytest.raises(MemoryError, match="too many pixels"):
            run(tmp_path, checkpoint_every=35)
    assert (tmp_path / "checkpoints" / "20").exists()
    assert_equal(run(tmp_path), uninterrupted[1])


def test_samples_that_are_not_finite_are_said_and_training_goes_on(uninterrupted, tmp_path, capsys):
    flags = config(tmp_path)
    built = experiment(flags)
    lost = lambda variables, key, num, condition=None: jnp.full((num, 8, 8, 1), jnp.nan)  # noqa: E731
    built = built._replace(family=built.family._replace(sample=lost))
    assert_equal(loop.train(built, flags, jax.devices()[:1]), uninterrupted[1])
    assert "step 20: warning: nothing is shown: 64 of 64 samples are" in capsys.readouterr().out
    assert not (tmp_path / "samples").exists()


def test_processes_stop_at_the_step_that_they_agree_on(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: step == 3)
    with loop.StopSignals() as stop:
        assert [stop.requested(step) for step in (2, 3, 4)] == [False, True, True]
    assert stop.code == 128 + signal.SIGTERM


def test_what_takes_longer_than_training_says_so(monkeypatch):
    monkeypatch.setattr(loop, "LATE_SECONDS", 0.1)
    said = []
    with loop.StopSignals() as stop:
        writers = SimpleNamespace(note=said.append, busy=lambda *doing, **how: None)
        beside = SimpleNamespace(
            stop=stop, writers=writers, looked=time.monotonic(), compiled_asides=set()
        )
        work = lambda: time.sleep(0.5) or 7  # noqa: E731
        assert loop._Loop._aside(beside, "drawing samples", work) == 7
        beside.looked -= 60  # so long did training take
        assert loop._Loop._aside(beside, "evaluating", work) == 7
        assert time.monotonic() - beside.looked < 30
    assert len(said) == 1
    assert said[0].startswith("drawing samples takes longer than the training since the last time")


def test_the_best_checkpoint_is_kept_across_a_restart(tmp_path):
    """Evaluations come after the save: their table ranks the steps, also for the next process."""
    flags = {"evaluate_every": 10, "keep": 1, "sample_every": 0}

    def kept():
        return sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())

    run(tmp_path, steps=20, **flags)
    assert kept() == [10, 20]  # the best of before the last save, and the last
    path = tmp_path / "evaluations.csv"
    header, _, second = path.read_text().splitlines()
    better = "10" + ",-1.0" * header.count(",")
    path.write_text("\n".join([header, better, second, ""]))
    run(tmp_path, steps=40, **flags)
    assert kept() == [10, 40]


def test_a_lost_cause_stops_with_its_name_and_nothing_lost(tmp_path, capsys):
    with pytest.raises(loop.NonFiniteError, match="the loss of phase 'fit' is not finite"):
        run(tmp_path, poison=0, max_nonfinite=3)
    flags = config(tmp_path)
    state = states.restore(experiment(flags), flags, make_strategy("jit", jax.devices()[:1]))
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
        states.restore(experiment(flags), flags, make_strategy("jit", jax.devices()[:1]))
