"""Glow on CIFAR-10 (Kingma & Dhariwal 2018).

The paper's architecture: three levels of 32 steps, coupling networks of 512 channels, affine
couplings, Adam 1e-3 after a warm-up. The paper reports 3.35 bits/dim on the test images (uniformly
dequantized). What this code has measured stands in docs/results.md.

    python -m experiments.glow_cifar --data.dir DIR          trains, or resumes
    python -m experiments.glow_cifar sample --num 64 --temperature 0.7 --out grid.png
    python -m experiments.glow_cifar sample --picture direction --direction 3 5 --out cat_to_dog.png
    python -m experiments.glow_cifar evaluate
"""

from dataclasses import dataclass

from experiments.flow_recipe import Config as FlowConfig
from experiments.flow_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(FlowConfig):
    """The paper's hyper-parameters; `--model.class-conditional` tells it the label."""

    run_dir: str = operational("runs/glow_cifar")
    steps: int = operational(500_000)
    batch_size: int = 64
    data: DataConfig = DataConfig(name="cifar10")
    model: ModelConfig = ModelConfig(
        network="glow", levels=3, steps=32, width=512, coupling="affine", logit=False
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_steps=7800, ema=0.999)


if __name__ == "__main__":
    main(Config, build)
