"""VQGAN for small images and two CPU cores: 32x32 pixels to 8x8 codes of 512.

The method of Esser et al. 2021 (a discriminator of patches with an adaptive weight beside absolute
errors) with networks of a quarter of the width and one residual block a level. The paper's LPIPS is
left to `--perceptual.distance lpips`, for it takes half of the time: with it reconstructions are
nearer in features and farther in pixels. `--model.bottleneck kl --model.latent-channels 4` is
latent diffusion's autoencoder of the same size, `fsq` rounds numbers one by one. The second stage
is `vqvae_prior`. What it has measured is in docs/results.md.

    python -m experiments.vqgan_cifar --data.dir DIR                        trains, or resumes
    python -m experiments.vqgan_cifar sample --picture reconstructions --out rebuilt.png
    python -m experiments.reconstructions runs/vqgan_cifar
    python -m experiments.vqvae_prior --first-stage runs/vqgan_cifar --data.dir DIR \\
        --run-dir runs/vqgan_prior --model.network transformer --model.features 128 --model.layers 4
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.first_stage import Config, GameConfig, ModelConfig, build
from .recipes.shared import AdamConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vqgan_cifar",
        steps=3000,
        batch_size=16,
        sample_every=500,
        checkpoint_every=500,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            bottleneck="vq",
            channels=32,
            multipliers=(1, 2, 2),
            num_res_blocks=1,
            latent_channels=8,
            num_codes=512,
        ),
        game=GameConfig(weight=0.5, start=1500, channels=32, num_layers=2),
        optimizer=AdamConfig(
            learning_rate=5e-4, b1=0.5, b2=0.9, warmup_steps=100, decay_steps=3000
        ),
    ),
    data="CIFAR-10",
)

if __name__ == "__main__":
    recipe.main()
