"""MaskGIT on the embedded UCI digits: 8x8 pixels, minutes on a CPU core.

Chang et al. 2022, small: a bidirectional transformer over the 17 grey levels of 64 pixels, told the
digit, learns to fill in what is hidden of an image. Samples begin with nothing known and take 16
steps. Unlike the paper's they keep pixels in random order: to keep those that the network is surest
of first (`--sampler.choice-temperature 4.5`) gives clean digits that are too much alike, for the
surest pixels are black and white ones. There is no label smoothing, of which so few values would
keep noise. What it has measured stands in docs/results.md.

    python -m experiments.maskgit_digits                         trains, or resumes
    python -m experiments.maskgit_digits sample --num 80 --columns 8 --out digits.png
    python -m experiments.maskgit_digits sample --num 80 --sampler.num-steps 64 --out slow.png
    python -m experiments.maskgit_digits sample --picture completions --out completed.png
    python -m experiments.maskgit_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.masked import Config, MaskingConfig, ModelConfig, SamplerConfig, build
from .recipes.shared import AdamConfig, AverageConfig

STEPS = 1500
recipe = Recipe(
    build,
    Config(
        run_dir="runs/maskgit_digits",
        steps=STEPS,
        batch_size=64,
        sample_every=500,
        checkpoint_every=500,
        data=DataConfig(name="digits"),
        values=17,  # as many grey levels as the digits have
        model=ModelConfig(width=64, depth=4, num_heads=4, condition="label"),
        masking=MaskingConfig(label_smoothing=0.0),
        optimizer=AdamConfig(
            learning_rate=2e-3, b2=0.96, warmup_steps=100, decay_steps=STEPS, schedule="cosine"
        ),
        average=AverageConfig(decay=0.99),
        sampler=SamplerConfig(num_steps=16, choice_temperature=None),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
