"""SNGAN on CIFAR-10 (Miyato et al. 2018), the residual networks.

The paper's recipe: spectral normalization, hinge loss, 5 discriminator updates of 64 images a
generator update of 128, Adam 2e-4 (beta1 0, beta2 0.9) falling linearly to 0 over 50,000 generator
updates. The paper reports an Inception score of 8.22 +- 0.05 (5,000 samples, ten times) and FID
21.7 +- 0.21 (5,000 samples against the 10,000 test images), without an average of the generator.
What this code has measured stands in docs/results.md.

    python -m experiments.sngan_cifar --data.dir DIR          trains, or resumes
    python -m experiments.sngan_cifar sample --num 64 --out grid.png
    python -m experiments.sngan_cifar sample --picture interpolation --out path.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import Config, GameConfig, ModelConfig, OptimizerConfig, build
from .recipes.shared import AdamConfig

_ADAM = AdamConfig(learning_rate=2e-4, b1=0.0, b2=0.9, decay_steps=50_000)
recipe = Recipe(
    build,
    Config(
        run_dir="runs/sngan_cifar",
        steps=50_000,
        batch_size=320,  # 5 times 64
        data=DataConfig(name="cifar10"),
        spread_bytes=True,
        model=ModelConfig(
            network="resnet",
            generator_channels=256,
            discriminator_channels=128,
            latent_dim=128,
            spectral_norm=True,
            pool="sum",
        ),
        game=GameConfig(loss="hinge", discriminator_repeats=5, fakes_per_real=2),
        optimizer=OptimizerConfig(generator=_ADAM, discriminator=_ADAM),
    ),
    data="CIFAR-10",
    published="IS 8.22 +- 0.05, FID 21.7",
)

if __name__ == "__main__":
    recipe.main()
