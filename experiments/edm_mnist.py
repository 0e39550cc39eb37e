"""EDM on MNIST at 28x28 pixels: a diffusion model that two CPU cores train within the hour.

The method of Karras et al. 2022 with a small U-Net. What it has measured stands in docs/results.md.

    python -m experiments.edm_mnist --data.dir DIR          trains, or resumes
    python -m experiments.edm_mnist sample --num 64 --out grid.png
    python -m experiments.edm_mnist evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.score import (
    Config,
    ProcessConfig,
    SamplerConfig,
    ScoreModelConfig,
    build,
)
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/edm_mnist",
        steps=3000,
        batch_size=64,
        sample_every=1000,
        checkpoint_every=500,
        data=DataConfig(name="mnist"),
        dequantize=True,
        model=ScoreModelConfig(
            channels=16,
            multipliers=(1, 2, 4),
            num_res_blocks=1,
            attention_resolutions=(7,),
            dropout=0.0,
        ),
        process=ProcessConfig(name="edm", prediction="edm", times="log_normal", sigma_data=0.6),
        sampler=SamplerConfig(solver="heun", num_steps=18, grid="karras"),
        optimizer=AdamConfig(learning_rate=2e-3, warmup_steps=200, decay_steps=3000, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
    ),
    data="MNIST",
)

if __name__ == "__main__":
    recipe.main()
