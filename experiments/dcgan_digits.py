"""DCGAN on the embedded UCI digits: 8x8 pixels, two minutes on two CPU cores.

Radford et al. 2016 on 1,500 real handwritten digits that ship with the package, both networks told
the digit, as a demo and as a test: an independent classifier recognises the samples as often as
held-out digits (docs/results.md).

    python -m experiments.dcgan_digits                         trains, or resumes
    python -m experiments.dcgan_digits sample --num 80 --columns 8 --out digits.png
    python -m experiments.dcgan_digits sample --picture interpolation --out path.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import Config, ModelConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/dcgan_digits",
        steps=5000,
        batch_size=64,
        sample_every=2000,
        checkpoint_every=2000,
        data=DataConfig(name="digits"),
        model=ModelConfig(
            generator_channels=64,
            discriminator_channels=64,
            latent_dim=32,
            min_size=2,
            condition="label",
        ),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
