"""What a recipe builds and the loop trains."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from jaxgen.core import Batch, Family, Params
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source

# (params, model_state, batch, key, rows, columns) -> images in model space, row by row, `columns` a
# row. `batch` holds `rows * columns` held-out examples.
Picture = Callable[..., Array]


class SampleFiles(NamedTuple):
    """How samples that are no images are written.

    Attributes:
        suffix: of the file: ".wav".
        save: `(path, samples)`: writes samples, as the family draws them, replacing the file.
        picture: samples -> uint8 [H, W, 3], which goes into a `.png` file beside it.
    """

    suffix: str
    save: Callable[[Path, np.ndarray], None]
    picture: Callable[[np.ndarray], np.ndarray]


class Experiment(NamedTuple):
    """A model, its data and what to say of its numbers.

    Attributes:
        family: the model.
        pipeline: the training batches.
        held_out: the examples that `evaluate` reads.
        prepare: `(key, raw batch, train) -> batch`: bytes to model space, augmented when training.
        to_images: images in model space -> uint8 [N, H, W, C], a pure function.
        samples_are_images: whether samples go through `to_images` too, and to a grid; otherwise
            they are kept as they are, in `.npz` files and those of `sample_files`.
        sample_files: how samples that are no images are written, by `sample` and in training; None
            for `.npz` files only, and nothing in training.
        preview: `family.sample`'s signature, for the grids of training where it should be quicker
            than `family.sample`; None for that.
        ema: decay of the parameters' average.
        ema_of: the networks to average (top-level keys of the parameters); None for all.
        sample_condition: `num -> condition` of `num` samples for a grid, or None.
        grid: rows and columns of the grids of training.
        pictures: what else `sample --picture NAME` can draw.
        grid_picture: the one of them that training writes in the place of a grid of samples.
        watch: a row of averaged metrics -> warnings for the user, none where all is well.
        check: raises a ValueError for parameters, read from a checkpoint, that cannot be used.
        num_evaluated: the first so many held-out examples are evaluated; None for all.
        protocol: what a number from `evaluate` must name: bound, dequantization, preprocessing...
    """

    family: Family
    pipeline: Pipeline
    held_out: Source
    prepare: Callable[[Array, Batch, bool], Batch]
    to_images: Callable[[Array], Array]
    samples_are_images: bool = True
    sample_files: SampleFiles | None = None
    preview: Callable[..., Array] | None = None
    ema: float = 0.9999
    ema_of: tuple[str, ...] | None = None
    sample_condition: Callable[[int], Array] | None = None
    grid: tuple[int, int] = (8, 8)
    pictures: Mapping[str, Picture] = {}
    grid_picture: str | None = None
    watch: Callable[[Mapping[str, float]], Sequence[str]] = lambda metrics: ()
    check: Callable[[Params], None] = lambda params: None
    num_evaluated: int | None = None
    protocol: Mapping[str, Any] = {}
