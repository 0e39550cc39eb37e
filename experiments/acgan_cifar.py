"""ACGAN on CIFAR-10: an auxiliary classifier (Odena et al. 2017) on the networks of WGAN-GP.

The supervised recipe of Gulrajani et al. 2017, section 5.4: `wgan_gp_cifar` with the class given to
the generator's norms, and a second head of the critic that classifies; its cross-entropy has weight
1 on real images and 0.1 in the generator's loss. The paper reports an Inception score of 8.42 +-
0.10 (50,000 samples); Odena et al., with their own networks, 8.25 +- 0.07. What this code has
measured stands in docs/results.md.

    python -m experiments.acgan_cifar --data.dir DIR          trains, or resumes
    python -m experiments.acgan_cifar sample --picture conditions --out classes.png
"""

from dataclasses import dataclass, replace

from experiments.gan_recipe import GameConfig, ModelConfig, build
from experiments.wgan_gp_cifar import Config as WganConfig
from jaxgen.training.cli import main
from jaxgen.training.config import operational


@dataclass(frozen=True)
class Config(WganConfig):
    """WGAN-GP's hyper-parameters and the classifier's."""

    run_dir: str = operational("runs/acgan_cifar")
    model: ModelConfig = replace(WganConfig.model, auxiliary=True)
    game: GameConfig = replace(
        WganConfig.game, auxiliary_real=1.0, auxiliary_fake=0.0, auxiliary_generator=0.1
    )


if __name__ == "__main__":
    main(Config, build)
