"""ImageGPT's transformer on the embedded UCI digits: 64 tokens an image, minutes on two CPU cores.

Chen et al. 2020 ("Generative Pretraining from Pixels"), small: a causal transformer over the grey
values of 8x8 pixels in raster order, told the digit. Its tokens are the 256 values of a byte, so
that its exact likelihood is of the 8-bit data and compares with that of `pixelcnn_digits`;
`--palette 17` gives it the 17 values that the digits have instead, and a likelihood of these codes.
Unlike the paper's it is told a class and has dropout, for 1,500 images are few. Measured: 1.885
bits/dim given the digit (docs/results.md).

    python -m experiments.imagegpt_digits                         trains, or resumes
    python -m experiments.imagegpt_digits sample --num 80 --columns 8 --out digits.png
    python -m experiments.imagegpt_digits sample --picture completions --out completed.png
    python -m experiments.imagegpt_digits evaluate --classify
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoregressive import Config, ModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/imagegpt_digits",
        steps=1500,
        batch_size=32,
        sample_every=500,
        checkpoint_every=500,
        data=DataConfig(name="digits"),
        model=ModelConfig(
            network="transformer",
            features=64,
            layers=4,
            num_heads=4,
            dropout=0.1,
            condition="label",
        ),
        optimizer=AdamConfig(
            learning_rate=2e-3, b2=0.95, warmup_steps=100, decay_steps=1500, schedule="cosine"
        ),
        average=AverageConfig(decay=0.99),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
