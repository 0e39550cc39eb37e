"""DDPM on the embedded UCI digits: 8x8 pixels, two minutes on two CPU cores.

The method of Ho et al. 2020 on 1,500 real handwritten digits that ship with the package, as a demo
and as a test: an independent classifier recognises the samples nearly as often as held-out digits
(docs/results.md). The chain has a cosine schedule, which suits small images (Nichol & Dhariwal
2021); nothing is mirrored.

    python -m experiments.ddpm_digits                         trains, or resumes
    python -m experiments.ddpm_digits sample --num 100 --out digits.png
    python -m experiments.ddpm_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.diffusion import (
    Config,
    DiffusionConfig,
    ModelConfig,
    SamplerConfig,
    build,
)
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/ddpm_digits",
        steps=1800,
        batch_size=64,
        sample_every=600,
        checkpoint_every=600,
        data=DataConfig(name="digits"),
        model=ModelConfig(
            channels=32,
            multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
        ),
        diffusion=DiffusionConfig(schedule="cosine"),
        optimizer=AdamConfig(learning_rate=2e-3, warmup_steps=100, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
        sampler=SamplerConfig(num_steps=250),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
