"""beta-VAE (Higgins et al. 2017) on MNIST, to see the trade-off that beta is.

More weight on the KL makes latents that are fewer and more nearly independent, at the price of the
reconstruction. The paper's sets are faces and chairs, its measure needs known factors: neither is
here, so that no mark of it applies; its definition does. Ten latents of a convolutional network,
Bernoulli pixels drawn anew for each batch; beta is 4. `experiments.beta_sweep` trains one for each
of several betas and plots the two terms of the bound.

    python -m experiments.beta_vae --data.dir DIR                  trains, or resumes
    python -m experiments.beta_vae evaluate
    python -m experiments.beta_vae sample --picture traversal --out traversal.png
"""

from dataclasses import dataclass

from experiments.image_data import Binarize
from experiments.vae_recipe import Config as VaeConfig
from experiments.vae_recipe import ModelConfig, ObjectiveConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(VaeConfig):
    """A small network, 20 epochs."""

    run_dir: str = operational("runs/beta_vae")
    steps: int = operational(12_000)
    batch_size: int = 100
    sample_every: int = operational(3000)
    checkpoint_every: int = operational(3000)
    data: DataConfig = DataConfig(name="mnist")
    binarize: Binarize = "dynamic"
    model: ModelConfig = ModelConfig(network="conv", activation="relu", latent_dim=10)
    objective: ObjectiveConfig = ObjectiveConfig(beta=4.0)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4)


if __name__ == "__main__":
    main(Config, build)
