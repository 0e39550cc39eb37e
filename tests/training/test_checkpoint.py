"""Checkpoints come back bit for bit, or another sound one does and the damage is named."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from quick import xla_flags
from saved import (
    QUIET,
    abstract,
    assert_same,
    make_state,
    read,
)

from jaxgen.training import checkpoint
from jaxgen.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning

pytestmark = QUIET


def test_round_trip_is_bit_exact(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        assert checkpoints.latest_step() is None
        checkpoints.save(3, state, wait=True)
        assert checkpoints.steps() == [3]
        for target in (state, abstract(state)):
            step, restored = checkpoints.restore(target)
            assert step == 3
            assert_same(restored, state)


def test_values_without_a_usual_float_survive(tmp_path):
    bits = np.array([0x7FC00001, 0xFF800000, 0x80000000, 0x00000001], np.uint32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"x": bits.view(np.float32)})
        _, restored = checkpoints.restore({"x": jax.ShapeDtypeStruct((4,), jnp.float32)})
    assert np.asarray(restored["x"]).view(np.uint32).tolist() == bits.tolist()


def test_state_may_be_donated_right_after_an_asynchronous_save(tmp_path):
    increment = jax.jit(lambda xs: [x + 1 for x in xs], donate_argnums=0)
    xs = [jnp.zeros((500, 500)) for _ in range(4)]
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for step in range(4):
            checkpoints.save(step, xs)
            xs = increment(increment(xs))
        for step in range(4):
            _, restored = checkpoints.restore([abstract(x) for x in xs], step=step)
            assert all((np.asarray(x) == 2 * step).all() for x in restored)


def test_what_a_killed_process_left_too_much_is_deleted(tmp_path):
    """It was killed between a save and the deletion of what is not to be kept."""
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for step in range(5):
            checkpoints.save(step, make_state(step), metrics={"loss": float(abs(step - 1))})
    with Checkpoints(tmp_path, keep=2, best_metric="loss") as checkpoints:
        assert checkpoints.steps() == [0, 1, 2, 3, 4]
        checkpoints.rotate()
        assert checkpoints.steps() == [1, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "4"]


def test_a_reader_may_take_a_part(copy):
    target = abstract(make_state())._replace(opt_state={})
    with Checkpoints(copy, read_only=True) as checkpoints:
        step, state = checkpoints.restore(target, partial=True)
        assert_same(state, make_state(200)._replace(opt_state={}))
        with pytest.raises(ValueError, match=r"opt_state.*absent' in this run|absent in this run"):
            checkpoints.restore(target)
    assert step == 200


def test_steps_can_be_named(copy):
    assert read(copy, step=100) == (100, [])
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(FileNotFoundError, match=r"step 150 .* there are \[100, 200\]"):
            checkpoints.restore(abstract(make_state()), step=150)
        with pytest.raises(ValueError, match="not both"):
            checkpoints.restore(abstract(make_state()), step=100, best=True)
        with pytest.raises(ValueError, match="best_metric"):
            checkpoints.restore(abstract(make_state()), best=True)


# Shardings


def test_restores_onto_other_devices_and_shardings(tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (16, 24)), "step": jnp.int32(5)}
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def over(*spec):
        return {
            "w": NamedSharding(mesh, PartitionSpec(*spec)),
            "step": NamedSharding(mesh, PartitionSpec()),
        }

    one = SingleDeviceSharding(jax.devices()[3])
    layouts = [over(), over("fsdp"), over(None, "fsdp"), over("data", "fsdp")]
    layouts.append({"w": one, "step": one})
    with Checkpoints(tmp_path, keep=100) as checkpoints:
        for number, layout in enumerate(layouts * 2):
            checkpoints.save(number, state)
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout
            )
            _, restored = checkpoints.restore(target, step=number)
            assert_same(restored, state)
            assert jax.tree.map(lambda x: x.sharding, restored) == layout
            state = restored


# Retention


def test_newest_and_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: float("nan"), 6: 3.0}
    with Checkpoints(tmp_path, keep=2, keep_best=2, best_metric="loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, make_state(step), metrics={"loss": loss, "other": 0.0})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5, 6]
    with Checkpoints(tmp_path, keep=2, keep_best=2, best_metric="loss") as checkpoints:
        checkpoints.save(7, make_state(7), metrics={"loss": 1.5}, wait=True)
        assert checkpoints.steps() == [2, 6, 7]  # the scores outlive the process
        checkpoints.save(8, make_state(8), wait=True)  # the newest stays, with no score at all
        assert checkpoints.steps() == [2, 7, 8]
        assert checkpoints.restore(make_state(), best=True)[0] == 2
        assert checkpoints.restore(make_state())[0] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "7", "8"]


def test_the_next_best_replaces_a_damaged_best(tmp_path):
    with Checkpoints(tmp_path, best_metric="loss", keep=5) as checkpoints:
        for step, loss in {1: 2.0, 2: 1.0, 3: 3.0}.items():
            checkpoints.save(step, make_state(step), metrics={"loss": loss}, wait=True)
        shutil.rmtree(tmp_path / "2" / "state")
        with pytest.warns(CheckpointWarning, match="checkpoint 2 is damaged.*using step 1"):
            assert checkpoints.restore(make_state(), best=True)[0] == 1


def test_best_without_any_score(copy):
    with (
        Checkpoints(copy, best_metric="fid") as checkpoints,
        pytest.raises(CheckpointError, match="metric 'fid'"),
    ):
        checkpoints.restore(make_state(), best=True)


def test_saving_a_step_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(1, make_state(1))  # the end of a run may fall on a regular save
        with pytest.raises(CheckpointError, match="another checkpoint of step 1"):
            checkpoints.save(1, make_state(2))
        checkpoints.save(0, make_state(0), wait=True)  # an older step is not skipped
        assert checkpoints.steps() == [0, 1]


# Disks and kills


def test_too_little_space_is_an_error_before_anything_is_written(copy, monkeypatch):
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20)
    )
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(CheckpointError, match=r"(?s)checkpoint 300 .*1 MiB are free.*100, 200"):
            checkpoints.save(300, make_state(300))
        assert {path.name for path in copy.iterdir()} == {"100", "200"}
        monkeypatch.undo()
        checkpoints.save(300, make_state(300))
    assert read(copy) == (300, [])


BIG = {"x": np.random.default_rng(0).standard_normal((300, 300), np.float32)}


@contextlib.contextmanager
def small_files():
    """No file may grow over 100 kB: as on a full disk, the writes themselves fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        time.sleep(0.2)  # for the write in the background to meet the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_surfaces_and_can_be_repeated(copy):
    with Checkpoints(copy, best_metric="loss") as checkpoints:
        with small_files():
            with pytest.raises(CheckpointError, match=r"(?s)checkpoint 300 .*intact.*100, 200"):
                checkpoints.save(300, BIG, metrics={"loss": 0.0}, wait=True)
            checkpoints.save(300, BIG, metrics={"loss": 0.0})
            with pytest.raises(CheckpointError, match="checkpoint 300"):
                checkpoints.save(400, BIG)
        assert checkpoints.steps() == [100, 200]
        checkpoints.save(300, BIG)
        step, restored = checkpoints.restore(BIG)
        assert step == 300
        assert np.array_equal(restored["x"], BIG["x"])


