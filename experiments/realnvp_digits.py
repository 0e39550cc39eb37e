"""RealNVP on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Dinh et al. 2017 on 1,500 real handwritten digits that ship with the package, as a demo and as a
test. What it has measured stands in docs/results.md.

    python -m experiments.realnvp_digits                         trains, or resumes
    python -m experiments.realnvp_digits sample --num 64 --temperature 0.8 --out digits.png
    python -m experiments.realnvp_digits sample --picture between_examples --out path.png
    python -m experiments.realnvp_digits evaluate
"""

from experiments.recipes.flow import Config, ModelConfig, build
from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

recipe = Recipe(
    build,
    Config(
        run_dir="runs/realnvp_digits",
        steps=3000,
        batch_size=64,
        data=DataConfig(name="digits"),
        # So small, activations are sooner computed again than kept: a step takes a fifth less time.
        model=ModelConfig(network="realnvp", levels=2, blocks=1, width=32, remat=True),
    ),
)

if __name__ == "__main__":
    recipe.main()
