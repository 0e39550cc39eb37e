"""InfoVAE with the MMD (Zhao et al. 2017), also called MMD-VAE, on binarized MNIST.

The paper's family of objectives has alpha and lambda; here beta = 1 - alpha weighs the KL and
mmd_weight = alpha + lambda - 1 the squared MMD between the latents of a batch and draws of the
prior. At alpha = 1 the KL is gone, and what keeps the latents to the prior is the MMD alone: they
cannot collapse onto it image by image. lambda puts the MMD, a number below 1, on the scale of the
pixels' nats: 1000. The kernel is the inverse multiquadric of Tolstikhin et al. 2018. `evaluate`
gives the ELBO all the same, which this objective does not seek.

    python -m experiments.infovae_mnist --data.dir DIR        trains, or resumes
    python -m experiments.infovae_mnist sample --num 64 --out samples.png
    python -m experiments.infovae_mnist sample --model.latent-dim 2 --picture latent_plane
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.vae import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/infovae_mnist",
        steps=6000,  # 20 epochs
        batch_size=200,  # large enough for the MMD
        sample_every=2000,
        checkpoint_every=2000,
        data=DataConfig(name="mnist"),
        binarize="dynamic",
        model=ModelConfig(network="conv", activation="relu", latent_dim=10),
        objective=ObjectiveConfig(beta=0.0, mmd_weight=1000.0),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    ),
    data="MNIST",
)

if __name__ == "__main__":
    recipe.main()
