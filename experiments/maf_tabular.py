"""MAF on vectors (Papamakarios et al. 2017): two moons, a checkerboard, or the rows of a file.

Five masked autoregressive layers; the paper's figures (its table 1) are for sets that this package
does not ship: give them as a file. What this code has measured stands in docs/results.md.

    python -m experiments.maf_tabular                                     two moons
    python -m experiments.maf_tabular --data.name file --data.dir rows.csv --run-dir runs/rows
    python -m experiments.maf_tabular sample --picture density --out density.png
    python -m experiments.maf_tabular sample --num 10000 --out samples.npz
    python -m experiments.maf_tabular evaluate
"""

from experiments.recipes.tabular import Config, ModelConfig, build
from jaxgen.training.recipe import Recipe

recipe = Recipe(
    build,
    Config(
        run_dir="runs/maf_tabular",
        steps=10_000,
        # Five layers of 100 and 100 units, as the paper's for its narrowest sets, POWER and GAS.
        model=ModelConfig(network="maf", layers=5, hidden=(100, 100)),
    ),
)

if __name__ == "__main__":
    recipe.main()
