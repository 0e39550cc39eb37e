"""Distribution of a step over devices: `jit` with shardings, or `pmap`.

A strategy compiles one function, `run(state, fixed, data, num_steps)`: a loop of `num_steps`
training steps in one dispatch. `num_steps` is traced, so that one compilation serves any number up
to `MOST_STEPS`. The two strategies differ only in the placement of arrays and in the reduction:
under `jit` the batch is one global array and XLA inserts the collectives; under `pmap` each device
has its part of the batch and the step calls `psum`. The state has one form in both, so that
checkpoints can be exchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxgen.core import Batch, PyTree, State
from jaxgen.training.compilation import compiler_options
from jaxgen.training.packing import SMALL
from jaxgen.training.step import Metrics, Step

AXIS = "data"
MOST_STEPS = 1000
"""Greatest number of steps in a dispatch on data that are resident; otherwise it is 1."""
HostBatch = Mapping[str, np.ndarray]


class Feed(NamedTuple):
    """The source of the compiled loop's batches.

    Attributes:
        batch: `(data, step, shard) -> raw batch`. `data` is the argument of `run`: the whole set
            where it is resident on the device, otherwise one batch. `shard` is (index, count) of
            the part of the global batch to return: (0, 1) under jit.
        prepare: `(key, raw batch) -> batch`, from bytes to the loss's input, augmented.
        seed: Seed of the run, which gives keys as functions of (seed, step).
        resident: Whether `data` is the whole set.
    """

    batch: Callable[[PyTree, Int[Array, ""], tuple[Any, int]], Batch]
    prepare: Callable[[Array, Batch], Batch]
    seed: int
    resident: bool


class Report(NamedTuple):
    """The report of a dispatch to the host, which reads it one dispatch late.

    It has a row for each step, and zeros behind them. The host adds them up, step after step: what
    comes of it does not depend on how the steps were cut into dispatches.

    Attributes:
        bad: Index i32[n] in `guarded_names` of what was not finite in a step, or -1.
        metrics: Name -> (total f32[n], weight f32[n]) of each step.
    """

    bad: Int[Array, " steps"]
    metrics: Metrics


# (state, fixed, data, num_steps) -> (state, report)
Run = Callable[[State, PyTree, PyTree, Any], tuple[State, Report]]


def make_run(step: Step, feed: Feed, axis_name: str | None, num_shards: int) -> Run:
    """A loop of training steps as one pure function, which a strategy compiles.

    Args:
        step: Training step.
        feed: Source of the batches.
        axis_name: Name of the mapped axis (pmap), or None where the batch is global (jit).
        num_shards: Number of parts of the global batch along the mapped axis.
    """

    @jax.jit  # traced once, for its shapes and for the loop
    def one(state: State, fixed: PyTree, data: PyTree):
        shard = (0, 1) if axis_name is None else (lax.axis_index(axis_name), num_shards)
        prepare_key, loss_key = jax.random.split(step_key(feed.seed, state.step))
        if axis_name is not None:
            prepare_key = jax.random.fold_in(prepare_key, shard[0])
        batch = feed.prepare(prepare_key, feed.batch(data, state.step, shard))
        return step.packed(state, fixed, batch, loss_key)

    most = MOST_STEPS if feed.resident else 1

    def run(state: State, fixed: PyTree, data: PyTree, num_steps: Array | int):
        state = step.pack(state)
        shapes, form = jax.tree.flatten(jax.eval_shape(one, state, fixed, data).metrics)

        def body(i: Array, carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
            state, bad, metrics = carry
            result = one(state, fixed, data)
            row = jnp.stack(jax.tree.leaves(result.metrics))  # one write a step
            return (
                result.state,
                lax.dynamic_update_index_in_dim(bad, result.bad, i, 0),
                lax.dynamic_update_index_in_dim(metrics, row, i, 0),
            )

        start = (state, jnp.zeros((most,), jnp.int32), jnp.zeros((most, len(shapes))))
        state, bad, metrics = lax.fori_loop(0, num_steps, body, start)
        return step.unpack(state), Report(bad, jax.tree.unflatten(form, list(metrics.T)))

    return run


def step_key(seed: int, step: Int[Array, ""] | int) -> Array:
    """The key of one training step: a pure function of (seed, step)."""
    return jax.random.fold_in(jax.random.key(seed), step)


class JitStrategy:
    """`jit` over a mesh of (data, fsdp) devices; the default.

    The batch is sharded over all devices. Parameters, optimizer state and averages are replicated,
    or, with `fsdp` > 1, each array is sharded along its largest axis that `fsdp` divides.

    Args:
        devices: Devices to use, all by default.
        fsdp: Number of devices over which the state is sharded; it must divide their number.

    Raises:
        ValueError: If `fsdp` does not divide the number of devices.
    """

    axis_name: str | None = None

    def __init__(self, devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1):
        devices = list(jax.devices() if devices is None else devices)
        if fsdp < 1 or len(devices) % fsdp:
            raise ValueError(
                f"fsdp must divide the number of devices, got {fsdp} for {len(devices)}"
            )
        self.num_devices = len(devices)
        self.fsdp = fsdp
        self.small = SMALL if fsdp == 1 else 0  # arrays that are sharded are not concatenated
        grid = np.array(devices).reshape(-1, fsdp)
        self.mesh = Mesh(grid, (AXIS, "fsdp"), axis_types=(AxisType.Auto,) * 2)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batched = NamedSharding(self.mesh, PartitionSpec((AXIS, "fsdp")))

    def shardings(self, state: PyTree) -> PyTree:
        """The sharding of each array of the state (arrays or their shapes)."""
        return jax.tree.map(lambda x: self._sharding(x.shape), state)

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        # Ties go to the last axis: the features.
        fits = [(size, axis) for axis, size in enumerate(shape) if size % self.fsdp == 0]
        if self.fsdp == 1 or not fits or max(fits)[0] < self.fsdp:
            return self.replicated
        before = [None] * max(fits)[1]
        return NamedSharding(self.mesh, PartitionSpec(*before, "fsdp"))

    @property
    def options(self) -> dict[str, Any] | None:
        """Compiler options for the programs of these devices, for `jax.jit`."""
        return compiler_options(self.mesh.devices.flat[0])

    def init(self, init: Callable[..., State], *args: Any) -> State:
        """Call `init(*args)` compiled, with the strategy's shardings for its result, a state."""
        shardings = self.shardings(jax.eval_shape(init, *args))
        return jax.jit(init, out_shardings=shardings, compiler_options=self._quickly())(*args)

    def _quickly(self) -> dict[str, int] | None:
        """Compiler options for a program that runs once: LLVM spends ten times longer on a
        network's random draws than they take to run unoptimized."""
        is_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return {"xla_backend_optimization_level": 0} if is_cpu else None

    def put_batch(self, batch: HostBatch) -> PyTree:
        """This process's rows of a batch (NumPy) -> the `data` of `run`, on the devices."""
        return self.put_global(batch)

    def put_global(self, batch: HostBatch) -> Batch:
        """This process's rows of a batch (NumPy) -> one global array, sharded over devices."""
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.batched, x), dict(batch)
        )

    def put_replicated(self, tree: PyTree) -> PyTree:
        """NumPy arrays, equal in every process -> arrays on every device."""

        def put(x: np.ndarray) -> Array:
            return jax.make_array_from_callback(x.shape, self.replicated, x.__getitem__)

        return jax.tree.map(put, jax.tree.map(np.asarray, tree))

    def compile(self, step: Step, feed: Feed, state: State) -> Run:
        """Compile a loop of steps; the state given to it is donated."""

        def batch(data: PyTree, index: Array, shard: tuple[Any, int]) -> Batch:
            return lax.with_sharding_constraint(feed.batch(data, index, shard), self.batched)

        run = make_run(step, feed._replace(batch=batch), None, 1)
        shardings = (self.shardings(state), self.replicated)
        return jax.jit(
            run, donate_argnums=(0,), out_shardings=shardings, compiler_options=self.options
        )


