"""ACGAN on CIFAR-10: an auxiliary classifier (Odena et al. 2017) on the networks of WGAN-GP.

The supervised recipe of Gulrajani et al. 2017, section 5.4: `wgan_gp_cifar` with the class given to
the generator's norms, and a second head of the critic that classifies; its cross-entropy has weight
1 on real images and 0.1 in the generator's loss. The paper reports an Inception score of 8.42 +-
0.10 (50,000 samples); Odena et al., with their own networks, 8.25 +- 0.07. What this code has
measured stands in docs/results.md.

    python -m experiments.acgan_cifar --data.dir DIR          trains, or resumes
    python -m experiments.acgan_cifar sample --picture conditions --out classes.png
"""

from dataclasses import replace

from jaxgen.training.recipe import Recipe

from . import wgan_gp_cifar
from .recipes.gan import build

_WGAN = wgan_gp_cifar.recipe.config
recipe = Recipe(
    build,
    replace(
        _WGAN,
        run_dir="runs/acgan_cifar",
        model=replace(_WGAN.model, auxiliary=True),
        game=replace(_WGAN.game, auxiliary_real=1.0, auxiliary_fake=0.0, auxiliary_generator=0.1),
    ),
    data="CIFAR-10",
    published="IS 8.42 +- 0.10",
)

if __name__ == "__main__":
    recipe.main()
