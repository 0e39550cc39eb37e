"""VQ-VAE on CIFAR-10 (van den Oord et al. 2017, section 4.1).

The paper's networks: two 4x4 convolutions of stride 2 and two residual blocks of 256 channels, a
codebook of 512 vectors of 64 numbers over 8x8 positions, beta 0.25, averages of decay 0.99, Adam at
2e-4, 250,000 updates of 128 images. The paper reports 4.67 bits/dim (and 4.51 for a VAE with
continuous latents). The figure of `evaluate` is the bound under a uniform prior over the codes. The
likelihood is a discretized logistic of each channel. What this code has measured stands in
docs/results.md. Until a prior over the codes is fitted there is nothing to sample: look at the
reconstructions.

    python -m experiments.vqvae_cifar --data.dir DIR          trains, or resumes
    python -m experiments.vqvae_cifar sample --picture reconstructions --out rebuilt.png
    python -m experiments.vqvae_cifar evaluate
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from experiments.image_data import load_data
from experiments.vae_recipe import (
    EIGHT_BIT,
    LIKELIHOODS,
    Likelihoods,
    OptimizerConfig,
    check_support,
    make_optimizer,
)
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.transforms import to_uint8
from jaxgen.families import vqvae
from jaxgen.models.vqvae import Decoder, Encoder, check_size
from jaxgen.training import latent_pictures
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import Experiment


@dataclass(frozen=True)
class ModelConfig:
    """Networks and codebook."""

    channels: int = 256
    """Of all hidden layers."""
    num_halvings: int = 2
    """Convolutions of stride 2."""
    num_res_blocks: int = 2
    """In each network."""
    num_codes: int = 512
    """Vectors in the codebook."""
    code_dim: int = 64
    """Numbers in each."""
    decay: float = 0.99
    """Of the averages that the codes are."""
    revive_below: float = 0.01
    """Codes chosen by less than this part of an even share of the positions are drawn anew from
    the batch; 0 for never."""
    commitment_weight: float = 0.25
    """The paper's beta, on the squared distance summed over dimensions and positions."""
    likelihood: Likelihoods = "discretized_logistic"
    """Of a pixel, given the codes."""


@dataclass(frozen=True)
class Config(RunConfig):
    """The paper's hyper-parameters."""

    run_dir: str = operational("runs/vqvae_cifar")
    steps: int = operational(250_000)
    batch_size: int = 128
    sample_every: int = operational(5000)
    """Steps between pictures of reconstructions: there is no prior to sample from."""
    checkpoint_every: int = operational(5000)
    data: DataConfig = DataConfig(name="cifar10")
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    model, data = config.model, load_data(config.data)
    check_size(data.image_shape[:2], model.num_halvings)
    likelihood = LIKELIHOODS[model.likelihood]()
    check_support(likelihood, data)
    shared: dict[str, Any] = {
        "channels": model.channels,
        "num_halvings": model.num_halvings,
        "num_res_blocks": model.num_res_blocks,
        "dtype": jnp.dtype(config.precision),
    }
    family = vqvae.vqvae(
        Encoder(model.code_dim, **shared),
        Decoder(likelihood.num_params(data.image_shape[-1]), **shared),
        likelihood,
        make_optimizer(config.optimizer, len(data.train) / config.batch_size),
        num_codes=model.num_codes,
        image_shape=data.image_shape,
        commitment_weight=model.commitment_weight,
        decay=model.decay,
        revive_below=model.revive_below,
        eight_bit=model.likelihood in EIGHT_BIT,
        axis_name="data" if config.strategy == "pmap" else None,
    )
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        to_images=to_uint8,
        ema=config.optimizer.ema,
        ema_of=None if config.optimizer.ema else (),
        pictures={"reconstructions": latent_pictures.reconstructions(family)},
        grid_picture="reconstructions",
        watch=vqvae.warnings,
        protocol={
            "loss": "-log p(x | codes) + positions log(num_codes): the bound under a uniform prior",
            "likelihood": model.likelihood,
            "data": data.held_out.protocol,
            "num_examples": len(data.held_out),
            "preprocessing": data.preprocessing,
        },
    )


if __name__ == "__main__":
    main(Config, build)
