"""VQGAN: 256x256 pixels to 16x16 codes of 1,024 (Esser et al. 2021).

72,141,699 parameters beside the discriminator's 2,765,633. The table is that of the authors' code
(configs/imagenet_vqgan.yaml, one GPU): batches of 12 at 12 times 4.5e-6, Adam (0.5, 0.9), a
discriminator from step 250,001 (faces: 30,001) with 0.8 of the adaptive weight, and beta 0.25 at
the codebook's term, not at the commitment (`jaxgen.families.bottlenecks.codebook`). Their model of
ImageNet has a reconstruction FID of 7.94 to the validation images, of 10.54 to the training images
(README of CompVis/taming-transformers). After how many steps is not said: 500,000 are ours.
Without a codebook, rounding numbers one by one instead (Mentzer et al. 2024):

    --model.bottleneck fsq --model.levels 8 5 5 5

Departures: whole images are resized to 256 pixels, where they are cut; biases begin at 0; Adam's
second moments of the discriminator begin with it. The recipe has not been trained.

    python -m experiments.vqgan --data.dir DIR                              trains, or resumes
    python -m experiments.vqgan sample --picture reconstructions --out rebuilt.png
    python -m experiments.vqgan evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.first_stage import Config, GameConfig, ModelConfig, build
from .recipes.perceptual import PerceptualConfig
from .recipes.shared import AdamConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vqgan",
        steps=500_000,
        batch_size=12,
        sample_every=5000,
        checkpoint_every=5000,
        data=DataConfig(name="folder", resize=256),
        model=ModelConfig(
            bottleneck="vq",
            multipliers=(1, 1, 2, 2, 4),
            attention_factors=(16,),
            latent_channels=256,
        ),
        perceptual=PerceptualConfig(distance="lpips"),
        game=GameConfig(weight=0.8, start=250_001),
        optimizer=AdamConfig(learning_rate=12 * 4.5e-6, b1=0.5, b2=0.9),
    ),
    data="folder of images",
    published="rFID 7.94 (ImageNet)",
)

if __name__ == "__main__":
    recipe.main()
