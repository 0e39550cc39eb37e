"""A conditional GAN on CIFAR-10: SNGAN with a projection discriminator (Miyato & Koyama 2018).

The networks and the game of `sngan_cifar`, told the class: the generator by the gains and biases of
its norms, the discriminator by the inner product of its features with a vector of the class. The
paper reports ImageNet only; its authors' code has this CIFAR-10 form. What this code has measured
stands in docs/results.md.

    python -m experiments.cgan_cifar --data.dir DIR          trains, or resumes
    python -m experiments.cgan_cifar sample --num 80 --columns 8 --out grid.png     a class a row
    python -m experiments.cgan_cifar sample --picture conditions --out classes.png
"""

from dataclasses import dataclass, replace

from experiments.gan_recipe import ModelConfig, build
from experiments.sngan_cifar import Config as SnganConfig
from jaxgen.training.cli import main
from jaxgen.training.config import operational


@dataclass(frozen=True)
class Config(SnganConfig):
    """SNGAN's hyper-parameters."""

    run_dir: str = operational("runs/cgan_cifar")
    model: ModelConfig = replace(SnganConfig.model, condition="label")


if __name__ == "__main__":
    main(Config, build)
