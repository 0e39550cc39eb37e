"""Neural spline flow on vectors (Durkan et al. 2019): two moons, a checkerboard, or a file's rows.

Rational-quadratic spline couplings, RQ-NSF (C), of a size and a schedule of our own; the paper's
hyper-parameters are those of `nsf_power` and `nsf_gas`. No model of the checkerboard has fewer than
log 32 = 3.466 nats. What this code has measured stands in docs/results.md.

    python -m experiments.nsf_tabular --data.name checkerboard
    python -m experiments.nsf_tabular sample --picture density --out density.png
    python -m experiments.nsf_tabular evaluate
"""

from jaxgen.training.recipe import Recipe

from .recipes.tabular import Config, ModelConfig, VectorDataConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/nsf_tabular",
        steps=10_000,
        data=VectorDataConfig(name="checkerboard"),
        model=ModelConfig(network="nsf", layers=8, hidden=(64, 64), num_bins=8),
    ),
    data="checkerboard",
)

if __name__ == "__main__":
    recipe.main()
