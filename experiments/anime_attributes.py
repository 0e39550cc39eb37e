"""Anime characters from attributes (Jin et al. 2017): SRResNet's generator, DRAGAN, a classifier.

The paper's recipe on 31,255 faces of 128x128 pixels with 34 attributes, arXiv 1708.05509: the
generator is given latents and attributes, the discriminator names the attributes (sigmoid
cross-entropy, summed over them, on real images and on fakes); the game has the weight 34, as many
as there are attributes, DRAGAN's penalty 0.5; Adam 2e-4 (beta1 0.5), batches of 64. From memory,
not checked: the number of faces, that the paper's rate falls after 50,000 steps, how it draws
attributes, and that its FID is of the features of Illustration2Vec, which compares with nothing
here. The recipe has not been trained.

Departures: the set is not public, so any folder with attributes is read; the rate is constant and
training ends after 50,000 steps, where the paper's begins to fall by a factor that it does not
give; kernels start as Flax's do; samples are by an average of the generator; fakes are asked for
the attributes of real examples, of which no two exclude each other, where the paper draws one hair
and one eye colour and all others with probability 1/4.

    python -m experiments.anime_attributes --data.dir DIR          trains, or resumes
    python -m experiments.anime_attributes sample --picture conditions --out attributes.png
    python -m experiments.anime_attributes sample --picture between_conditions --out path.png

DIR has `train/` and `test/`, each of images and a `metadata.jsonl` with attributes. What two CPU
cores can do is `manga_attributes`.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import Config, GameConfig, ModelConfig, OptimizerConfig, build
from .recipes.shared import AdamConfig

_ADAM = AdamConfig(learning_rate=2e-4, b1=0.5)
recipe = Recipe(
    build,
    Config(
        run_dir="runs/anime_attributes",
        steps=50_000,
        batch_size=64,
        data=DataConfig(name="folder", resize=128),
        model=ModelConfig(
            network="srresnet",
            generator_channels=64,
            discriminator_channels=32,
            latent_dim=128,
            condition="attributes",
            auxiliary=True,
        ),
        game=GameConfig(penalty="dragan", penalty_weight=0.5, auxiliary_game=None),
        optimizer=OptimizerConfig(generator=_ADAM, discriminator=_ADAM),
    ),
    data="folder, attributes",
)

if __name__ == "__main__":
    recipe.main()
