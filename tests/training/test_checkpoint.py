"""Checkpoints come back bit for bit, or another sound one does and the damage is named."""

import contextlib
import gc
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
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxgen.core import State
from jaxgen.training import checkpoint
from jaxgen.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning

# Orbax leaves coroutines unfinished where a read fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def make_state(seed=0, width=64):
    """A state of many kinds of leaves: optax tuples, empty states, bfloat16, bool, no elements."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "net": {
            "kernel": jax.random.normal(keys[0], (8, width)),
            "scale": jax.random.normal(keys[1], (width,), jnp.bfloat16),
        }
    }
    gradients = jax.tree.map(lambda x: 0.1 * x, params)
    _, opt_state = OPTIMIZER.update(gradients, OPTIMIZER.init(params), params)
    model_state = {"seen": jnp.array([True, False]), "nothing": jnp.zeros((0, 3)), "none": None}
    ema = jax.tree.map(lambda x: 0.5 * x, params)
    return State(jnp.int32(seed), params, model_state, {"main": opt_state}, ema)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(actual, expected):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def write(directory, *steps):
    with Checkpoints(directory, keep=10) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step))


def read(directory, **options):
    """Restores, and returns the step and the warnings, after checking every bit."""
    with warnings.catch_warnings(record=True) as caught, Checkpoints(directory) as checkpoints:
        warnings.simplefilter("always")
        step, state = checkpoints.restore(abstract(make_state()), **options)
    assert_same(state, make_state(step))
    return step, [str(w.message) for w in caught if w.category is CheckpointWarning]


def files_of(step_directory):
    return sorted(path for path in step_directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A directory with the sound steps 100 and 200, to be copied, not changed."""
    directory = tmp_path_factory.mktemp("sound")
    write(directory, 100, 200)
    return directory


@pytest.fixture
def copy(sound, tmp_path):
    yield shutil.copytree(sound, tmp_path / "checkpoints")
    gc.collect()  # Orbax's unfinished coroutines complain here, where that is ignored


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


# Damage


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_never_gives_wrong_values(copy, where):
    """In each file in turn: either it does not matter, or the older step is used and says so."""
    fallbacks = set()
    for path in files_of(copy / "200"):
        whole = path.read_bytes()
        index = {"first": 0, "middle": len(whole) // 2, "last": len(whole) - 1}[where]
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
        step, messages = read(copy)
        if step == 100:
            assert "checkpoint 200 is damaged" in messages[0]
            assert "using step 100 instead" in messages[0]
            fallbacks.add(path.parent.name)
            moved = sorted((copy / "damaged").iterdir())[-1]
            moved.rename(copy / "200")
        else:
            assert not messages
        path.write_bytes(whole)
    assert fallbacks >= {"manifest", "state", "d"}
    assert read(copy) == (200, [])


def test_a_flipped_weight_is_seen_although_orbax_reads_it(copy):
    """The one damage that only our fingerprint can see: the bytes of a stored chunk."""
    largest = max(files_of(copy / "200" / "state"), key=lambda path: path.stat().st_size)
    whole = bytearray(largest.read_bytes())
    seen = set()
    for index in range(0, len(whole), max(1, len(whole) // 40)):
        whole[index] ^= 0x01
        largest.write_bytes(whole)
        whole[index] ^= 0x01
        step, messages = read(copy)
        if step == 100:
            (copy / "damaged" / "200-0").rename(copy / "200")
            seen.add("checksum" if "do not match their checksum" in messages[0] else "reader")
    assert "checksum" in seen


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_truncated_files(copy, keep):
    for path in files_of(copy / "200"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole))])
        step, _ = read(copy)
        if step == 100:
            (copy / "damaged" / "200-0").rename(copy / "200")
        path.write_bytes(whole)
    assert read(copy) == (200, [])


@pytest.mark.parametrize("lost", ["state", "manifest", "state/manifest.ocdbt"])
def test_missing_parts(copy, lost):
    path = copy / "200" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    step, messages = read(copy)
    assert step == 100
    assert len(messages) == 1
    assert (copy / "damaged" / "200-0").is_dir()


