"""VQ-VAEs: their flags, and the way from flags to an experiment.

The recipe is `vqvae_cifar`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxgen.data.pipeline import Pipeline
from jaxgen.families import vq
from jaxgen.models.vq import Decoder, Encoder, check_size
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.strategies import AXIS

from .images import check_support, load_data
from .shared import (
    AverageConfig,
    EvaluationConfig,
    make_averages,
    protocol,
)
from .vae import (
    EIGHT_BIT,
    LIKELIHOODS,
    Likelihoods,
    OptimizerConfig,
    make_optimizer,
)


@dataclass(frozen=True)
class ModelConfig:
    """Networks and codebook."""

    channels: int = 256
    """Channels of all hidden layers."""
    num_halvings: int = 2
    """Number of convolutions of stride 2."""
    num_res_blocks: int = 2
    """Number of residual blocks in each network."""
    num_codes: int = 512
    """Number of vectors in the codebook."""
    code_dim: int = 64
    """Width of the vectors."""
    codes_per_position: int = 1
    """Number of codes at each position of the smallest image."""
    decay: float = 0.99
    """Decay of the averages that the codes are."""
    revive_below: float = 0.01
    """Part of an even share of the positions below which a code is drawn anew from the batch; 0 for
    never."""
    commitment_weight: float = 0.25
    """Weight of the commitment, the squared distance summed over dimensions and averaged over
    positions: the paper's beta."""
    likelihood: Likelihoods = "discretized_logistic"
    """Likelihood of a pixel, given the codes."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every VQ-VAE recipe."""

    sample_every: int = operational(1000)
    """Number of steps between pictures of reconstructions, there being no prior to sample from; 0
    for none."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig(decay=0.0)
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    model, data, num_examples = config.model, load_data(config), config.evaluation.num_examples
    check_size(data.image_shape[:2], model.num_halvings)
    likelihood = LIKELIHOODS[model.likelihood]()
    check_support(likelihood, data)
    common: dict[str, Any] = {
        "channels": model.channels,
        "num_halvings": model.num_halvings,
        "num_res_blocks": model.num_res_blocks,
        "codes_per_position": model.codes_per_position,
        "dtype": jnp.dtype(config.precision),
    }
    family = vq.vqvae(
        Encoder(model.code_dim, **common),
        Decoder(likelihood.num_params(data.image_shape[-1]), **common),
        likelihood,
        make_optimizer(config.optimizer, len(data.train) / config.batch_size),
        num_codes=model.num_codes,
        image_shape=data.image_shape,
        commitment_weight=model.commitment_weight,
        decay=model.decay,
        revive_below=model.revive_below,
        eight_bit=model.likelihood in EIGHT_BIT,
        axis_name=AXIS if config.strategy == "pmap" else None,
    )
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        averages=make_averages(config.average, config.batch_size),
        num_evaluated=num_examples,
        protocol=protocol(
            data.held_out,
            num_examples,
            loss="-log p(x | codes) + positions log(num_codes): the bound under a uniform prior",
            likelihood=model.likelihood,
            preprocessing=data.preprocessing,
        ),
    )
