"""Classifiers of noisy images: their flags, and the way from flags to an experiment.

The recipe is `noisy_classifier_digits`.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source
from jaxgen.data.transforms import prepare_images
from jaxgen.families.noisy_classifier import noisy_classifier
from jaxgen.models.noisy_classifier import NoisyClassifier
from jaxgen.noise import parametrization
from jaxgen.noise.parametrization import Parametrization
from jaxgen.noise.times import log_normal
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .images import load_splits
from .score import PROCESSES, TIME_SCALES
from .shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_averages,
    protocol,
)


@dataclass(frozen=True)
class NetworkConfig:
    """The network."""

    channels: int = 32
    """Number of channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level, in units of the first's; each level halves the image."""
    num_res_blocks: int = 1
    """Number of residual blocks of a level."""
    dropout: float = 0.1
    """Dropout rate inside residual blocks."""


@dataclass(frozen=True)
class NoiseConfig:
    """The levels of noise that are classified."""

    sigma_data: float = 0.5
    """Deviation of the data, for EDM's scale of what the network sees."""
    mean: float = 0.0
    """Mean of the log of the ratio of noise to signal."""
    std: float = 2.0
    """Deviation of that log: wider than a denoiser's, for guidance at every level."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of a classifier of noisy images."""

    sample_every: int = operational(0)
    """Number of steps between pictures, of which a classifier has none: 0."""
    model: NetworkConfig = NetworkConfig()
    noise: NoiseConfig = NoiseConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3)
    average: AverageConfig = AverageConfig(decay=0.999)
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    train, held_out = load_splits(config)
    family = noisy_classifier(
        make_network(config, train),
        PROCESSES["edm"](),
        make_parametrization(config.noise),
        make_adam(config.optimizer),
        times=log_normal(config.noise.mean, config.noise.std),
    )
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=False),
        averages=make_averages(config.average, config.batch_size),
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            held_out,
            config.evaluation.num_examples,
            loss="cross-entropy in nats, of images noised to random levels",
            levels=f"log-normal ratios of noise to signal, {config.noise}",
            preprocessing="2 u / 255 - 1",
        ),
    )


def make_network(config: Config, train: Source) -> NoisyClassifier:
    """The network of the flags.

    Raises:
        ValueError: If the images have no labels.
    """
    if train.num_classes is None:
        raise ValueError(f"--data.name must be of images with labels, {train.name} has none")
    model = config.model
    return NoisyClassifier(
        train.num_classes,
        model.channels,
        model.multipliers,
        model.num_res_blocks,
        model.dropout,
        jnp.dtype(config.precision),
    )


def make_parametrization(config: NoiseConfig) -> Parametrization:
    """EDM's scale of what the network sees, and its time in steps of a thousand."""
    plain = parametrization.edm(config.sigma_data)
    return plain._replace(time=lambda level: TIME_SCALES["ddpm"] * plain.time(level))
