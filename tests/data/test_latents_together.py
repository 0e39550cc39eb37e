"""Latents of a set by several processes: each a part, one file, nothing half-written."""

import itertools
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxgen.data import latents as module
from jaxgen.data.latents import LATENTS, cache_latents
from jaxgen.data.sources import digits

SOURCE = digits("test")  # 297 examples


@pytest.fixture
def together(tmp_path, monkeypatch):
    """Calls `cache_latents` in as many threads as there are to be processes."""
    path, local = tmp_path / "latents.npz", threading.local()
    processes = {"count": 1}
    monkeypatch.setattr(jax, "process_index", lambda: local.index)
    monkeypatch.setattr(jax, "process_count", lambda: processes["count"])

    def sleep(seconds):
        if local.stop.wait(0.01):
            raise RuntimeError("stopped")

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))

    def run(count, *, batch_size=50, dies=None, first_stage="one"):
        """What each process has, or the error that ended it, and the numbers that it encoded."""
        processes["count"] = count
        stop = threading.Event()
        results, numbers = [None] * count, [[] for _ in range(count)]

        def work(index):
            def encode(raw, number):
                if index == dies and numbers[index]:
                    raise RuntimeError("killed")
                numbers[index].append(number)
                drawn = np.random.default_rng(number).normal(size=(batch_size, 1))
                return raw["image"].mean(axis=(1, 2)) + drawn

            local.index, local.stop = index, stop
            try:
                results[index] = cache_latents(
                    encode, SOURCE, path, batch_size=batch_size, first_stage=first_stage
                )
            except RuntimeError as error:
                results[index] = error

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30 if dies is None else 0.3)
        stop.set()  # of those that wait for the dead, as JAX ends them
        for thread in threads:
            thread.join(30)
        return results, numbers

    run.path = path
    return run


def files(run):
    return sorted(path.name for path in run.path.parent.iterdir())


def test_each_process_encodes_its_part_of_the_batches(together):
    """All have the same latents, those of one process; the file is one."""
    (alone,), _ = together(1)
    together.path.unlink()
    for count in (2, 4, 8):  # of 6 batches
        results, numbers = together(count)
        assert sorted(itertools.chain(*numbers)) == list(range(6))
        assert max(map(len, numbers)) == -(-6 // count)
        for each in results:
            np.testing.assert_array_equal(each.arrays[LATENTS], alone.arrays[LATENTS])
            np.testing.assert_array_equal(each.arrays["label"], SOURCE.arrays["label"])
            assert each.protocol == alone.protocol
        assert files(together) == ["latents.npz"]
        read, numbers = together(count)
        assert not any(numbers)
        np.testing.assert_array_equal(read[0].arrays[LATENTS], alone.arrays[LATENTS])
        together.path.unlink()


def test_a_process_that_dies_leaves_nothing_that_is_read(together):
    """The parts of others are kept; the next call computes what is missing, and nothing else."""
    results, _ = together(2, dies=1)
    assert list(map(str, results)) == ["stopped", "killed"]
    (kept,) = files(together)
    assert kept.startswith("latents.npz.part-")
    assert kept.endswith("-0-of-2")
    half = together.path.with_name(f".{kept[:-6]}1-of-2.99.tmp")
    half.write_bytes(b"half of a part")
    results, numbers = together(2)
    assert numbers == [[], [3, 4, 5]]
    together.path.unlink()
    (alone,), _ = together(1)
    for each in results:
        np.testing.assert_array_equal(each.arrays[LATENTS], alone.arrays[LATENTS])
    assert files(together) == ["latents.npz"]


def test_parts_of_other_latents_are_not_taken(together):
    """Neither those of another first stage, nor those that were cut in another way."""
    together(2, dies=1)
    together(2, dies=1, batch_size=64)
    together(3, dies=1)
    results, numbers = together(2, first_stage="two")
    assert sorted(itertools.chain(*numbers)) == list(range(6))
    assert "by two" in results[1].protocol
    assert files(together) == ["latents.npz"]


def test_a_wait_that_is_long_is_said(together, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    with pytest.warns(UserWarning, match=r"waiting for .*-1-of-2, .* all processes must share its"):
        together(2, dies=1)
