"""StyleGAN2 on the embedded UCI digits: 8x8 pixels, minutes on one CPU core.

Karras et al. 2020 shrunk: all of its parts (mapping, modulated convolutions with noise, mixing of
styles, R1 and path lengths in turns of their own). R1 weighs 0.3, the best of four weights
(docs/results.md): with 0.02 what should be black is grey. It is told no digit: with
`--model.condition label` the digits of a class become all alike (recall 0.002), as conditional
StyleGAN2 is known to do on little data (Shahbazi et al. 2022, "Collapse by Conditioning").

    python -m experiments.stylegan2_digits                         trains, or resumes
    python -m experiments.stylegan2_digits sample --num 64 --out digits.png
    python -m experiments.stylegan2_digits sample --picture interpolation --out path.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import OptimizerConfig
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.stylegan import Config, GameConfig, ModelConfig, build

_ADAM = AdamConfig(learning_rate=2.5e-3, b1=0.0, b2=0.99)
recipe = Recipe(
    build,
    Config(
        run_dir="runs/stylegan2_digits",
        steps=5000,
        batch_size=64,
        sample_every=1000,
        checkpoint_every=1000,
        data=DataConfig(name="digits"),
        model=ModelConfig(
            channel_base=512,
            channel_max=64,
            latent_dim=32,
            style_dim=64,
            mapping_layers=2,
            mixing=0.5,
        ),
        game=GameConfig(r1_weight=0.3),
        optimizer=OptimizerConfig(_ADAM, _ADAM),
        average=AverageConfig(half_life=20_000, ramp_up=0.05),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
