"""RealNVP on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Dinh et al. 2017 on 1,500 real handwritten digits that ship with the package, as a demo and as a
test. Samples are drawn at a temperature of 0.75, as Glow's are at 0.7: easier to read, and a little
farther from the data's distribution. What it has measured stands in docs/results.md.

    python -m experiments.realnvp_digits                         trains, or resumes
    python -m experiments.realnvp_digits sample --num 64 --out digits.png
    python -m experiments.realnvp_digits sample --num 64 --temperature 1 --out all.png
    python -m experiments.realnvp_digits sample --picture between_examples --out path.png
    python -m experiments.realnvp_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.flow import Config, ModelConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/realnvp_digits",
        steps=6000,
        batch_size=64,
        data=DataConfig(name="digits"),
        # The digits have 17 grey values, not 256. Twice the width overfits 1,500 of them.
        model=ModelConfig(network="realnvp", levels=2, blocks=1, width=16, values=17, remat=True),
        optimizer=OptimizerConfig(learning_rate=3e-3, decay_steps=6000),
        temperature=0.75,
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
