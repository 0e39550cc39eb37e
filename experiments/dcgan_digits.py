"""DCGAN on the embedded UCI digits: 8x8 pixels, two minutes on two CPU cores.

Radford et al. 2016 on 1,500 real handwritten digits that ship with the package, both networks told
the digit, as a demo and as a test: an independent classifier recognises the samples as often as
held-out digits (docs/results.md).

    python -m experiments.dcgan_digits                         trains, or resumes
    python -m experiments.dcgan_digits sample --num 80 --columns 8 --out digits.png
    python -m experiments.dcgan_digits sample --picture interpolation_spherical --out path.png
"""

from dataclasses import dataclass

from experiments.gan_recipe import Config as GanConfig
from experiments.gan_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(GanConfig):
    """Small networks and a short run."""

    run_dir: str = operational("runs/dcgan_digits")
    steps: int = operational(5000)
    batch_size: int = 64
    sample_every: int = operational(2000)
    checkpoint_every: int = operational(2000)
    data: DataConfig = DataConfig(name="digits")
    model: ModelConfig = ModelConfig(
        generator_channels=64,
        discriminator_channels=64,
        latent_dim=32,
        min_size=2,
        condition="label",
    )
    optimizer: OptimizerConfig = OptimizerConfig(ema=0.999)


if __name__ == "__main__":
    main(Config, build)
