"""A small KL autoencoder of captioned digits: 16x16x3 pixels to 8x8x4 numbers.

The first stage of text to image on latents (Rombach et al. 2022): absolute errors, without a
perceptual distance or a discriminator (`--perceptual.distance lpips`, `--game.weight 0.5`). Through
4x4x4 numbers (`--model.multipliers 1 2 2`) colours pass in so few steps, and digits do not.

    python -m experiments.autoencoder_kl_digits                             trains, or resumes
    python -m experiments.autoencoder_kl_digits sample --picture reconstructions --out rebuilt.png
    python -m experiments.autoencoder_kl_digits sample --picture between_examples --out path.png
    python -m experiments.autoencoder_kl_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.first_stage import Config, GameConfig, LossConfig, ModelConfig, build
from .recipes.shared import AdamConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/autoencoder_kl_digits",
        steps=3000,
        batch_size=32,
        sample_every=500,
        checkpoint_every=1000,
        data=DataConfig(name="captioned_digits"),
        model=ModelConfig(channels=24, multipliers=(1, 2), num_res_blocks=1),
        loss=LossConfig(kl_weight=1e-4),
        game=GameConfig(weight=0.0, start=500, channels=16, num_layers=1),
        optimizer=AdamConfig(learning_rate=3e-3, b2=0.99, warmup_steps=50, decay_steps=3000),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
