"""StackGAN's stage I on the embedded coloured digits: told what to draw, minutes on two cores.

Zhang et al. 2017 on 16x16 pixels: conditioning augmentation, and real, wrong and fake pairs. After
1,700 steps (`--model.no-batch-norm`) the ground is the one asked for in 99 % of 500 samples, but
colour, place and digit are no better than chance: a longer training has not been measured.

    python -m experiments.stackgan_digits                             trains, or resumes
    python -m experiments.stackgan_digits sample --text "a red seven on a blue ground" --out 7.png
    python -m experiments.stackgan_stage2 --first-stage runs/stackgan_digits \\
        --data.name captioned_digits --data.resize None --run-dir runs/stackgan_digits_2
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import OptimizerConfig
from .recipes.shared import AdamConfig
from .recipes.stackgan import GameConfig, Stage1Config, Stage1ModelConfig, build_stage1
from .recipes.text import TextConfig

_ADAM = AdamConfig(learning_rate=4e-4, b1=0.5)
recipe = Recipe(
    build_stage1,
    Stage1Config(
        run_dir="runs/stackgan_digits",
        steps=4000,
        batch_size=64,
        sample_every=1000,
        checkpoint_every=1000,
        data=DataConfig(name="captioned_digits"),
        flip=False,
        shift=0.0,
        model=Stage1ModelConfig(
            generator_channels=32,
            discriminator_channels=32,
            noise_dim=16,
            condition_dim=32,
            condition="text",
        ),
        text=TextConfig(width=64, length=16),
        game=GameConfig(kl_weight=2.0),
        optimizer=OptimizerConfig(_ADAM, _ADAM),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
