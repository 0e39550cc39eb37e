"""DCGAN on MNIST (Radford et al. 2016).

The paper's recipe, Adam 2e-4 with beta1 0.5 and batches of 128, on MNIST's own 28x28 pixels: the
generator goes from 7x7 through 14x14 to 28x28. The paper publishes no score of unconditional MNIST
samples (it prints the samples); what this code has measured stands in docs/results.md. With
`--model.condition label` both networks are told the digit.

    python -m experiments.dcgan_mnist --data.dir DIR          trains, or resumes
    python -m experiments.dcgan_mnist sample --num 64 --out grid.png
    python -m experiments.dcgan_mnist sample --picture interpolation --out path.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import Config, ModelConfig, OptimizerConfig, build
from .recipes.shared import AdamConfig

_ADAM = AdamConfig(learning_rate=2e-4, b1=0.5, b2=0.999)
# 25 epochs.
recipe = Recipe(
    build,
    Config(
        run_dir="runs/dcgan_mnist",
        steps=12_000,
        batch_size=128,
        data=DataConfig(name="mnist"),
        model=ModelConfig(
            network="dcgan", generator_channels=64, discriminator_channels=64, latent_dim=100
        ),
        optimizer=OptimizerConfig(generator=_ADAM, discriminator=_ADAM),
    ),
    data="MNIST",
)

if __name__ == "__main__":
    recipe.main()
