"""Samples, pictures and held-out metrics from a model's variables, wherever these are placed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.checks import check_memory
from jaxgen.core import Batch, PyTree, State, Variables
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import nbytes
from jaxgen.data.transforms import to_uint8
from jaxgen.distributions.elementwise import NO_CLASS
from jaxgen.losses.reduce import weighted_sum
from jaxgen.training import picture_labels, pictures
from jaxgen.training.averages import Average
from jaxgen.training.experiment import IMAGES, Experiment, Medium
from jaxgen.training.likelihood import HeldOutLikelihood, likelihood
from jaxgen.training.step import Metrics
from jaxgen.training.strategies import JitStrategy

RAW = "raw"
"""The name by which one asks for the trained parameters in the place of an average."""
_SPREAD = "squared deviations from the batch's mean loss"


def variables_of(
    state: State,
    averages: Mapping[str, Average],
    fixed: PyTree = None,
    name: str | None = None,
) -> Variables:
    """The variables for sampling and evaluation: with averaged parameters where they are kept.

    Args:
        state: Training state.
        averages: Averages that the state keeps, by name.
        fixed: Pretrained arrays of the family.
        name: Name of the average to use, "raw" for the parameters as they are trained; the first
            average by default.

    Raises:
        ValueError: If no average has the name.
    """
    if name is not None and name not in (*averages, RAW):
        raise ValueError(f"average must be one of {[*sorted(averages), RAW]}, got {name!r}")
    if name == RAW:
        return Variables(state.params, state.state, fixed if fixed is not None else {})
    name = name if name is not None else next(iter(averages), None)
    averaged = {} if name is None else state.averages[name]
    return Variables({**state.params, **averaged}, state.state, fixed if fixed is not None else {})


def sample_program(
    experiment: Experiment, strategy: JitStrategy, *, preview: bool = False
) -> Callable[..., Any]:
    """The compiled `(variables, key, num, condition) -> (samples at rest, bool[num])` of one batch.

    The second says of each sample whether all of it is finite in model space: at rest a NaN may be
    a byte like any other.

    Args:
        experiment: Experiment whose family is sampled.
        strategy: Strategy whose devices compute.
        preview: Whether to use the experiment's quick sampler, where it has one.

    Raises:
        ValueError: If the family has no prior.
    """
    family_sample = (preview and experiment.preview) or experiment.family.sample
    if family_sample is None:
        raise ValueError(
            "this model has no prior to sample from: draw one of the pictures "
            f"{sorted(drawable(experiment))}"
        )

    def draw(variables: Variables, key: jax.Array, num: int, condition: Any):
        x = family_sample(variables, key, num, condition=condition)
        return experiment.medium.at_rest(x), finite(x)

    return jax.jit(
        draw, static_argnums=2, out_shardings=strategy.batched, compiler_options=strategy.options
    )


def make_sample(
    experiment: Experiment,
    strategy: JitStrategy,
    *,
    batch_size: int = 256,
    preview: bool = False,
) -> Callable[..., np.ndarray]:
    """`sample(variables, key, num, conditions=None) -> samples at rest`, as uint8 [num, H, W, C].

    Each batch is one compiled call, spread over the devices. The conditions of a conditional family
    are its sweep or those given, [rows, *shape], each for an equal number of consecutive samples.

    Args:
        experiment: Experiment whose family is sampled.
        strategy: Strategy whose devices compute.
        batch_size: Greatest number of samples in a batch.
        preview: Whether to use the experiment's quick sampler, where it has one.

    Raises:
        ValueError: If the family has no prior; by `sample`, if `num` is below 1 or so many samples
            are beyond the machine's memory.
        FloatingPointError: By `sample`, if samples are not finite; says how many.
    """
    compiled = sample_program(experiment, strategy, preview=preview)

    def sample(
        variables: Variables, key: jax.Array, num: int, conditions: np.ndarray | None = None
    ) -> np.ndarray:
        if num < 1:
            raise ValueError(f"the number of samples must be at least 1, got {num}")
        # Samples at rest are about as large as the examples.
        check_memory(f"the number of samples, {num},", nbytes(experiment.held_out, num))
        devices = strategy.num_devices
        size = -(-min(num, max(batch_size, devices)) // devices) * devices
        given = pictures.in_turn(experiment.family, num, conditions)
        samples, all_finite = [], []
        for index, begin in enumerate(range(0, num, size)):
            condition = None if given is None else _filled(given[begin : begin + size], size)
            x, kept = compiled(variables, jax.random.fold_in(key, index), size, condition)
            samples.append(to_host(x))
            all_finite.append(to_host(kept))
        check_finite(np.concatenate(all_finite)[:num], "samples")
        return np.concatenate(samples)[:num]

    return sample


def _filled(conditions: np.ndarray, size: int) -> np.ndarray:
    """A batch of conditions, the last of which is repeated."""
    return conditions[np.minimum(np.arange(size), len(conditions) - 1)]


def drawable(experiment: Experiment) -> Mapping[str, pictures.Picture]:
    """The pictures of an experiment by name: those that its family has, and its own.

    With another medium than images an experiment has only its own.
    """
    general = pictures.of(experiment.family) if experiment.medium.unit == "images" else {}
    return {**general, **experiment.pictures}


def shown(experiment: Experiment) -> str | None:
    """The name of the picture that training shows; None for samples.

    Args:
        experiment: Experiment that is trained.
    """
    if experiment.shown is None and experiment.family.sample is None:
        return "reconstructions"
    return experiment.shown


def why_nothing_is_shown(experiment: Experiment) -> str | None:
    """The reason why training can show neither samples nor a picture; None where it can.

    Args:
        experiment: Experiment that is trained.
    """
    name, conditioning = shown(experiment), experiment.family.conditioning
    if name is None:
        if conditioning is not None and conditioning.sweep is None:
            return f"of {conditioning.key!r} there is no sweep of conditions"
        return None
    if name in drawable(experiment):
        return None
    return experiment.left_out.get(name, f"the family cannot draw {name!r}")


def make_picture(
    experiment: Experiment, name: str
) -> Callable[[Variables, jax.Array, int, int], np.ndarray]:
    """`draw(variables, key, rows, columns) -> uint8 [N, H, W, C]`, one of the pictures.

    Args:
        experiment: Experiment to draw.
        name: Name of the picture, a key of `drawable(experiment)`.

    Raises:
        ValueError: If the experiment has no such picture; by `draw`, if `rows` or `columns` is
            below 1.
        FloatingPointError: By `draw`, if images of the picture are not finite; says how many.
    """
    choices = drawable(experiment)
    if name in experiment.left_out:
        raise ValueError(f"--picture {name} cannot be drawn: {experiment.left_out[name]}")
    if name not in choices:
        raise ValueError(f"--picture must be 'samples' or one of {sorted(choices)}, got {name!r}")
    picture = choices[name]

    def pixels(variables: Variables, raw: Batch, key: jax.Array, rows: int, columns: int):
        prepare_key, draw_key = jax.random.split(key)
        batch = experiment.prepare(prepare_key, raw, False)
        images = picture(variables, batch, draw_key, rows, columns)
        return to_uint8(images), finite(images)

    compiled = jax.jit(pixels, static_argnums=(3, 4))

    def draw(variables: Variables, key: jax.Array, rows: int, columns: int) -> np.ndarray:
        if rows < 1 or columns < 1:
            raise ValueError(f"a picture needs rows and columns, got {rows} and {columns}")
        raw = next(eval_batches(experiment.held_out, rows * columns))
        del raw["weight"]
        images, kept = compiled(variables, raw, key, rows, columns)
        check_finite(to_host(kept), f"images of the picture {name!r}")
        return to_host(images)

    return draw


def grid_of(experiment: Experiment) -> tuple[int, int]:
    """The rows and columns that training shows: one row a condition for a conditional family."""
    rows, columns = experiment.medium.grid
    conditioning = experiment.family.conditioning
    if experiment.medium.unit == "images" and conditioning and conditioning.sweep is not None:
        rows = len(conditioning.sweep)
    return rows, columns


class Shown(NamedTuple):
    """What training shows at a step.

    Attributes:
        samples: Samples at rest, or the images of a picture.
        columns: Number of columns of their grid.
        medium: Kind of what is shown.
    """

    samples: np.ndarray
    columns: int
    medium: Medium


def make_show(
    experiment: Experiment, strategy: JitStrategy, seed: int
) -> Callable[[Variables], Shown] | None:
    """`show(variables)`: the samples or the picture that training shows; None for neither.

    Args:
        experiment: Experiment that is trained, of which something can be shown.
        strategy: Strategy whose devices compute.
        seed: Seed of the noise.
    """
    key, (rows, columns) = jax.random.key(seed), grid_of(experiment)
    family, name = experiment.family, shown(experiment)
    if name is not None:
        picture = make_picture(experiment, name)
        labels = picture_labels.of_picture(family, name, rows, columns)
        medium = picture_labels.labelled(IMAGES, labels)
        return lambda variables: Shown(picture(variables, key, rows, columns), columns, medium)
    if experiment.medium.picture is None:
        return None
    sample = make_sample(experiment, strategy, preview=True)
    labels = picture_labels.of_samples(picture_labels.names_of(family), rows * columns, columns)
    medium = picture_labels.labelled(experiment.medium, labels)
    return lambda variables: Shown(sample(variables, key, rows * columns), columns, medium)


def evaluate_program(experiment: Experiment, strategy: JitStrategy) -> Callable[..., Metrics]:
    """The compiled `(variables, raw batch with its weight, key) -> (total, weight) by name`.

    Args:
        experiment: Experiment to evaluate.
        strategy: Strategy whose devices compute.
    """

    def totals(variables: Variables, raw: Batch, key: jax.Array):
        prepare_key, loss_key = jax.random.split(key)
        weight = raw["weight"]
        batch = experiment.prepare(prepare_key, {k: raw[k] for k in raw if k != "weight"}, False)
        batch = {**batch, "weight": weight}
        loss, metrics = experiment.family.evaluate(variables, batch, loss_key)
        values = {"loss": loss, **metrics}
        if experiment.family.bound is not None:
            total, count = weighted_sum(loss, weight)
            values[_SPREAD] = jnp.square(loss - total / jnp.maximum(count, 1))
        return {k: weighted_sum(v, weight) for k, v in values.items()}

    return jax.jit(totals, out_shardings=strategy.replicated, compiler_options=strategy.options)


def make_evaluate(
    experiment: Experiment, strategy: JitStrategy, seed: int, *, batch_size: int = 128
) -> Callable[[Variables], dict[str, float]]:
    """`evaluate(variables) -> metrics`: means over the held-out examples.

    The noise of the i-th batch is a function of (seed, i), so that models are compared on equal
    noise. For a family with a `bound` the metrics include `standard_error`, that of the mean loss,
    from the spread over the examples.

    Args:
        experiment: Experiment to evaluate.
        strategy: Strategy whose devices compute.
        seed: Seed of the noise.
        batch_size: Number of examples in a batch, rounded up to a multiple of the devices.
    """
    size = -(-batch_size // strategy.num_devices) * strategy.num_devices

    compiled = evaluate_program(experiment, strategy)

    def evaluate(variables: Variables) -> dict[str, float]:
        rows = []
        batches = eval_batches(
            experiment.held_out,
            size,
            limit=experiment.num_evaluated,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for index, raw in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(seed), index)
            rows.append(compiled(variables, strategy.put_global(raw), key))
        return _means(jax.device_get(rows))

    return evaluate


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The means over all batches, added in float64, and the standard error of the loss."""
    pairs = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    sums = {name: values.sum(axis=0) for name, values in pairs.items()}
    spread = sums.pop(_SPREAD, None)
    means = {name: float(total[0] / total[1]) for name, total in sums.items()}
    if spread is not None and spread[1] > 1:
        within, count = float(spread[0]), float(spread[1])
        totals, weights = pairs["loss"].T
        between = np.square(totals / np.maximum(weights, 1) - means["loss"]) @ weights
        means["standard_error"] = float(np.sqrt((within + between) / count / (count - 1)))
    return means


