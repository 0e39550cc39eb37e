"""A conditional GAN on CIFAR-10: SNGAN with a projection discriminator (Miyato & Koyama 2018).

The networks and the game of `sngan_cifar`, told the class: the generator by the gains and biases of
its norms, the discriminator by the inner product of its features with a vector of the class. The
paper reports an Inception score of 8.62 and FID 17.5 on CIFAR-10. What this code has measured
stands in docs/results.md.

    python -m experiments.cgan_cifar --data.dir DIR          trains, or resumes
    python -m experiments.cgan_cifar sample --num 80 --columns 8 --out grid.png     a class a row
    python -m experiments.cgan_cifar sample --picture conditions --out classes.png
"""

from dataclasses import replace

from jaxgen.training.recipe import Recipe

from . import sngan_cifar
from .recipes.gan import build

_SNGAN = sngan_cifar.recipe.config
recipe = Recipe(
    build,
    replace(_SNGAN, run_dir="runs/cgan_cifar", model=replace(_SNGAN.model, condition="label")),
    data="CIFAR-10",
    published="IS 8.62, FID 17.5",
)

if __name__ == "__main__":
    recipe.main()
