"""What the flow recipes on images share: their flags, and the way from flags to an experiment.

The recipes are `realnvp_digits`, `realnvp_cifar`, `glow_mnist` and `glow_cifar`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.recipes.images import load_splits
from experiments.recipes.shared import (
    AdamConfig,
    AverageConfig,
    Conditions,
    EvaluationConfig,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)
from jaxgen.core import Batch, Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source
from jaxgen.data.transforms import prepare_images, to_model_space
from jaxgen.families.flow import ROUND_TRIP, flow
from jaxgen.models.bijectors.algebra import Logit, chain
from jaxgen.models.glow import glow
from jaxgen.models.realnvp import realnvp_image
from jaxgen.training import pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.pictures import Picture


@dataclass(frozen=True)
class ModelConfig:
    """The flow."""

    network: Literal["realnvp", "glow"] = "realnvp"
    """Kind of flow: RealNVP's couplings under checkerboard and channel masks, or Glow's steps."""
    levels: int = 2
    """Number of scales of the image; all but the last factor out half of the variables."""
    steps: int = 32
    """Number of steps of a level (glow)."""
    couplings: int = 3
    """Number of couplings of each mask in a level (realnvp)."""
    blocks: int = 8
    """Number of residual blocks of each coupling's network (realnvp)."""
    width: int = 64
    """Hidden channels of the couplings' networks (realnvp: of the first level)."""
    coupling: Literal["affine", "additive"] = "affine"
    """Kind of Glow's couplings."""
    lu: bool = True
    """Make Glow's 1x1 convolutions of LU products."""
    logit: bool = True
    """Take the data through a logit first, as RealNVP does."""
    condition: Conditions = "none"
    """Condition of the flow (glow)."""
    remat: bool = operational(False)
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of flows on images."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3, warmup_steps=100, clip_norm=100.0)
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Standard deviation of the latents that samples come from."""
    direction: tuple[int, int] = operational((3, 8))
    """Classes of `--picture direction`: from examples of the first towards the second."""
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: bijector, family, data."""
    train, held_out = load_splits(config.data)
    shape = train.spec["image"][0]
    family = flow(
        make_model(replace(config, precision="float32"), shape),
        make_adam(config.optimizer),
        event_shape=shape,
        training_model=make_model(config, shape),
        conditioning=make_conditioning(config.model.condition, train),
        temperature=config.temperature,
        round_trip=True,
    )
    drawn, left_out = direction_picture(config, family, train)
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=config.flip),
        averages=make_averages(config.average, config.batch_size),
        pictures=drawn,
        left_out=left_out,
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            held_out,
            config.evaluation.num_examples,
            bits_per_dim="bound of the 8-bit data: exact density of uniformly dequantized data, "
            "one draw",
            round_trip=ROUND_TRIP,
            preprocessing="(u + U[0, 1)) / 256" + (", logit" if config.model.logit else ""),
        ),
    )


def make_model(config: Config, shape: tuple[int, ...]) -> Any:
    """The bijector of the flags."""
    model, dtype = config.model, jnp.dtype(config.precision)
    height, width, _ = shape
    halvings = model.levels if model.network == "glow" else model.levels - 1
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"--model.levels {model.levels} needs sides that 2^{halvings} divides, the images "
            f"have {height}x{width}: give --data.resize or fewer levels"
        )
    if model.network == "glow":
        body = glow(
            model.levels,
            model.steps,
            model.width,
            coupling=model.coupling,
            lu=model.lu,
            remat=model.remat,
            dtype=dtype,
        )
    else:
        if model.condition != "none":
            raise ValueError("--model.condition needs --model.network glow")
        body = realnvp_image(
            model.levels,
            model.width,
            model.blocks,
            num_couplings=model.couplings,
            remat=model.remat,
            dtype=dtype,
        )
    return chain(Logit(), body) if model.logit else body


def direction_picture(
    config: Config, family: Family, train: Source
) -> tuple[dict[str, Picture], dict[str, str]]:
    """The picture `direction` between two classes by name, where the data has classes.

    Returns:
        The picture, or nothing; and, by its name, why it is left out, or nothing.
    """
    classes = train.num_classes
    if classes is None:
        return {}, {}
    if not all(0 <= label < classes for label in config.direction):
        named = " ".join(map(str, config.direction))
        return {}, {"direction": f"--direction must be classes in 0..{classes - 1}, got {named}"}

    def examples(label: int) -> Callable[[], Batch]:
        return lambda: _examples(train, label)

    groups = (examples(label) for label in config.direction)
    return {"direction": pictures.attribute_direction(family, *groups)}, {}


def _examples(source: Source, label: int, most: int = 64) -> Batch:
    """The first examples of a class, prepared."""
    batch = source[np.arange(min(len(source), 100 * most))]
    rows = np.flatnonzero(batch["label"] == label)[:most]
    chosen = {name: jnp.asarray(values[rows]) for name, values in batch.items()}
    return {**chosen, "image": to_model_space(chosen["image"])}
