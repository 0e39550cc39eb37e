"""A conditional VAE (Sohn et al. 2015; Kingma et al. 2014, their M2) on binarized MNIST.

Both networks are given the digit, so that the latents need only hold what the digit does not say:
the handwriting. The prior stays N(0, I), the same for every class. The picture `conditions` shows
one handwriting a column, one digit a row. The bound is of log p(x | label); no published number is
comparable.

    python -m experiments.cvae_mnist --data.dir DIR           trains, or resumes
    python -m experiments.cvae_mnist sample --picture conditions --out hands.png
    python -m experiments.cvae_mnist evaluate --evaluation.num-importance 1000
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.vae import Config, ModelConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/cvae_mnist",
        steps=30_000,  # 50 epochs
        batch_size=100,
        log_every=600,
        sample_every=6000,
        checkpoint_every=6000,
        data=DataConfig(name="mnist"),
        binarize="dynamic",
        model=ModelConfig(latent_dim=20, condition="label"),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    ),
    data="MNIST",
)

if __name__ == "__main__":
    recipe.main()
