"""DDPM on CIFAR-10 (Ho et al. 2020).

The paper's recipe: a U-Net of 35.7M parameters, 1000 linear steps, L_simple, 800k updates of 128
images, average of the parameters 0.9999. The paper reports FID 3.17 (training set, 50k samples,
1000 ancestral steps) and 3.75 bits/dim (variational bound, test set). What this code has measured
stands in docs/results.md.

    python -m experiments.ddpm_cifar --data.dir DIR          trains, or resumes
    python -m experiments.ddpm_cifar sample --num 64 --out grid.png
    python -m experiments.ddpm_cifar evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.diffusion import Config, DiffusionConfig, ModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/ddpm_cifar",
        steps=800_000,
        batch_size=128,
        sample_every=10_000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        flip=True,
        model=ModelConfig(
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_res_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
        ),
        diffusion=DiffusionConfig(num_timesteps=1000, schedule="linear"),
        optimizer=AdamConfig(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        average=AverageConfig(decay=0.9999),
    ),
    data="CIFAR-10",
    published="FID 3.17, 3.75 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
