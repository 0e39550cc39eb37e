"""What the recipes of MeanFlow share: their flags, and the way to an experiment.

The recipes are `meanflow_digits` and `meanflow_cifar`.
"""

from dataclasses import dataclass

from flax import linen as nn
from jaxtyping import Array

from jaxgen.core import Family
from jaxgen.data.sources import Source
from jaxgen.families.meanflow import Adaptive, Guidance, meanflow
from jaxgen.models.blocks.layers import timestep_embedding
from jaxgen.models.score_unet import ScoreUNet
from jaxgen.noise.process import rectified
from jaxgen.noise.times import logit_normal, pairs
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .images import image_experiment, load_splits
from .score import ScoreModelConfig
from .score import make_network as make_plain_network
from .shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_conditioning,
)
from .text import TextConfig


@dataclass(frozen=True)
class MeanFlowConfig:
    """The objective."""

    times_mean: float = -0.4
    """Mean of the logit of both times."""
    times_std: float = 1.0
    """Deviation of the logit of both times."""
    apart: float = 0.75
    """Share of the examples whose two times differ."""
    power: float = 1.0
    """Power of the adaptive weight; 0 for none."""
    offset: float = 1e-3
    """Number that keeps the adaptive weight finite, beside a sum over dimensions."""
    guidance_scale: float = 1.0
    """Factor of the example's own velocity in the guidance that a conditional network learns; 1 for
    none."""
    guidance_mixing: float = 0.0
    """Factor of the network's conditional velocity in it; with it the scale of the guidance is that
    of the first divided by one minus this."""
    time_scale: float = 1.0
    """Factor of the times, from 0 to 1, as the network is told them."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    num_steps: int = 1
    """Number of steps, each an evaluation of the network."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every MeanFlow recipe."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ScoreModelConfig = ScoreModelConfig()
    text: TextConfig = TextConfig()
    meanflow: MeanFlowConfig = MeanFlowConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=6e-4)
    average: AverageConfig = AverageConfig(decay=0.9999)
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    train, held_out = load_splits(config)
    return image_experiment(
        config,
        make_family(config, train),
        train,
        held_out,
        loss="squared error of the MeanFlow identity, mean over dimensions",
        preprocessing="2 u / 255 - 1",
    )


def make_family(config: Config, train: Source) -> Family:
    """The family of the flags."""
    flags = config.meanflow
    conditioning = make_conditioning(config.model.condition, train, config.text)
    height, width, channels = train.spec["image"][0]
    guidance = Guidance(flags.guidance_scale, flags.guidance_mixing)
    if guidance != Guidance() and conditioning is None:
        raise ValueError("--meanflow.guidance-scale and -mixing need --model.condition")
    if config.precision != "float32":
        raise ValueError(
            f"--precision must be float32, got {config.precision}: the target is a derivative in "
            "forward mode, which 16 bits are too few for and fused attention does not have"
        )
    return meanflow(
        make_network(config.model, channels),
        rectified(),
        make_adam(config.optimizer),
        image_shape=(height, width, channels),
        times=pairs(logit_normal(flags.times_mean, flags.times_std), apart=flags.apart),
        num_steps=config.sampler.num_steps,
        weight=Adaptive(flags.power, flags.offset),
        guidance=guidance,
        time_scale=flags.time_scale,
        conditioning=conditioning,
        condition_dropout=config.model.condition_dropout if conditioning else 0.0,
    )


def make_network(model: ScoreModelConfig, channels: int) -> nn.Module:
    """The network of the flags; of each time DDPM++ has twice as many features as channels."""
    network = make_plain_network(model, channels, "float32")
    if model.network in ("ddpmpp", "edm_ddpmpp"):
        assert isinstance(network, ScoreUNet)
        return network.clone(time_features=_wide_features)
    return network


def _wide_features(t: Array, channels: int) -> Array:
    return timestep_embedding(t, 2 * channels)
