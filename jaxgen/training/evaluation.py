"""Samples and held-out metrics from a state, on whatever devices it lies."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import Batch, State
from jaxgen.data.pipeline import eval_batches
from jaxgen.losses.reduce import masked_sum
from jaxgen.metrics.likelihood import Likelihood, likelihood
from jaxgen.training.experiment import Experiment
from jaxgen.training.step import Metrics
from jaxgen.training.strategies import JitStrategy

_SQUARES = "squares of the loss"


def averaged(state: State) -> Mapping[str, Any]:
    """The parameters to sample and evaluate with: the averages where they are kept."""
    return {**state.params, **state.ema}


def make_sample(
    experiment: Experiment, strategy: JitStrategy, *, batch_size: int = 256, preview: bool = False
) -> Callable[[State, jax.Array, int], np.ndarray]:
    """`sample(state, key, num) -> uint8 [num, H, W, C]`, with the averaged parameters.

    At most `batch_size` samples at once, spread over the devices; each batch is one compiled call.
    With `preview` they come from the experiment's quick sampler, where it has one.
    """
    family_sample = (preview and experiment.preview) or experiment.family.sample

    def draw(params: Any, model_state: Any, key: jax.Array, num: int, condition: Any):
        x = family_sample(params, model_state, key, num, condition=condition)
        return experiment.to_images(x) if experiment.samples_are_images else x

    compiled = jax.jit(draw, static_argnums=3, out_shardings=strategy.batched)

    def sample(state: State, key: jax.Array, num: int) -> np.ndarray:
        if num < 1:
            raise ValueError(f"the number of samples must be at least 1, got {num}")
        devices = strategy.num_devices
        size = -(-min(num, max(batch_size, devices)) // devices) * devices
        conditions = None
        if experiment.sample_condition is not None:
            conditions = np.asarray(experiment.sample_condition(-(-num // size) * size))
        images = []
        for index, begin in enumerate(range(0, num, size)):
            condition = None if conditions is None else conditions[begin : begin + size]
            x = compiled(
                averaged(state),
                state.model_state,
                jax.random.fold_in(key, index),
                size,
                condition,
            )
            images.append(_to_host(x))
        return np.concatenate(images)[:num]

    return sample


def make_picture(
    experiment: Experiment, name: str
) -> Callable[[State, jax.Array, int, int], np.ndarray]:
    """`draw(state, key, rows, columns) -> uint8 [N, H, W, C]`, one of the experiment's pictures.

    Raises:
        ValueError: if the experiment has no such picture; `draw`, for rows or columns below 1.
    """
    if name not in experiment.pictures:
        raise ValueError(
            f"--picture must be 'samples' or one of {sorted(experiment.pictures)}, got {name!r}"
        )
    picture = experiment.pictures[name]

    def pixels(params: Any, model_state: Any, raw: Batch, key: jax.Array, rows: int, columns: int):
        prepare_key, draw_key = jax.random.split(key)
        batch = experiment.prepare(prepare_key, raw, False)
        return experiment.to_images(picture(params, model_state, batch, draw_key, rows, columns))

    compiled = jax.jit(pixels, static_argnums=(4, 5))

    def draw(state: State, key: jax.Array, rows: int, columns: int) -> np.ndarray:
        if rows < 1 or columns < 1:
            raise ValueError(f"a picture needs rows and columns, got {rows} and {columns}")
        raw = next(eval_batches(experiment.held_out, rows * columns))
        del raw["mask"]
        return _to_host(compiled(averaged(state), state.model_state, raw, key, rows, columns))

    return draw


def make_evaluate(
    experiment: Experiment, strategy: JitStrategy, seed: int, *, batch_size: int = 128
) -> Callable[[State], dict[str, float]]:
    """`evaluate(state) -> metrics`: means over the held-out examples, averaged parameters.

    The noise of the i-th batch is a function of (seed, i): two models are compared on the same.
    Of a family with a `log_prob` there is also `standard_error`, of the mean loss, from the spread
    over the examples.
    """
    size = -(-batch_size // strategy.num_devices) * strategy.num_devices

    def totals(params: Any, model_state: Any, raw: Batch, key: jax.Array):
        prepare_key, loss_key = jax.random.split(key)
        mask = raw["mask"]
        batch = experiment.prepare(prepare_key, {k: raw[k] for k in raw if k != "mask"}, False)
        batch = {**batch, "mask": mask}
        loss, aux = experiment.family.evaluate(params, model_state, batch, loss_key, train=False)
        found = {"loss": loss, **aux.metrics}
        if experiment.family.bound is not None:
            found[_SQUARES] = jnp.square(loss)
        return {k: masked_sum(v, mask) for k, v in found.items()}

    compiled = jax.jit(totals, out_shardings=strategy.replicated)

    def evaluate(state: State) -> dict[str, float]:
        params = averaged(state)
        sums: Metrics = {}
        batches = eval_batches(
            experiment.held_out,
            size,
            limit=experiment.num_evaluated,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for index, raw in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(seed), index)
            pairs = compiled(params, state.model_state, strategy.put_global(raw), key)
            sums = pairs if not sums else jax.tree.map(jnp.add, sums, pairs)
        count = float(sums["loss"][1])
        means = {name: float(total) / float(weight) for name, (total, weight) in sums.items()}
        if _SQUARES in means:
            variance = max(0.0, means.pop(_SQUARES) - means["loss"] ** 2)
            if count > 1:
                means["standard_error"] = math.sqrt(variance / (count - 1))
        return means

    return evaluate


def held_out_likelihood(experiment: Experiment, metrics: Mapping[str, float]) -> Likelihood | None:
    """The likelihood among what `make_evaluate` found, with its protocol; None where none is."""
    if experiment.family.bound is None:
        return None
    return likelihood(
        experiment.family.bound,
        nats=metrics["loss"],
        standard_error=metrics.get("standard_error"),
        num_examples=min(
            len(experiment.held_out), experiment.num_evaluated or len(experiment.held_out)
        ),
        data=experiment.held_out.protocol,
    )


def _to_host(x: jax.Array) -> np.ndarray:
    """A sharded array as NumPy, in every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)