class PmapStrategy(JitStrategy):
    """`pmap`: one program a device, reduced by `psum`.

    The state is not stacked (`in_axes=None`, `out_axes=None`), so that checkpoints, sampling and
    evaluation are those of `JitStrategy`. Each device draws its own noise, so a run equals a `jit`
    run in distribution, and number for number only where the loss draws nothing.
    """

    axis_name = AXIS

    def __init__(self, devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1):
        if fsdp != 1:
            raise ValueError(f"fsdp needs strategy 'jit'; 'pmap' replicates the state, got {fsdp}")
        super().__init__(devices)

    def compile(self, step: Step, feed: Feed, state: State) -> Run:
        """Compile a loop of steps; the state given to it is donated."""
        run = make_run(step, feed, self.axis_name, self.num_devices)

        # pmap wants at least one mapped argument; a resident set and the state are not.
        def with_index(_: Array, *args: Any):
            return run(*args)

        compiled = jax.pmap(
            with_index,
            axis_name=self.axis_name,
            in_axes=(0, None, None, None if feed.resident else 0, None),
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            donate_argnums=(1,),
        )
        index = np.arange(self.num_devices // jax.process_count())

        def call(state: State, fixed: PyTree, data: PyTree, num_steps: int):
            state, report = compiled(index, state, fixed, data, num_steps)
            return jax.tree.map(self._as_global, state), report

        return call

    def _as_global(self, x: Array) -> Array:
        """One global array of the copies that pmap returns, one for each of several processes."""
        if jax.process_count() == 1:
            return x
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, self.replicated, copies)

    def put_batch(self, batch: HostBatch) -> PyTree:
        """This process's rows of a batch (NumPy) -> [local devices, rows of each, ...]."""
        devices = self.num_devices // jax.process_count()
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), dict(batch))


def make_strategy(
    name: str, devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1
) -> JitStrategy:
    """The strategy of a name.

    Args:
        name: Name of the strategy: "jit" or "pmap".
        devices: Devices to use, all by default.
        fsdp: Number of devices over which the state is sharded ("jit" only).

    Raises:
        ValueError: If the name is unknown, or `fsdp` does not fit the devices or the strategy.
    """
    if name == "jit":
        return JitStrategy(devices, fsdp=fsdp)
    if name == "pmap":
        return PmapStrategy(devices, fsdp=fsdp)
    raise ValueError(f"strategy must be 'jit' or 'pmap', got {name!r}")
