"""The images of recipes that may binarize them: sources, and how a batch is prepared."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import Batch, Family
from jaxgen.data import binarize as binary
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source, decode, load_pair
from jaxgen.data.transforms import prepare_images
from jaxgen.distributions.likelihoods import Likelihood
from jaxgen.metrics.measure import distances_from_training
from jaxgen.training.experiment import Experiment

from .shared import make_averages, protocol
from .text import tokenize_pair

Binarize = Literal["none", "threshold", "static", "dynamic"]
PREPROCESSING = {
    "none": "2 u / 255 - 1",
    "threshold": "1 where u > 127, else 0",
    "static": "one Bernoulli(u / 255) draw of every pixel, of this package, for the whole run",
    "dynamic": "a fresh Bernoulli(u / 255) draw of every pixel for each batch; one of the held-out "
    "examples, fixed by the seed",
}


class Data(NamedTuple):
    """The examples of a run and how a batch of them is prepared.

    Attributes:
        train: The examples to train on.
        held_out: The examples to evaluate on.
        prepare: `(key, raw batch, train) -> batch` in model space.
        image_shape: (H, W, C) of an example.
        preprocessing: What `prepare` does to a byte u, in words.
    """

    train: Source
    held_out: Source
    prepare: Callable[..., Any]
    image_shape: tuple[int, int, int]
    preprocessing: str


def load_splits(config: Any) -> tuple[Source, Source]:
    """The images to train on and those to evaluate on, as they are at rest.

    Args:
        config: Flags of a recipe: data; where the model is told a text, also run_dir and text.
    """
    data = config.data
    pair = load_pair(data.name, (data.split, data.held_out), data.dir, resize=data.resize)
    reads_text = getattr(getattr(config, "model", None), "condition", None) == "text"
    return tokenize_pair(config, *pair) if reads_text else pair


def image_experiment(
    config: Any, family: Family, train: Source, held_out: Source, **entries: Any
) -> Experiment:
    """The experiment of a family on whole images, mirrored by `config.flip`.

    Args:
        config: Flags of a recipe: flip, batch_size, seed, average and evaluation.
        family: Family of the flags.
        train: Examples to train on.
        held_out: Examples to evaluate on.
        entries: What the protocol says of the recipe's own.
    """
    num_examples = config.evaluation.num_examples
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=config.flip),
        averages=make_averages(config.average, config.batch_size),
        distances=distances_from_training,
        num_evaluated=num_examples,
        protocol=protocol(held_out, num_examples, **entries),
    )


def load_data(config: Any, binarize: Binarize = "none", *, flip: bool = False) -> Data:
    """Training and held-out examples, and their preparation.

    Args:
        config: The flags of a recipe (`load_splits`).
        binarize: The way to make two values of 256.
        flip: Whether half of what is trained on is mirrored left to right.
    """
    train, held_out = load_splits(config)
    if binarize == "static":
        train, held_out = binary.static(train), binary.static(held_out)

    finish = prepare_images(flip=flip)

    def prepare(key, raw, train):
        image = jnp.asarray(raw["image"])
        if binarize == "threshold":
            image = binary.threshold(image)
        elif binarize == "dynamic":
            image = binary.dynamic(key, image)
        return finish(jax.random.fold_in(key, 1), {**raw, "image": image}, train)

    height, width, channels = train.spec["image"][0]
    return Data(train, held_out, prepare, (height, width, channels), PREPROCESSING[binarize])


def check_support(likelihood: Likelihood, data: Data) -> None:
    """Raise ValueError, before training, if a batch is not what the likelihood is of."""
    raw = data.train[np.arange(min(len(data.train), 64))]
    likelihood.check(np.asarray(data.prepare(jax.random.key(0), raw, False)["image"]))


def examples_of(data: Data, label: int, most: int = 500) -> Callable[[], Batch]:
    """A function that returns the prepared batch of a class's held-out examples.

    Args:
        data: The examples.
        label: The class.
        most: The greatest number of examples, from the first on.
    """

    def batch() -> Batch:
        source = decode(data.held_out)
        rows = np.flatnonzero(source.arrays["label"] == label)[:most]
        if not rows.size:
            raise ValueError(f"no held-out example of {source.name} has the label {label}")
        return data.prepare(jax.random.key(label), source[rows], False)

    return batch
