"""A gated PixelCNN on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Van den Oord et al. 2016 ("Conditional Image Generation with PixelCNN Decoders") on 1,500 real
handwritten digits that ship with the package, told the digit, as a demo and as a test: exact
likelihoods, samples by the cached sampler, and a classifier by Bayes' rule. The digits have 17 grey
levels of the 256, which a softmax over values learns and a mixture of logistics cannot: mind that
when bits/dim are compared. What it has measured stands in docs/results.md.

    python -m experiments.pixelcnn_digits                         trains, or resumes
    python -m experiments.pixelcnn_digits sample --num 80 --columns 8 --out digits.png
    python -m experiments.pixelcnn_digits sample --picture completions --out completed.png
    python -m experiments.pixelcnn_digits evaluate --classify
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoregressive import Config, ModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/pixelcnn_digits",
        steps=1500,
        batch_size=64,
        sample_every=500,
        checkpoint_every=500,
        data=DataConfig(name="digits"),
        model=ModelConfig(features=32, layers=6, head_features=64, dropout=0.2, condition="label"),
        optimizer=AdamConfig(learning_rate=2e-3, decay_steps=1500),
        average=AverageConfig(decay=0.99),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
