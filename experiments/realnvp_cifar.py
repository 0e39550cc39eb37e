"""RealNVP on CIFAR-10 (Dinh et al. 2017).

The paper's architecture: two scales, three couplings of each mask, residual networks of 8 blocks
and 64 channels, batches of 64, Adam 1e-3, mirrored images, data through a logit. The paper reports
3.49 bits/dim on the test images (uniformly dequantized). `ActNorm` stands in the place of its
running batch normalization and of its weight normalization. What this code has measured stands in
docs/results.md.

    python -m experiments.realnvp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.realnvp_cifar sample --num 64 --out grid.png
    python -m experiments.realnvp_cifar evaluate
"""

from dataclasses import dataclass

from experiments.flow_recipe import Config as FlowConfig
from experiments.flow_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(FlowConfig):
    """The paper's hyper-parameters; it does not give the length of its run."""

    run_dir: str = operational("runs/realnvp_cifar")
    steps: int = operational(200_000)
    batch_size: int = 64
    flip: bool = True
    data: DataConfig = DataConfig(name="cifar10")
    model: ModelConfig = ModelConfig(network="realnvp", levels=2, couplings=3, blocks=8, width=64)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, ema=0.999)


if __name__ == "__main__":
    main(Config, build)
