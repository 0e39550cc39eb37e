"""A VAE on the embedded UCI digits: 8x8 pixels, a minute on two CPU cores.

Kingma & Welling 2014 on 1,500 real handwritten digits that ship with the package, as a demo and as
a test. The likelihood is a discretized logistic of each pixel, a mass of the 8-bit data, so that
bits per dimension compare with those of the other families on the same digits (docs/results.md).

    python -m experiments.vae_digits                         trains, or resumes
    python -m experiments.vae_digits sample --num 64 --out digits.png
    python -m experiments.vae_digits sample --picture reconstructions --out rebuilt.png
    python -m experiments.vae_digits evaluate --evaluation.num-importance 1000
"""

from dataclasses import dataclass

from experiments.vae_recipe import Config as VaeConfig
from experiments.vae_recipe import ModelConfig, ObjectiveConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(VaeConfig):
    """Small networks and a short run."""

    run_dir: str = operational("runs/vae_digits")
    steps: int = operational(2000)
    batch_size: int = 64
    log_every: int = operational(200)
    sample_every: int = operational(1000)
    checkpoint_every: int = operational(1000)
    data: DataConfig = DataConfig(name="digits")
    model: ModelConfig = ModelConfig(
        network="conv",
        min_size=2,
        activation="silu",
        latent_dim=16,
        likelihood="discretized_logistic",
    )
    objective: ObjectiveConfig = ObjectiveConfig(kl_warmup_steps=1000)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, ema=0.999)


if __name__ == "__main__":
    main(Config, build)
