"""A conditional VAE (Sohn et al. 2015; Kingma et al. 2014, their M2) on binarized MNIST.

Both networks are told the digit, so that the latents need only say what the digit does not: the
hand. The prior stays N(0, I), the same for every class. The picture `conditions` shows one hand a
column, one digit a row. The bound is of log p(x | label); no published mark is its like.

    python -m experiments.cvae_mnist --data.dir DIR           trains, or resumes
    python -m experiments.cvae_mnist sample --picture conditions --out hands.png
    python -m experiments.cvae_mnist evaluate --evaluation.num-importance 1000
"""

from dataclasses import dataclass

from experiments.image_data import Binarize
from experiments.vae_recipe import Config as VaeConfig
from experiments.vae_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(VaeConfig):
    """The networks of `vae_mnist`, told the digit, 50 epochs."""

    run_dir: str = operational("runs/cvae_mnist")
    steps: int = operational(30_000)
    batch_size: int = 100
    log_every: int = operational(600)
    sample_every: int = operational(6000)
    checkpoint_every: int = operational(6000)
    data: DataConfig = DataConfig(name="mnist")
    binarize: Binarize = "dynamic"
    model: ModelConfig = ModelConfig(latent_dim=20, condition="label")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)


if __name__ == "__main__":
    main(Config, build)
