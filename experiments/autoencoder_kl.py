"""The KL autoencoder of latent diffusion, KL-f8: 256x256 pixels to 32x32x4 (Rombach et al. 2022).

83,653,863 parameters beside the discriminator's 2,765,633. The table is that of the authors' code
(configs/autoencoder/autoencoder_kl_32x32x4.yaml, one GPU): batches of 12 twice, 4.5e-6 times the
images of an update, Adam (0.5, 0.9), KL 1e-6, a discriminator from step 50,001 with half the
adaptive weight. Their model of OpenImages has a reconstruction FID of 0.90 and a PSNR of 24.19 +-
4.19 dB on its validation images after 246,803 steps (README of CompVis/latent-diffusion). KL-f4 is

    --model.multipliers 1 2 4 --model.latent-channels 3     64x64x3 latents: 0.27, 27.53 +- 4.54 dB

Departures: whole images are resized to 256 pixels, where they cut 256 of 384; biases begin at 0;
Adam's second moments of the discriminator begin with it. The recipe has not been trained.

    python -m experiments.autoencoder_kl --data.dir DIR                     trains, or resumes
    python -m experiments.autoencoder_kl sample --picture reconstructions --out rebuilt.png
    python -m experiments.autoencoder_kl evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.first_stage import Config, build
from .recipes.perceptual import PerceptualConfig
from .recipes.shared import AdamConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/autoencoder_kl",
        steps=246_803,
        batch_size=24,
        accumulate=2,
        sample_every=5000,
        checkpoint_every=5000,
        data=DataConfig(name="folder", resize=256),
        perceptual=PerceptualConfig(distance="lpips"),
        optimizer=AdamConfig(learning_rate=24 * 4.5e-6, b1=0.5, b2=0.9),
    ),
    data="folder of images",
    published="rFID 0.90, PSNR 24.19 dB (OpenImages)",
)

if __name__ == "__main__":
    recipe.main()
