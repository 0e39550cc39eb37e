"""Neural spline flow on vectors (Durkan et al. 2019): two moons, a checkerboard, or a file's rows.

Rational-quadratic spline couplings, RQ-NSF (C); the paper's figures (its table 1) are for sets
that this package does not ship: give them as a file. No model of the checkerboard has fewer than
log 32 = 3.466 nats. What this code has measured stands in docs/results.md.

    python -m experiments.nsf_tabular --data.name checkerboard
    python -m experiments.nsf_tabular sample --picture density --out density.png
    python -m experiments.nsf_tabular evaluate
"""

from experiments.recipes.tabular import Config, ModelConfig, build
from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

recipe = Recipe(
    build,
    Config(
        run_dir="runs/nsf_tabular",
        steps=10_000,
        data=DataConfig(name="checkerboard"),
        model=ModelConfig(network="nsf", layers=8, hidden=(64, 64), num_bins=8),
    ),
)

if __name__ == "__main__":
    recipe.main()
