"""Glow on CIFAR-10 (Kingma & Dhariwal 2018).

The paper's architecture: three levels of 32 steps, coupling networks of 512 channels, affine
couplings, Adam 1e-3 after a warm-up. The paper reports 3.35 bits/dim on the test images (uniformly
dequantized). What this code has measured stands in docs/results.md.

    python -m experiments.glow_cifar --data.dir DIR          trains, or resumes
    python -m experiments.glow_cifar sample --num 64 --temperature 0.7 --out grid.png
    python -m experiments.glow_cifar sample --picture direction --direction 3 5 --out cat_to_dog.png
    python -m experiments.glow_cifar evaluate
"""

from experiments.recipes.flow import Config, ModelConfig, build
from experiments.recipes.shared import AdamConfig
from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

recipe = Recipe(
    build,
    Config(
        run_dir="runs/glow_cifar",
        steps=500_000,
        batch_size=64,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            network="glow", levels=3, steps=32, width=512, coupling="affine", logit=False
        ),
        optimizer=AdamConfig(learning_rate=1e-3, warmup_steps=7800, clip_norm=100.0),
    ),
)

if __name__ == "__main__":
    recipe.main()
