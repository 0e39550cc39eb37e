"""What a recipe builds and the loop trains."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxgen.core import Batch, Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source


class Experiment(NamedTuple):
    """A model, its data and what to say of its numbers.

    Attributes:
        family: the model.
        pipeline: the training batches.
        held_out: the examples that `evaluate` reads.
        prepare: `(key, raw batch, train) -> batch`: bytes to model space, augmented when training.
        to_images: samples in model space -> uint8 [N, H, W, C], a pure function.
        preview: `family.sample`'s signature, for the grids of training where it should be quicker
            than `family.sample`; None for that.
        ema: decay of the parameters' average.
        sample_condition: `num -> condition` of `num` samples for a grid, or None.
        num_evaluated: the first so many held-out examples are evaluated; None for all.
        protocol: what a number from `evaluate` must name: bound, dequantization, preprocessing...
    """

    family: Family
    pipeline: Pipeline
    held_out: Source
    prepare: Callable[[Array, Batch, bool], Batch]
    to_images: Callable[[Array], Array]
    preview: Callable[..., Array] | None = None
    ema: float = 0.9999
    sample_condition: Callable[[int], Array] | None = None
    num_evaluated: int | None = None
    protocol: Mapping[str, Any] = {}