def test_a_failed_write_costs_no_older_checkpoint(tmp_path):
    with Checkpoints(tmp_path, keep=1, best_metric="loss") as checkpoints:
        checkpoints.save(1, BIG, metrics={"loss": 1.0}, wait=True)
        with small_files(), pytest.raises(CheckpointError):
            checkpoints.save(2, {"x": 2 * BIG["x"]}, metrics={"loss": 0.0}, wait=True)
        assert checkpoints.steps() == [1]
        checkpoints.save(2, BIG, wait=True)  # this time without a loss
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(BIG, best=True)[0] == 1


def test_a_failed_write_is_said_once_and_by_its_place(tmp_path, monkeypatch):
    """Orbax raises it again when it is closed, without a path."""

    def again():
        raise OSError(28, "No space left on device")

    def run():
        with Checkpoints(tmp_path) as checkpoints, small_files():
            monkeypatch.setattr(checkpoints._manager, "close", again)
            checkpoints.save(1, BIG)

    with pytest.raises(CheckpointError, match=f"could not write checkpoint 1 to {tmp_path}"):
        run()


@pytest.mark.parametrize(("body", "expected"), [(None, CheckpointError), (KeyError("x"), KeyError)])
def test_a_failed_last_save_is_raised_by_close_but_hides_no_other_error(tmp_path, body, expected):
    def run():
        with Checkpoints(tmp_path) as checkpoints, small_files():
            checkpoints.save(1, BIG)
            if body:
                raise body

    with warnings.catch_warnings(record=True) as caught, pytest.raises(expected):  # noqa: PT012
        warnings.simplefilter("always")
        run()
    assert any("could not write" in str(w.message) for w in caught) == (body is not None)


KILLED = textwrap.dedent("""
    import sys
    import jax, jax.numpy as jnp
    from jaxgen.training.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=2)
    step = 0
    while True:
        step += 1
        checkpoints.save(step, {"x": jax.random.normal(jax.random.key(step), (1000, 500))})
        print(step, flush=True)
""")


def test_kill_during_a_save(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    target = {"x": jax.ShapeDtypeStruct((1000, 500), jnp.float32)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as child:
        while int(child.stdout.readline()) < 4:
            pass
        time.sleep(0.02)  # somewhere in the background write of step 4, or later
        child.send_signal(signal.SIGKILL)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        step, state = checkpoints.restore(target)
        assert step >= 3
        assert_same(state, {"x": jax.random.normal(jax.random.key(step), (1000, 500))})
        checkpoints.save(step + 1, state, wait=True)
    assert not list(tmp_path.glob("*tmp*"))


@pytest.mark.parametrize(
    ("options", "message"), [({"keep": 0}, "keep must"), ({"keep_best": -1}, "keep_best must")]
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, **options)


def test_bad_directory_and_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        Checkpoints(tmp_path / "file")
    with (
        Checkpoints(tmp_path / "new") as checkpoints,
        pytest.raises(ValueError, match="step must not be negative"),
    ):
        checkpoints.save(-1, make_state())
