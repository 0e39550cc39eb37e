"""Glow on MNIST, smaller than `glow_cifar` and with bounded log-scales, on 28x28 pixels.

Two levels of 16 steps, coupling networks of 128 channels. Kingma & Dhariwal 2018 publish no figure
for MNIST; what this code has measured stands in docs/results.md.

    python -m experiments.glow_mnist --data.dir DIR          trains, or resumes
    python -m experiments.glow_mnist sample --num 64 --temperature 0.7 --out grid.png
    python -m experiments.glow_mnist sample --picture direction --direction 3 8 --out path.png
    python -m experiments.glow_mnist evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.flow import Config, ModelConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/glow_mnist",
        steps=50_000,
        batch_size=64,
        data=DataConfig(name="mnist"),
        model=ModelConfig(network="glow", levels=2, steps=16, width=128),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1000, clip_norm=100.0),
    ),
    data="MNIST",
)

if __name__ == "__main__":
    recipe.main()
