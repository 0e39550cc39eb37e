"""Plain autoencoders: their flags, and the way from flags to an experiment.

The recipe is `autoencoder_mnist`.
"""

from dataclasses import dataclass

from jaxgen.data.pipeline import Pipeline
from jaxgen.families.autoencoder import autoencoder
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .images import load_data
from .shared import AverageConfig, EvaluationConfig, make_averages, protocol
from .vae import (
    NetworkConfig,
    OptimizerConfig,
    PictureConfig,
    attribute_picture,
    make_networks,
    make_optimizer,
)


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of a plain autoencoder."""

    batch_size: int = 100
    sample_every: int = operational(1000)
    """Number of steps between pictures of reconstructions, there being no prior to sample from; 0
    for none."""
    model: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig(decay=0.0)
    evaluation: EvaluationConfig = operational(EvaluationConfig())
    picture: PictureConfig = operational(PictureConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    data, num_examples = load_data(config), config.evaluation.num_examples
    encoder, decoder = make_networks(
        config.model, data.image_shape, data.image_shape[-1], config.precision, stochastic=False
    )
    family = autoencoder(
        encoder,
        decoder,
        make_optimizer(config.optimizer, len(data.train) / config.batch_size),
        latent_dim=config.model.latent_dim,
        image_shape=data.image_shape,
    )
    drawn, left_out = attribute_picture(config.picture, family, data)
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        averages=make_averages(config.average, config.batch_size),
        pictures=drawn,
        left_out=left_out,
        num_evaluated=num_examples,
        protocol=protocol(
            data.held_out,
            num_examples,
            loss="squared error in [-1, 1], summed over pixels and channels",
            mse="the same, the mean over pixels and channels",
            preprocessing=data.preprocessing,
        ),
    )
