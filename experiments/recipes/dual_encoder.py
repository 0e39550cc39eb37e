"""Dual encoders of pictures and captions: their flags, and the way from flags to an experiment.

The recipe is `dual_encoder`.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxgen.families.dual_encoder import dual_encoder
from jaxgen.models.image_encoder import ImageEncoder
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .images import image_experiment, load_splits
from .shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_conditioning,
)
from .text import TextConfig


@dataclass(frozen=True)
class DualModelConfig:
    """The encoder of images, and what both encoders' vectors are mapped to."""

    channels: int = 32
    """Number of channels of the first convolution; each level has twice as many, up to eight
    times."""
    width: int = 128
    """Width of the vectors that are compared."""
    condition: str = "text"
    """Entry of the data that pictures are compared with: text."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of a dual encoder."""

    sample_every: int = operational(0)
    """Number of steps between pictures, of which a dual encoder has none: 0."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    model: DualModelConfig = DualModelConfig()
    text: TextConfig = TextConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3)
    average: AverageConfig = AverageConfig(decay=0.99)
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    model = config.model
    if model.condition != "text":
        raise ValueError(f"--model.condition must be text, got {model.condition}")
    train, held_out = load_splits(config)
    conditioning = make_conditioning("text", train, config.text)
    assert conditioning is not None
    family = dual_encoder(
        ImageEncoder(model.width, model.channels, jnp.dtype(config.precision)),
        conditioning,
        make_adam(config.optimizer),
        width=model.width,
    )
    return image_experiment(
        config,
        family,
        train,
        held_out,
        loss="contrastive, nats, each pair told apart from the others of its batch",
        preprocessing="2 u / 255 - 1",
    )
