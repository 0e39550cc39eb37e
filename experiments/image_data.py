"""The images of recipes that may binarize them: sources, and how a batch is prepared."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.data import binarize as binary
from jaxgen.data.sources import Source, load
from jaxgen.data.transforms import prepare_images
from jaxgen.training.config import DataConfig

Binarize = Literal["none", "threshold", "static", "dynamic"]
PREPROCESSING = {
    "none": "2 u / 255 - 1",
    "threshold": "1 where u > 127, else 0",
    "static": "one Bernoulli(u / 255) draw of every pixel, of this package, for the whole run",
    "dynamic": "a fresh Bernoulli(u / 255) draw of every pixel for each batch; one of the held-out "
    "examples, fixed by the seed",
}


class Data(NamedTuple):
    """The examples of a run and how a batch of them is prepared."""

    train: Source
    held_out: Source
    prepare: Callable[..., Any]
    image_shape: tuple[int, int, int]
    preprocessing: str


def load_data(data: DataConfig, binarize: Binarize = "none", *, flip: bool = False) -> Data:
    """Training and held-out examples, binarized as asked for; `flip` mirrors half of what is
    trained on left to right."""
    train, held_out = (
        load(data.name, split, data.dir, resize=data.resize)
        for split in (data.split, data.held_out)
    )
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
