"""What the recipes of very deep VAEs share: their flags, and the way from flags to an experiment.

The recipes are `vdvae_cifar` and `vdvae_digits`.
"""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxgen.core import Family
from jaxgen.distributions.likelihoods import Likelihood
from jaxgen.families.hierarchical_vae import hierarchical_vae
from jaxgen.models.hierarchical_vae import VDVAE
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.optim import Rated

from .images import image_experiment, load_splits
from .shared import AdamConfig, AverageConfig, EvaluationConfig, make_adam
from .vae import EIGHT_BIT, LIKELIHOODS, Likelihoods, SamplerConfig


@dataclass(frozen=True)
class HierarchyConfig:
    """The network and the likelihood of a pixel."""

    encoder: str = "8x2,8d2,4x2,4d4,1x1"
    """Blocks of the encoder from the image on: 8x2 are two blocks at 8x8 pixels, 8d2 is one before
    its result is halved."""
    decoder: str = "1x1,4m1,4x1,8m4,8x2"
    """Blocks of the decoder up to the image: 8m4 is one at 8x8 pixels, to whose input that of 4x4
    is added."""
    width: int = 64
    """Number of channels between blocks."""
    bottleneck: float = 0.25
    """Number of channels inside a block, in units of those between blocks."""
    latent_dim: int = 16
    """Number of latents a pixel of each block."""
    likelihood: Likelihoods = "mixture_of_logistics"
    """Likelihood of a pixel, given the latents."""
    mean: float = 127.5
    """Mean of the bytes, which the encoder takes away."""
    std: float = 127.5
    """Number by which the encoder divides them then."""


@dataclass(frozen=True)
class ClippedAdamConfig(AdamConfig):
    """Adam, which leaves updates out whose gradient is too large. Norms are of the gradient of the
    loss in nats a dimension, and so is `eps`."""

    skip_norm: float | None = None
    """Global norm of the gradient from which on an update is left out; None for none."""


@dataclass(frozen=True)
class TemperatureConfig(SamplerConfig):
    """How `sample` draws."""

    temperature: float = 1.0
    """Number by which the standard deviations of all priors are multiplied."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of a very deep VAE."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    model: HierarchyConfig = HierarchyConfig()
    optimizer: ClippedAdamConfig = ClippedAdamConfig()
    average: AverageConfig = AverageConfig()
    evaluation: EvaluationConfig = operational(EvaluationConfig())
    sampler: TemperatureConfig = operational(TemperatureConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    train, held_out = load_splits(config)
    height, width, channels = train.spec["image"][0]
    return image_experiment(
        config,
        make_family(config, (height, width, channels)),
        train,
        held_out,
        loss="negative ELBO, one draw of the latents, nats an example",
        likelihood=config.model.likelihood,
        preprocessing="2 u / 255 - 1",
    )


def make_family(config: Config, image_shape: tuple[int, int, int]) -> Family:
    """The network and its bound.

    Args:
        config: Flags.
        image_shape: Height, width and channels of the images.
    """
    flags, skip_norm, num_dims = config.model, config.optimizer.skip_norm, math.prod(image_shape)
    likelihood = LIKELIHOODS[flags.likelihood]()
    if skip_norm is not None and not skip_norm > 0:
        raise ValueError(f"--optimizer.skip-norm must be positive or None, got {skip_norm}")
    return hierarchical_vae(
        make_network(flags, image_shape[-1], likelihood, config.precision),
        likelihood,
        make_optimizer(config.optimizer, num_dims),
        image_shape=image_shape,
        skip_norm=None if skip_norm is None else skip_norm * num_dims,
        temperature=config.sampler.temperature,
        output=config.sampler.output,
        eight_bit=flags.likelihood in EIGHT_BIT,
    )


def make_network(
    config: HierarchyConfig, channels: int, likelihood: Likelihood, precision: str
) -> VDVAE:
    """The network of the flags.

    Args:
        config: Flags.
        channels: Number of channels of the images.
        likelihood: Likelihood of an image.
        precision: Type of the network's arithmetic.
    """
    return VDVAE(
        config.encoder,
        config.decoder,
        width=config.width,
        num_params=likelihood.num_params(channels),
        latent_dim=config.latent_dim,
        bottleneck=config.bottleneck,
        mean=config.mean / 127.5 - 1,  # as the bytes are in model space
        std=config.std / 127.5,
        dtype=jnp.dtype(precision),
    )


def make_optimizer(config: ClippedAdamConfig, num_dims: int) -> Rated:
    """Adam of the flags for a loss in nats an example, whose gradient is `num_dims` times as large.

    Args:
        config: Flags, whose numbers that a gradient is compared with are for nats a dimension.
        num_dims: Number of numbers in an image.
    """
    make_adam(config)  # refuses numbers as they were given, and not what they become
    clip_norm = None if config.clip_norm is None else config.clip_norm * num_dims
    return make_adam(replace(config, eps=config.eps * num_dims, clip_norm=clip_norm))
