"""MAF on vectors (Papamakarios et al. 2017): two moons, a checkerboard, or the rows of a file.

Five masked autoregressive layers, of a size and a schedule of our own; the paper's hyper-parameters
are those of `maf_power` and `maf_gas`. What this code has measured stands in docs/results.md.

    python -m experiments.maf_tabular                                     two moons
    python -m experiments.maf_tabular --data.name file --data.dir rows.csv --data.standardize \\
        --run-dir runs/rows
    python -m experiments.maf_tabular sample --picture density --out density.png
    python -m experiments.maf_tabular sample --num 10000 --out samples.npz
    python -m experiments.maf_tabular evaluate
"""

from jaxgen.training.recipe import Recipe

from .recipes.tabular import Config, ModelConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/maf_tabular",
        steps=10_000,
        model=ModelConfig(network="maf", layers=5, hidden=(100, 100)),
    ),
    data="two moons",
)

if __name__ == "__main__":
    recipe.main()
