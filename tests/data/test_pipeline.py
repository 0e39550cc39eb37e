"""The pipeline: a pure function of (seed, step), the same resident and streamed."""

import itertools
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgen.data.permute import permute
from jaxgen.data.pipeline import Pipeline, eval_batches
from jaxgen.data.sources import ArraySource, digits


def _source(n):
    """Examples that tell their index."""
    index = np.arange(n, dtype=np.int32)
    image = index.astype(np.uint32).view(np.uint8).reshape(n, 2, 2, 1)
    return ArraySource({"image": image, "index": index})


@pytest.mark.parametrize(
    ("n", "batch_size"), [(1, 1), (1, 5), (7, 3), (10, 10), (10, 4), (5, 13), (30, 7), (97, 64)]
)
def test_every_epoch_visits_every_example_once(n, batch_size):
    pipeline = Pipeline(_source(n), batch_size, seed=1)
    steps = -(-6 * n // batch_size)
    order = np.concatenate([pipeline.indices(step, np) for step in range(steps)])
    epochs = order[: 6 * n].reshape(6, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (6, 1)))
    if n > 20:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6


@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (5, 13), (1797, 128), (60_000, 100)])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_indices_are_exact_at_any_step(n, batch_size, seed):
    pipeline = Pipeline(_source(n), batch_size, seed=seed)
    compiled = jax.jit(pipeline.indices)
    for step in (0, 1, n, 10**6 + 1, 2**31 - 1):
        positions = [step * batch_size + i for i in range(batch_size)]
        expected = [
            int(permute(p % n, (seed % 2**32, seed >> 32, p // n % 2**32), n)) for p in positions
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            indices = pipeline.indices(step, np)
        assert indices.dtype == np.int32
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(pipeline.indices(np.int32(step), np), expected)
        np.testing.assert_array_equal(compiled(jnp.int32(step)), expected)


class _Sized:
    """A source of a given length, and nothing in it."""

    name, split, protocol, num_classes = "sized", "all", "sized", None
    class_names, digest = (), "0"

    def __init__(self, size):
        self.size = size
        self.spec = {"image": ((1, 1, 1), np.dtype(np.uint8))}

    def __len__(self):
        return self.size

    def __getitem__(self, indices):
        raise AssertionError("not to be read")


def test_indices_are_exact_where_size_times_batch_exceeds_32_bits():
    n, batch_size, step = 2**30 - 35, 4096, 2**31 - 7
    pipeline = Pipeline(_Sized(n), batch_size, seed=9)
    expected = [
        int(permute(p % n, (9, 0, p // n), n))
        for p in range(step * batch_size, (step + 1) * batch_size)
    ]
    np.testing.assert_array_equal(pipeline.indices(step, np), expected)
    np.testing.assert_array_equal(jax.jit(pipeline.indices)(jnp.int32(step)), expected)


def test_resident_streamed_and_host_batches_are_the_same():
    source = digits("train")
    held, lazy = Pipeline(source, 100, seed=5), Pipeline(source, 100, seed=5, limit_bytes=0)
    assert held.resident
    assert not lazy.resident
    assert lazy.arrays is None
    arrays = jax.device_put(held.arrays)
    gather = jax.jit(held.gather)
    for step, streamed in zip(range(10, 30), lazy.stream(10), strict=False):
        batch = gather(arrays, jnp.int32(step))
        rows = held.indices(step, np)
        for key, whole in source.arrays.items():
            assert batch[key].dtype == streamed[key].dtype == whole.dtype
            np.testing.assert_array_equal(batch[key], whole[rows])
            np.testing.assert_array_equal(streamed[key], whole[rows])
            np.testing.assert_array_equal(lazy.host_batch(step)[key], whole[rows])


def test_gather_in_a_scan_and_over_devices():
    pipeline = Pipeline(_source(50), 16, seed=0)
    expected = [pipeline.host_batch(step)["index"] for step in range(5)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arrays = jax.device_put(pipeline.arrays, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def run(arrays, start):
        def body(step, _):
            index = pipeline.gather(arrays, step)["index"]
            sharding = NamedSharding(mesh, PartitionSpec("data"))
            return step + 1, jax.lax.with_sharding_constraint(index, sharding)

        return jax.lax.scan(body, start, length=5)[1]

    np.testing.assert_array_equal(run(arrays, jnp.int32(0)), expected)


def test_seeds_and_steps_differ():
    pipelines = [Pipeline(_source(1000), 100, seed=seed) for seed in (0, 1, 2**32)]
    batches = [p.indices(step, np).tolist() for p in pipelines for step in (0, 1, 10)]
    for a, b in itertools.combinations(batches, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 10


def test_processes_share_the_global_batch():
    pipeline = Pipeline(_source(50), 12, seed=0)
    whole = pipeline.host_batch(7)["index"]
    parts = [next(pipeline.stream(7, process_index=i, process_count=3))["index"] for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert all(len(part) == 4 for part in parts)


@pytest.mark.parametrize(("n", "limit"), [(10, None), (8, None), (3, None), (10, 7), (10, 99)])
@pytest.mark.parametrize("process_count", [1, 2])
def test_eval_batches_visit_all_in_order_with_weights(n, limit, process_count):
    parts = [
        list(eval_batches(_source(n), 4, limit=limit, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    count = min(n, limit or n)
    assert {len(part) for part in parts} == {-(-count // 4)}
    seen = []
    for batches in zip(*parts, strict=True):
        index, weight = (np.concatenate([b[key] for b in batches]) for key in ("index", "weight"))
        assert weight.shape == (4,)
        assert weight.dtype == np.float32
        seen += index[weight == 1].tolist()
        assert weight.sum() == (weight == 1).sum()
    assert seen == list(range(count))


def test_a_stream_passes_an_error_on():
    stream = Pipeline(_Sized(10), 2, seed=0, limit_bytes=0).stream()
    with pytest.raises(AssertionError, match="not to be read"):
        next(stream)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"batch_size": 0}, "batch_size must be between 1 and 2.*got 0"),
        ({"batch_size": -3}, "got -3"),
        ({"seed": -1}, "seed must be between"),
        ({"seed": 2**64}, "seed must be between"),
        ({"source": _source(0)}, r"source 'arrays' \(all\) is empty"),
        ({"source": _Sized(2**30 + 1)}, "1073741825 examples"),
    ],
)
def test_bad_pipelines(kwargs, match):
    arguments = {"source": _source(4), "batch_size": 2, "seed": 0, **kwargs}
    with pytest.raises(ValueError, match=match):
        Pipeline(arguments.pop("source"), arguments.pop("batch_size"), **arguments)


def test_bad_requests():
    pipeline = Pipeline(_source(10), 4, seed=0)
    for call, match in [
        (lambda: pipeline.host_batch(-1), "step must be between"),
        (lambda: pipeline.stream(2**31), "start_step must be between"),
        (lambda: pipeline.stream(0, process_count=3), "divisible by the 3 processes, got 4"),
        (lambda: pipeline.stream(0, process_index=2, process_count=2), "got 2 of 2"),
        (lambda: pipeline.stream(0, num_threads=0), "num_threads and prefetch"),
        (lambda: eval_batches(_source(10), 0), "batch_size must be at least 1, got 0"),
        (lambda: eval_batches(_source(10), 4, limit=0), "limit must be at least 1"),
        (lambda: eval_batches(_source(0), 4), "is empty"),
        (lambda: eval_batches(_source(10), 4, process_count=3), "divisible"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


def test_what_the_import_costs():
    script = (
        "import sys, jaxgen.data.pipeline, jaxgen.data.transforms;"
        "heavy = {'tensorflow_datasets', 'grain', 'flax', 'optax', 'orbax', 'absl.app'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout == "[]\n", done.stderr


def test_batches_that_no_machine_holds():
    source = ArraySource({"image": np.zeros((1, 64, 64, 3), np.uint8)})
    with pytest.raises(ValueError, match="a batch of 1073741824 examples would take 12288 GiB"):
        Pipeline(source, 2**30, seed=0)
    with pytest.raises(ValueError, match="a batch of 1000000000000 examples would take"):
        eval_batches(source, 10**12)
