"""`anime_attributes` for two CPU cores: faces of 64x64 pixels from attributes.

The networks of Jin et al. 2017, narrower and shallower, with a last kernel of 5 instead of 9
pixels, so that 3,000 steps take about an hour of one core; and the game in what suits so few. The
rate is 5e-4 and falls linearly to 0. The penalty, of weight 10, is computed every fourth step. The
classifier learns from real images alone: from fakes it would also learn signs that the generator
agrees on with it. What it has measured stands in docs/results.md.

    python -m experiments.manga_attributes --data.dir DIR          trains, or resumes
    python -m experiments.manga_attributes sample --picture conditions --out attributes.png
    python -m experiments.manga_attributes sample --picture between_conditions --out path.png

DIR has `train/` and `test/`, each of images and a `metadata.jsonl` with attributes.
"""

from dataclasses import replace

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from . import anime_attributes
from .recipes.gan import OptimizerConfig, build
from .recipes.shared import AdamConfig, AverageConfig

_ANIME = anime_attributes.recipe.config
_STEPS = 3000
_ADAM = AdamConfig(learning_rate=5e-4, b1=0.5, decay_steps=_STEPS)
recipe = Recipe(
    build,
    replace(
        _ANIME,
        run_dir="runs/manga_attributes",
        steps=_STEPS,
        batch_size=32,
        data=DataConfig(name="folder", resize=64),
        model=replace(
            _ANIME.model,
            generator_channels=24,
            generator_blocks=3,
            generator_kernel=5,
            discriminator_channels=16,
            discriminator_blocks=1,
        ),
        game=replace(
            _ANIME.game,
            penalty_weight=10.0,
            penalty_every=4,
            auxiliary_fake=0.0,
        ),
        optimizer=OptimizerConfig(generator=_ADAM, discriminator=_ADAM),
        average=AverageConfig(decay=0.998),
    ),
    data="folder, attributes",
)

if __name__ == "__main__":
    recipe.main()
