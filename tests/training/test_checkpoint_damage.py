"""Damaged checkpoints and another model's: a sound one comes back, or the damage is named."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from saved import (
    QUIET,
    abstract,
    files_of,
    make_state,
    read,
    write,
)

from jaxgen.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning

pytestmark = QUIET


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


def test_a_file_in_the_place_of_a_step_is_moved_aside_and_named(copy):
    shutil.rmtree(copy / "200")
    (copy / "200").write_text("x")
    step, messages = read(copy)
    assert step == 100
    assert "checkpoint 200 is damaged: it is no directory" in messages[0]
    assert (copy / "damaged" / "200-0").read_text() == "x"
    shutil.rmtree(copy / "100")
    (copy / "damaged" / "200-0").rename(copy / "200")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        read(copy)


def test_a_step_under_another_number_is_not_that_step(copy):
    (copy / "200").rename(copy / "300")
    step, messages = read(copy)
    assert step == 100
    assert "checkpoint 300 is damaged: its manifest is that of step 200" in messages[0]
    (copy / "damaged" / "300-0").rename(copy / "200")
    assert read(copy) == (200, [])


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
    narrow = jax.tree.map(lambda x: x.astype(jnp.float16), state.averages)
    half = state._replace(averages=narrow)
    more = state._replace(state={**state.state, "new": jnp.ones(1)})
    less = state._replace(averages={})
    with Checkpoints(copy) as checkpoints:
        for target, message in [
            (half, r"averages/net/kernel: float32\[8,64\] in the checkpoint, float16\[8,64\]"),
            (more, r"state/new: absent in the checkpoint, float32\[1\] in this run"),
            (less, r"averages/net/kernel: float32\[8,64\] in the checkpoint, absent in this run"),
        ]:
            with pytest.raises(ValueError, match=message):
                checkpoints.restore(target)
