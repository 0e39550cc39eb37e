"""A gated PixelCNN told what to draw by a sentence: captioned digits, 16x16 pixels in colour.

    python -m experiments.pixelcnn_captioned_digits                      trains, or resumes
    python -m experiments.pixelcnn_captioned_digits sample --text "a red seven on a blue ground"
    python -m experiments.obedience runs/pixelcnn_captioned_digits

The conditional PixelCNN of van den Oord et al. 2016, whose every layer is told a vector: here of a
transformer that reads the sentence and is trained with it. `evaluate` gives the exact likelihood of
a picture given its first sentence. A fifth of all combinations of digit, colour and ground is in no
training picture: `experiments.obedience ... --held-out unseen` asks for these. What its steps teach
it, ground, colour and some of the place, is in docs/results.md.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoregressive import Config, ModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.text import TextConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/pixelcnn_captioned_digits",
        steps=2000,
        batch_size=32,
        sample_every=1000,
        checkpoint_every=500,
        data=DataConfig(name="captioned_digits"),
        model=ModelConfig(features=32, layers=6, head_features=64, dropout=0.1, condition="text"),
        text=TextConfig(width=64),
        optimizer=AdamConfig(learning_rate=2e-3, decay_steps=2000),
        average=AverageConfig(decay=0.99),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
