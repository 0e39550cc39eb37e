"""VQ-VAE on CIFAR-10 (van den Oord et al. 2017, section 4.1).

The paper's networks: two 4x4 convolutions of stride 2 and two residual blocks of 256 channels, a
codebook of 512 vectors of 64 numbers, ten codes at each of 8x8 positions (640 log 512 = 3,992.5
nats an image, 1.875 bits/dim of codes alone), beta 0.25, averages of decay 0.99, Adam at
2e-4, 250,000 updates of 128 images. The paper reports 4.67 bits/dim (and 4.51 for a VAE with
continuous latents). The figure of `evaluate` is the bound under a uniform prior over the codes. The
likelihood is a discretized logistic of each channel. What this code has measured stands in
docs/results.md. It has no prior over the codes, hence no samples: look at the reconstructions, or
fit a prior as a second stage (`jaxgen.families.latent`).

    python -m experiments.vqvae_cifar --data.dir DIR          trains, or resumes
    python -m experiments.vqvae_cifar sample --picture reconstructions --out rebuilt.png
    python -m experiments.vqvae_cifar evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.vae import OptimizerConfig
from .recipes.vq import Config, ModelConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vqvae_cifar",
        steps=250_000,
        batch_size=128,
        sample_every=5000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(codes_per_position=10),
        optimizer=OptimizerConfig(learning_rate=2e-4),
    ),
    data="CIFAR-10",
    published="4.67 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
