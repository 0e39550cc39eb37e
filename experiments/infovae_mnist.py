"""InfoVAE with the MMD (Zhao et al. 2017), also called MMD-VAE, on binarized MNIST.

The paper's family of objectives has alpha and lambda; here beta = 1 - alpha weighs the KL and
mmd_weight = alpha + lambda - 1 the squared MMD between the latents of a batch and draws of the
prior. At alpha = 1 the KL is gone, and what keeps the latents to the prior is the MMD alone: they
cannot collapse onto it image by image. lambda puts the MMD, a number below 1, on the scale of the
pixels' nats: 1000. The kernel is the inverse multiquadric of Tolstikhin et al. 2018. `evaluate`
gives the ELBO all the same, which this objective does not seek.

    python -m experiments.infovae_mnist --data.dir DIR        trains, or resumes
    python -m experiments.infovae_mnist sample --num 64 --out samples.png
    python -m experiments.infovae_mnist sample --model.latent-dim 2 --picture latent_plane
"""

from dataclasses import dataclass

from experiments.image_data import Binarize
from experiments.vae_recipe import Config as VaeConfig
from experiments.vae_recipe import ModelConfig, ObjectiveConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(VaeConfig):
    """A small convolutional network, 20 epochs; batches large enough for the MMD."""

    run_dir: str = operational("runs/infovae_mnist")
    steps: int = operational(6000)
    batch_size: int = 200
    sample_every: int = operational(2000)
    checkpoint_every: int = operational(2000)
    data: DataConfig = DataConfig(name="mnist")
    binarize: Binarize = "dynamic"
    model: ModelConfig = ModelConfig(network="conv", activation="relu", latent_dim=10)
    objective: ObjectiveConfig = ObjectiveConfig(beta=0.0, mmd_weight=1000.0)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)


if __name__ == "__main__":
    main(Config, build)
