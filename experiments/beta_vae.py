"""beta-VAE (Higgins et al. 2017) on MNIST, to see the trade-off that beta is.

More weight on the KL makes latents that are fewer and more nearly independent, at the price of the
reconstruction. The paper's sets are faces and chairs, its measure needs known factors: neither is
here, so that no mark of it applies; its definition does. Ten latents of a convolutional network,
Bernoulli pixels drawn anew for each batch; beta is 4. `experiments.beta_sweep` trains one for each
of several betas and plots the two terms of the bound.

    python -m experiments.beta_vae --data.dir DIR                  trains, or resumes
    python -m experiments.beta_vae evaluate
    python -m experiments.beta_vae sample --picture traversal --out traversal.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.vae import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/beta_vae",
        steps=12_000,  # 20 epochs
        batch_size=100,
        sample_every=3000,
        checkpoint_every=3000,
        data=DataConfig(name="mnist"),
        binarize="dynamic",
        model=ModelConfig(network="conv", activation="relu", latent_dim=10),
        objective=ObjectiveConfig(beta=4.0),
        optimizer=OptimizerConfig(learning_rate=5e-4),
    ),
    data="MNIST",
)

if __name__ == "__main__":
    recipe.main()
