"""WGAN-GP on CIFAR-10 (Gulrajani et al. 2017), the residual networks.

The paper's recipe: Wasserstein loss, gradient penalty 10, a critic without normalization, 5 critic
updates of 64 images a generator update of 128, Adam 2e-4 (beta1 0, beta2 0.9) falling linearly to 0
over 100,000 generator updates. The paper reports an Inception score of 7.86 +- 0.07 (unsupervised,
50,000 samples). What this code has measured stands in docs/results.md.

    python -m experiments.wgan_gp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.wgan_gp_cifar sample --num 64 --out grid.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import Config, GameConfig, ModelConfig, OptimizerConfig, build
from .recipes.shared import AdamConfig

_ADAM = AdamConfig(learning_rate=2e-4, b1=0.0, b2=0.9, decay_steps=100_000)
recipe = Recipe(
    build,
    Config(
        run_dir="runs/wgan_gp_cifar",
        steps=100_000,
        batch_size=320,  # 5 times 64
        data=DataConfig(name="cifar10"),
        spread_bytes=True,
        model=ModelConfig(
            network="resnet",
            generator_channels=128,
            discriminator_channels=128,
            latent_dim=128,
            spectral_norm=False,
            pool="mean",
        ),
        game=GameConfig(
            loss="wasserstein",
            discriminator_repeats=5,
            fakes_per_real=2,
            penalty="wgan_gp",
            penalty_weight=10.0,
        ),
        optimizer=OptimizerConfig(generator=_ADAM, discriminator=_ADAM),
    ),
    data="CIFAR-10",
    published="IS 7.86 +- 0.07",
)

if __name__ == "__main__":
    recipe.main()