def held_out_likelihood(
    experiment: Experiment, metrics: Mapping[str, float]
) -> HeldOutLikelihood | None:
    """The likelihood among an evaluation's metrics, with its protocol; None if there is none.

    Args:
        experiment: Experiment that was evaluated.
        metrics: Metrics from the function of `make_evaluate`.
    """
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


def finite(x: jax.Array) -> jax.Array:
    """Whether each example is finite, and no class is `NO_CLASS`: bool[N].

    Args:
        x: Examples [N, ...] in model space, inside of a compiled function or not.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = jnp.where(x == NO_CLASS, jnp.nan, 0.0)
    return jnp.isfinite(x).reshape(len(x), -1).all(axis=1)


def check_finite(kept: np.ndarray, what: str) -> None:
    """Checks that all of what a model computed is finite.

    Args:
        kept: Whether each example is finite, bool[N].
        what: Name of the examples, in the plural.

    Raises:
        FloatingPointError: If some are not finite; says how many.
    """
    lost = len(kept) - int(kept.sum())
    if lost:
        raise FloatingPointError(
            f"{lost} of {len(kept)} {what} are not finite: what the model computes from its "
            "parameters is beyond its numbers; none of them is written"
        )


def to_host(x: jax.Array) -> np.ndarray:
    """A sharded array as NumPy, in every process.

    Args:
        x: Array on any devices.
    """
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)
