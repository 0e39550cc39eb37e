"""Training on arrays in memory, without a run directory.

`docs/guides/own-network.md` shows it with networks of Flax Linen, Flax NNX and Equinox.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxgen.core import Batch, Family, PyTree, State, Variables
from jaxgen.data.arrays import as_stored
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource
from jaxgen.training.averages import Average
from jaxgen.training.evaluation import variables_of
from jaxgen.training.guard import guarded_names
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import MOST_STEPS, Feed, JitStrategy, Run, make_strategy
from jaxgen.training.tally import Tally


class Fit(NamedTuple):
    """A fitted model.

    Attributes:
        variables: Variables for the family's functions, with averaged parameters where there is an
            average.
        state: Whole training state, from which another call can continue.
        metrics: Name -> mean over the examples of all steps of this call.
        num_skipped: Number of steps that were skipped because they were not finite.
    """

    variables: Variables
    state: State
    metrics: dict[str, float]
    num_skipped: int


# (state, number of steps) -> (state, metrics, number of skipped steps, the first one)
Steps = Callable[[State, int], tuple[State, dict[str, float], int, tuple[int, int]]]


def fit(
    family: Family,
    data: Mapping[str, Array | np.ndarray],
    num_steps: int,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    averages: Mapping[str, Average] | None = None,
    accumulate: int = 1,
    strategy: JitStrategy | None = None,
    state: State | None = None,
) -> Fit:
    """Train a family on examples in memory.

    The steps are those of a run: the same step, batches as a function of (seed, step), and one
    compilation. Nothing is written.

    Args:
        family: Model to train.
        data: Name -> [N, ...], prepared examples as the family's losses expect them.
        num_steps: Number of steps.
        batch_size: Number of examples in a step, drawn in epochs; None for all of them at every
            step, in their order.
        seed: Seed of the parameters, the order of the examples and the noise.
        averages: Moving averages of the parameters to keep, by name; None for none.
        accumulate: Number of micro-batches in an update.
        strategy: Strategy whose devices compute; the first device alone by default.
        state: Training state to continue from; a new one by default. Its buffers are donated.

    Returns:
        The fitted model.

    Raises:
        ValueError: If an argument is out of range, entries of `data` differ in length, or 32 bits
            cannot hold their numbers.
        TypeError: If an entry of `data` is not of real numbers.
        FloatingPointError: If every step was skipped because it was not finite.

    Examples:
        >>> chain_, adam = chain(cosine_betas(1000)), optax.adam(1e-3)  # doctest: +SKIP
        >>> family = diffusion(MyNetwork(), chain_, adam, image_shape=(8, 8, 1))  # doctest: +SKIP
        >>> fitted = fit(family, {"image": images}, 1000, batch_size=64)  # doctest: +SKIP
        >>> samples = family.sample(fitted.variables, jax.random.key(0), 16)  # doctest: +SKIP
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    strategy = strategy or make_strategy("jit", jax.devices()[:1])
    first, run = prepare_fit(
        family,
        data,
        batch_size=batch_size,
        seed=seed,
        averages=averages,
        accumulate=accumulate,
        strategy=strategy,
    )
    state, metrics, num_skipped, bad = run(first if state is None else state, num_steps)
    if num_skipped == num_steps:
        name = guarded_names(family, state.params, averages or {})[bad[1]]
        raise FloatingPointError(f"all {num_steps} steps were skipped: {name} is not finite")
    variables = variables_of(state, averages or {}, family.fixed)
    return Fit(variables, state, metrics, num_skipped)


def prepare_fit(
    family: Family,
    data: Mapping[str, Array | np.ndarray],
    *,
    batch_size: int | None = None,
    seed: int = 0,
    averages: Mapping[str, Average] | None = None,
    accumulate: int = 1,
    strategy: JitStrategy,
) -> tuple[State, Steps]:
    """The first state and the compiled steps of `fit`, which can be called repeatedly.

    Args:
        family: Model to train.
        data: Name -> [N, ...], prepared examples as the family's losses expect them.
        batch_size: Number of examples in a step, drawn in epochs; None for all of them at every
            step, in their order.
        seed: Seed of the parameters, the order of the examples and the noise.
        averages: Moving averages of the parameters to keep, by name; None for none.
        accumulate: Number of micro-batches in an update.
        strategy: Strategy whose devices compute.

    Returns:
        The first state, and `run(state, num_steps) -> (state, metrics, number of skipped steps,
        (step of this call, index in guarded_names) of the first of them)`. The state given to `run`
        is donated.

    Raises:
        ValueError: If an argument is out of range, or entries of `data` differ in length.
    """
    arrays = {name: as_stored(np.asarray(v), f"data[{name!r}]") for name, v in data.items()}
    _check(arrays)
    batch, first_batch = _batches(arrays, batch_size, seed)
    fixed = strategy.put_replicated(family.fixed)
    first = strategy.init(
        lambda key, batch, fixed: init_state(family, key, batch, averages=averages, fixed=fixed),
        jax.random.key(seed),
        strategy.put_global(first_batch),
        fixed,
    )
    step = make_step(
        family,
        averages=averages,
        accumulate=accumulate,
        axis_name=strategy.axis_name,
        small=strategy.small,
    )
    feed = Feed(batch, lambda key, raw: raw, seed, resident=True)
    compiled: Run = strategy.compile(step, feed, first)
    resident = strategy.put_replicated(arrays)

    def run(state: State, num_steps: int) -> tuple[State, dict[str, float], int, tuple[int, int]]:
        tally, first_bad = Tally(), (-1, -1)
        for begin in range(0, num_steps, MOST_STEPS):
            count = min(MOST_STEPS, num_steps - begin)
            state, report = compiled(state, fixed, resident, count)
            added = tally.add(jax.device_get(report), begin, count)
            if added.first_bad is not None and first_bad[0] < 0:
                first_bad = added.first_bad
        return state, tally.means(), tally.skipped, first_bad

    return first, run


def _batches(
    arrays: Mapping[str, np.ndarray], batch_size: int | None, seed: int
) -> tuple[Callable[[PyTree, Array, tuple], Batch], dict[str, np.ndarray]]:
    """`Feed.batch`, and the batch of step 0."""
    if batch_size is None:

        def whole(data: PyTree, step: Array, shard: tuple) -> Batch:
            return {name: _part(values, shard) for name, values in data.items()}

        return whole, dict(arrays)
    size = len(next(iter(arrays.values())))
    pipeline = Pipeline(ArraySource({"index": np.arange(size)}), batch_size, seed=seed)

    def gather(data: PyTree, step: Array, shard: tuple) -> Batch:
        rows = _part(pipeline.indices(step), shard)
        return {name: values[rows] for name, values in data.items()}

    first = pipeline.host_batch(0)["index"]
    return gather, {name: values[first] for name, values in arrays.items()}


def _part(values: Array, shard: tuple) -> Array:
    """A device's rows of a global batch."""
    index, count = shard
    size = values.shape[0] // count
    return jax.lax.dynamic_slice_in_dim(values, index * size, size) if count > 1 else values


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    lengths: Sequence[int] = sorted({len(values) for values in arrays.values()})
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"data must have entries of one length, at least 1, got {lengths}")
