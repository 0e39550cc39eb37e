"""Rectified flow on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Flow matching on straight lines from data to noise (Liu et al. 2023, Lipman et al. 2023): the
network predicts the velocity, times are logit-normal (Esser et al. 2024), and Heun's method draws
samples with 35 evaluations. The network is that of `ddpm_digits` with 24 channels.

    python -m experiments.flow_digits                         trains, or resumes
    python -m experiments.flow_digits sample --num 100 --out digits.png
    python -m experiments.flow_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.score import Config, ProcessConfig, SamplerConfig, ScoreModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/flow_digits",
        steps=1200,
        batch_size=64,
        sample_every=600,
        checkpoint_every=600,
        data=DataConfig(name="digits"),
        dequantize=True,
        model=ScoreModelConfig(
            channels=24,
            multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
        ),
        process=ProcessConfig(
            name="rectified",
            prediction="velocity",
            times="logit_normal",
            times_mean=0.0,
            times_std=1.0,
        ),
        sampler=SamplerConfig(solver="heun", num_steps=18, grid="uniform"),
        optimizer=AdamConfig(learning_rate=4e-3, warmup_steps=100, decay_steps=1200, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