def test_an_empty_step_is_moved_aside_and_can_be_saved_again(copy):
    for attempt in range(2):
        shutil.rmtree(copy / "200", ignore_errors=True)
        (copy / "200").mkdir()
        (copy / "300").mkdir()
        with Checkpoints(copy, best_metric="loss") as checkpoints:
            with pytest.warns(CheckpointWarning, match="using step 100") as caught:
                assert checkpoints.restore(make_state())[0] == 100
            assert len([w for w in caught if w.category is CheckpointWarning]) == 2
            checkpoints.save(200, make_state(200))
        assert read(copy) == (200, [])
        assert (copy / "damaged" / f"300-{attempt}").is_dir()


def test_a_half_written_step_is_ignored(copy):
    half = shutil.copytree(copy / "200", copy / "300.orbax-checkpoint-tmp")
    (half / "manifest" / "metadata").unlink()
    assert read(copy) == (200, [])
    write(copy, 400)
    assert not half.exists()


def test_all_damaged_is_an_error_every_time_and_touches_nothing(copy):
    (copy / "100" / "manifest" / "metadata").write_text("{")
    shutil.rmtree(copy / "200" / "state")
    before = [path.relative_to(copy) for path in files_of(copy)]
    for _ in range(2):
        with (
            Checkpoints(copy) as checkpoints,
            pytest.raises(CheckpointError, match=r"(?s)no usable.*step 200: .*step 100: .*backup"),
        ):
            checkpoints.restore(make_state())
    assert [path.relative_to(copy) for path in files_of(copy)] == before


def test_a_damaged_step_that_was_asked_for_is_an_error(copy):
    shutil.rmtree(copy / "200" / "state")
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(CheckpointError, match="choose another step"):
            checkpoints.restore(make_state(), step=200)
        assert checkpoints.steps() == [100, 200]


def test_a_reader_moves_and_makes_nothing(copy, tmp_path):
    shutil.rmtree(copy / "200" / "state")
    (copy / "300.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(copy, read_only=True) as checkpoints:
        with pytest.warns(CheckpointWarning, match="left where it is"):
            assert checkpoints.restore(make_state())[0] == 100
        with pytest.raises(CheckpointError, match="read_only"):
            checkpoints.save(400, make_state())
    assert {path.name for path in copy.iterdir()} == {"100", "200", "300.orbax-checkpoint-tmp"}
    with Checkpoints(tmp_path / "absent", read_only=True) as checkpoints:
        assert checkpoints.restore(make_state()) is None
    assert not (tmp_path / "absent").exists()


# Another model


def test_another_width_is_an_error_that_names_the_arrays(copy):
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(ValueError, match="another model or optimizer") as caught,
    ):
        checkpoints.restore(abstract(make_state(width=32)))
    message = str(caught.value)
    assert (
        "params/net/kernel: float32[8,64] in the checkpoint, float32[8,32] in this run" in message
    )
    assert "8 of 12 arrays differ" in message
    assert read(copy) == (200, [])


def test_other_names_and_dtypes_are_errors_too(copy):
    state = make_state()
    half = state._replace(ema=jax.tree.map(lambda x: x.astype(jnp.float16), state.ema))
    more = state._replace(model_state={**state.model_state, "new": jnp.ones(1)})
    less = state._replace(ema={})
    with Checkpoints(copy) as checkpoints:
        for target, message in [
            (half, r"ema/net/kernel: float32\[8,64\] in the checkpoint, float16\[8,64\]"),
            (more, r"model_state/new: absent in the checkpoint, float32\[1\] in this run"),
            (less, r"ema/net/kernel: float32\[8,64\] in the checkpoint, absent in this run"),
        ]:
            with pytest.raises(ValueError, match=message):
                checkpoints.restore(target)


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
    environment = {**os.environ, "XLA_FLAGS": ""}  # one device, where this process has eight
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
