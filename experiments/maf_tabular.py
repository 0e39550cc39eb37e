"""MAF on vectors (Papamakarios et al. 2017): two moons, a checkerboard, or the rows of a file.

Five masked autoregressive layers; the paper's figures (its table 1) are for sets that this package
does not ship: give them as a file. What this code has measured stands in docs/results.md.

    python -m experiments.maf_tabular                                     two moons
    python -m experiments.maf_tabular --data.name file --data.dir rows.csv --run-dir runs/rows
    python -m experiments.maf_tabular sample --picture density --out density.png
    python -m experiments.maf_tabular sample --num 10000 --out samples.npz
    python -m experiments.maf_tabular evaluate
"""

from dataclasses import dataclass

from experiments.tabular_recipe import Config as TabularConfig
from experiments.tabular_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import operational


@dataclass(frozen=True)
class Config(TabularConfig):
    """Five layers of 100 and 100 units, as the paper's for its narrowest sets, POWER and GAS."""

    run_dir: str = operational("runs/maf_tabular")
    steps: int = operational(10_000)
    model: ModelConfig = ModelConfig(network="maf", layers=5, hidden=(100, 100))
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)


if __name__ == "__main__":
    main(Config, build)
