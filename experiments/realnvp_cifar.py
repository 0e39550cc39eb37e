"""RealNVP on CIFAR-10 (Dinh et al. 2017).

The paper's architecture: two scales, three couplings of each mask, residual networks of 8 blocks
and 64 channels, batches of 64, Adam 1e-3, mirrored images, data through a logit. The paper reports
3.49 bits/dim on the test images (uniformly dequantized). `ActNorm` stands in the place of its
running batch normalization and of its weight normalization. What this code has measured stands in
docs/results.md.

    python -m experiments.realnvp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.realnvp_cifar sample --num 64 --out grid.png
    python -m experiments.realnvp_cifar evaluate
"""

from experiments.recipes.flow import Config, ModelConfig, build
from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

recipe = Recipe(
    build,
    Config(
        run_dir="runs/realnvp_cifar",
        steps=200_000,  # the paper does not give the length of its run
        batch_size=64,
        flip=True,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(network="realnvp", levels=2, couplings=3, blocks=8, width=64),
    ),
)

if __name__ == "__main__":
    recipe.main()
