"""A diffusion transformer on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

A small DiT (Peebles & Xie 2023; adaLN-Zero, patches of 2x2, four blocks of 96) by flow matching on
straight lines, as in `flow_digits`, told the digit, with classifier-free guidance.

    python -m experiments.dit_digits                          trains, or resumes
    python -m experiments.dit_digits sample --num 100 --out digits.png
    python -m experiments.dit_digits sample --label 7 --num 16 --out sevens.png
    python -m experiments.dit_digits sample --picture guidance --out guidance.png
    python -m experiments.dit_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.dit import DiTConfig
from .recipes.score import Config, ProcessConfig, SamplerConfig, ScoreModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/dit_digits",
        steps=1500,
        batch_size=64,
        sample_every=500,
        checkpoint_every=500,
        data=DataConfig(name="digits"),
        dequantize=True,
        model=ScoreModelConfig(
            network="dit",
            condition="label",
            dit=DiTConfig(width=96, depth=4, num_heads=4, patch_size=2),
        ),
        process=ProcessConfig(
            name="rectified",
            prediction="velocity",
            times="logit_normal",
            times_mean=0.0,
            times_std=1.0,
        ),
        sampler=SamplerConfig(solver="heun", num_steps=18, grid="uniform", guidance_scale=1.5),
        optimizer=AdamConfig(learning_rate=2e-3, warmup_steps=100, decay_steps=1500, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
