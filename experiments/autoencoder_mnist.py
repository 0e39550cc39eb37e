"""A plain autoencoder on MNIST: a bottleneck and the squared error (Hinton & Salakhutdinov 2006).

The paper's sizes, 784-1000-500-250-30, trained end to end by Adam instead of layer by layer; the
paper reports a mean squared error of 3.00 a digit on the test set, summed over pixels of [0, 1],
which is 12.0 on this package's scale of [-1, 1]. An autoencoder has no prior, so there is nothing
to sample: look at its pictures.

    python -m experiments.autoencoder_mnist --data.dir DIR    trains, or resumes
    python -m experiments.autoencoder_mnist sample --picture reconstructions --out rebuilt.png
    python -m experiments.autoencoder_mnist sample --picture between_examples --out path.png
    python -m experiments.autoencoder_mnist evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoencoder import Config, build
from .recipes.vae import NetworkConfig, OptimizerConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/autoencoder_mnist",
        steps=30_000,  # 50 epochs
        batch_size=100,
        log_every=600,
        sample_every=6000,
        checkpoint_every=6000,
        data=DataConfig(name="mnist"),
        model=NetworkConfig(features=(1000, 500, 250), activation="relu", latent_dim=30),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    ),
    data="MNIST",
    published="squared error 3.00 a digit",
)

if __name__ == "__main__":
    recipe.main()
