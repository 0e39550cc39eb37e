"""Glow on MNIST: the networks of `glow_cifar`, smaller, on 28x28 pixels.

Two levels of 16 steps, coupling networks of 128 channels. Kingma & Dhariwal 2018 publish no figure
for MNIST; what this code has measured stands in docs/results.md.

    python -m experiments.glow_mnist --data.dir DIR          trains, or resumes
    python -m experiments.glow_mnist sample --num 64 --temperature 0.7 --out grid.png
    python -m experiments.glow_mnist sample --picture direction --direction 3 8 --out path.png
    python -m experiments.glow_mnist evaluate
"""

from dataclasses import dataclass

from experiments.flow_recipe import Config as FlowConfig
from experiments.flow_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(FlowConfig):
    """A smaller Glow; `--model.class-conditional` tells it the digit."""

    run_dir: str = operational("runs/glow_mnist")
    steps: int = operational(50_000)
    batch_size: int = 64
    data: DataConfig = DataConfig(name="mnist")
    model: ModelConfig = ModelConfig(network="glow", levels=2, steps=16, width=128)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_steps=1000, ema=0.999)


if __name__ == "__main__":
    main(Config, build)
