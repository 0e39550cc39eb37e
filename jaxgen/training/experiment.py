"""The value that a recipe builds and the loop trains."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from jaxgen.core import Batch, Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source
from jaxgen.data.transforms import to_uint8
from jaxgen.training.averages import Average
from jaxgen.training.images import grid
from jaxgen.training.pictures import Picture


class Medium(NamedTuple):
    """The kind of the examples, and how samples of them are stored and shown.

    Attributes:
        unit: Name of an example, in the plural: "images".
        at_rest: Function from samples in model space to their stored form, such as uint8 images. It
            is pure, and compiled with the sampler.
        grid: Numbers of rows and columns that training shows.
        picture: `(samples at rest, columns or None) -> uint8 [H, W, 3]`, or None where samples have
            no picture.
        suffix: Suffix of a file with the samples, written beside their picture, or None.
        save: `(path, samples at rest)`, which writes or replaces the file of that suffix.
    """

    unit: str
    at_rest: Callable[[Array], Array]
    grid: tuple[int, int]
    picture: Callable[[np.ndarray, int | None], np.ndarray] | None = None
    suffix: str | None = None
    save: Callable[[Path, np.ndarray], None] | None = None


IMAGES = Medium("images", to_uint8, (8, 8), grid)
"""Images in [-1, 1], kept as bytes and shown in grids."""

VECTORS = Medium("vectors", lambda x: x, (1, 3))
"""Vectors as they are, without a picture of their own."""


class Distances(NamedTuple):
    """How far images are from real ones: what `--measure-every` asks of samples.

    Attributes:
        names: Names of the numbers; the first is a distance, by which checkpoints are ranked.
        of: Function from images uint8 [N, H, W, C] to name -> number.
        protocol: What the numbers are of, for JSON: extractor, reference, counts.
        warning: What a reader of the numbers must know, or None.
    """

    names: tuple[str, ...]
    of: Callable[[np.ndarray], Mapping[str, float]]
    protocol: Mapping[str, Any]
    warning: str | None = None


class Experiment(NamedTuple):
    """A model, its data, and what the family cannot know.

    The pictures that can be drawn follow from the family (`jaxgen.training.pictures.of`).

    Attributes:
        family: Model that is trained.
        pipeline: Pipeline of the training batches.
        held_out: Source of the examples to evaluate on.
        prepare: `(key, raw batch, train) -> batch`, from bytes to model space, augmented when
            training.
        medium: Kind of the examples.
        averages: Moving averages of the parameters to keep, by name; samples and evaluations use
            the first one.
        preview: Quicker sampler of `family.sample`'s signature, for the samples that training
            shows; None for `family.sample`.
        pictures: Pictures that need more than the family, by name: a density beside its data, a
            direction between two classes of examples.
        left_out: Pictures that the flags ask for and that cannot be drawn of these data, by name,
            each with the reason.
        shown: Name of the picture that training shows instead of samples; None for samples, or for
            reconstructions where there is no prior.
        num_evaluated: Number of held-out examples to evaluate, from the first on; None for all.
        protocol: Facts that are stored with every evaluation: bound, dequantization,
            preprocessing...
        files: What a run keeps so that its data mean the same ever after, a palette say, by the
            file's name; beside `Conditioning.files`.
        distances: `(training images, held-out images, config) -> Distances` of samples, for
            `--measure-every`; None where samples are not measured.
    """

    family: Family
    pipeline: Pipeline
    held_out: Source
    prepare: Callable[[Array, Batch, bool], Batch]
    medium: Medium = IMAGES
    averages: Mapping[str, Average] = {}
    preview: Callable[..., Array] | None = None
    pictures: Mapping[str, Picture] = {}
    left_out: Mapping[str, str] = {}
    shown: str | None = None
    num_evaluated: int | None = None
    protocol: Mapping[str, Any] = {}
    files: Mapping[str, bytes] = {}
    distances: Callable[[Source, Source, Any], Distances] | None = None
