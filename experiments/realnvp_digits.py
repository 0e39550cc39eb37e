"""RealNVP on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Dinh et al. 2017 on 1,500 real handwritten digits that ship with the package, as a demo and as a
test. What it has measured stands in docs/results.md.

    python -m experiments.realnvp_digits                         trains, or resumes
    python -m experiments.realnvp_digits sample --num 64 --temperature 0.8 --out digits.png
    python -m experiments.realnvp_digits sample --picture between_examples --out path.png
    python -m experiments.realnvp_digits evaluate
"""

from dataclasses import dataclass

from experiments.flow_recipe import Config as FlowConfig
from experiments.flow_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(FlowConfig):
    """Small networks and a short run."""

    run_dir: str = operational("runs/realnvp_digits")
    steps: int = operational(3000)
    batch_size: int = 64
    data: DataConfig = DataConfig(name="digits")
    # So small, activations are sooner computed again than kept: a step takes a fifth less time.
    model: ModelConfig = ModelConfig(network="realnvp", levels=2, blocks=1, width=32, remat=True)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, ema=0.999)


if __name__ == "__main__":
    main(Config, build)
