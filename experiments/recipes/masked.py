"""What the recipes of masked image generation (MaskGIT) share.

The recipes are `maskgit_digits`, over the values of pixels, and `maskgit`, over the codes of a
first stage.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from jaxgen.conditioning.base import Conditioning
from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.families.latent import on_latents
from jaxgen.families.masked import Sampler, masked
from jaxgen.metrics.measure import distances_from_training
from jaxgen.models.masked_transformer import MaskedTransformer
from jaxgen.noise.masking import Schedule, cosine, power
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.runs import open_run

from .first_stage import check_finished, discrete_codec
from .images import image_experiment, load_splits
from .shared import (
    AdamConfig,
    AverageConfig,
    Conditions,
    EvaluationConfig,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)
from .text import TextConfig

ScheduleName = Literal["cosine", "linear", "square", "cubic", "square_root"]
SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine,
    "linear": power(1.0),
    "square": power(2.0),
    "cubic": power(3.0),
    "square_root": power(0.5),
}


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    width: int = 768
    """Width of the sequence."""
    depth: int = 24
    """Number of blocks."""
    num_heads: int = 16
    """Number of heads of the attention."""
    dropout: float = 0.1
    """Dropout rate of the embedded sequence and of what each part of a block adds."""
    condition: Conditions = "none"
    """Condition of the network."""
    condition_dropout: float = 0.0
    """Probability of training an example without its condition, for guidance."""


@dataclass(frozen=True)
class MaskingConfig:
    """Masks, and the loss of what they hide."""

    schedule: ScheduleName = "cosine"
    """Share of the codes that is masked on the way from none known to all, in training and in
    sampling."""
    label_smoothing: float = 0.1
    """Share of the target that all values have alike, in training."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    num_steps: int = 8
    """Number of steps, each a pass of the network for all codes."""
    temperature: float = 1.0
    """Temperature of the codes: below 1 the likely becomes likelier."""
    choice_temperature: float | None = 4.5
    """Size of the noise on which codes are kept first; None for random order."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance; 1 for none. Train with --model.condition-dropout for
    it."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of MaskGIT on the values of pixels."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    values: int = 256
    """Number of values of a pixel's channel, evenly spaced in 0..255; others count as the
    nearest."""
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    text: TextConfig = TextConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3)
    average: AverageConfig = AverageConfig()
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: EvaluationConfig = operational(EvaluationConfig())


@dataclass(frozen=True)
class CodesConfig(RunConfig):
    """Flags of MaskGIT on the codes of a first stage."""

    first_stage: str = operational("runs/vqgan")
    """Run directory of a first stage with codes; it may move, but not be trained on."""
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-4)
    average: AverageConfig = AverageConfig()
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    train, held_out = load_splits(config)
    conditioning = make_conditioning(config.model.condition, train, config.text, with_tokens=True)
    return image_experiment(
        config,
        make_family(config, train.spec["image"][0], config.values, conditioning),
        train,
        held_out,
        loss=_loss(config, "values of pixels"),
        preprocessing=f"the nearest of {config.values} values",
    )


def build_on_codes(config: CodesConfig) -> Experiment:
    """The experiment of a config: the first stage's data, its codes, the network over them."""
    first = open_run(config.first_stage, data=config.data)
    check_finished(first, config.first_stage)
    codec, shape, num_codes = discrete_codec(first)
    source = first.experiment.pipeline.source
    conditioning = make_conditioning(config.model.condition, source)
    family = on_latents(make_family(config, shape, num_codes, conditioning), codec)
    held_out, num_examples = first.experiment.held_out, config.evaluation.num_examples
    return Experiment(
        family=family,
        pipeline=Pipeline(source, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=first.experiment.prepare,
        averages=make_averages(config.average, config.batch_size),
        distances=distances_from_training,
        num_evaluated=num_examples,
        protocol=protocol(
            held_out,
            num_examples,
            loss=_loss(config, "codes"),
            first_stage=f"{first.name}, {first.step} steps",
            preprocessing=first.experiment.protocol["preprocessing"],
        ),
    )


def make_family(
    config: Config | CodesConfig,
    shape: tuple[int, ...],
    num_values: int,
    conditioning: Conditioning | None,
) -> Family:
    """The network of the flags over maps of codes, and its family.

    Args:
        config: Flags.
        shape: Shape [height, width, channels] of a map.
        num_values: Number of different codes.
        conditioning: What the network is told, or None.
    """
    model, masking = config.model, config.masking
    network = MaskedTransformer(
        num_values,
        math.prod(shape),
        model.width,
        model.depth,
        model.num_heads,
        model.dropout,
        jnp.dtype(config.precision),
    )
    return masked(
        network,
        make_adam(config.optimizer),
        image_shape=shape,
        num_values=num_values,
        schedule=SCHEDULES[masking.schedule],
        label_smoothing=masking.label_smoothing,
        sampler=Sampler(**vars(config.sampler)),
        conditioning=conditioning,
        condition_dropout=model.condition_dropout,
    )


def _loss(config: Config | CodesConfig, what: str) -> str:
    return (
        f"cross entropy of masked {what}, nats each, one mask an example by the "
        f"{config.masking.schedule} schedule"
    )
