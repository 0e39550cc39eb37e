"""DCGAN on MNIST (Radford et al. 2016).

The paper's recipe, Adam 2e-4 with beta1 0.5 and batches of 128, on MNIST's own 28x28 pixels: the
generator goes from 7x7 through 14x14 to 28x28. The paper publishes no score of unconditional MNIST
samples (it prints the samples); what this code has measured stands in docs/results.md. With
`--model.condition label` both networks are told the digit.

    python -m experiments.dcgan_mnist --data.dir DIR          trains, or resumes
    python -m experiments.dcgan_mnist sample --num 64 --out grid.png
    python -m experiments.dcgan_mnist sample --picture interpolation_spherical --out path.png
"""

from dataclasses import dataclass

from experiments.gan_recipe import Config as GanConfig
from experiments.gan_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(GanConfig):
    """The paper's hyper-parameters, 25 epochs."""

    run_dir: str = operational("runs/dcgan_mnist")
    steps: int = operational(12_000)
    batch_size: int = 128
    data: DataConfig = DataConfig(name="mnist")
    model: ModelConfig = ModelConfig(
        network="dcgan", generator_channels=64, discriminator_channels=64, latent_dim=100
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        generator_learning_rate=2e-4, discriminator_learning_rate=2e-4, b1=0.5, b2=0.999
    )


if __name__ == "__main__":
    main(Config, build)
