"""Neural spline flow on vectors (Durkan et al. 2019): two moons, a checkerboard, or a file's rows.

Rational-quadratic spline couplings, RQ-NSF (C); the paper's figures (its table 1) are for sets
that this package does not ship: give them as a file. No model of the checkerboard has fewer than
log 32 = 3.466 nats. What this code has measured stands in docs/results.md.

    python -m experiments.nsf_tabular --data.name checkerboard
    python -m experiments.nsf_tabular sample --picture density --out density.png
    python -m experiments.nsf_tabular evaluate
"""

from dataclasses import dataclass

from experiments.tabular_recipe import Config as TabularConfig
from experiments.tabular_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(TabularConfig):
    """Eight couplings of splines with 8 bins."""

    run_dir: str = operational("runs/nsf_tabular")
    steps: int = operational(10_000)
    data: DataConfig = DataConfig(name="checkerboard")
    model: ModelConfig = ModelConfig(network="nsf", layers=8, hidden=(64, 64), num_bins=8)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)


if __name__ == "__main__":
    main(Config, build)
