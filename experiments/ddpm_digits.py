"""DDPM on the embedded UCI digits: 8x8 pixels, two minutes on two CPU cores.

The method of Ho et al. 2020 on 1,500 real handwritten digits that ship with the package, as a demo
and as a test: an independent classifier recognises the samples nearly as often as held-out digits
(docs/results.md). The chain has a cosine schedule, which suits small images (Nichol & Dhariwal
2021); nothing is mirrored.

    python -m experiments.ddpm_digits                         trains, or resumes
    python -m experiments.ddpm_digits sample --num 100 --out digits.png
    python -m experiments.ddpm_digits evaluate
"""

from dataclasses import dataclass

from experiments.ddpm_cifar import (
    Config as CifarConfig,
)
from experiments.ddpm_cifar import (
    DiffusionConfig,
    ModelConfig,
    OptimizerConfig,
    SamplerConfig,
    build,
)
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(CifarConfig):
    """A small network and a short run."""

    run_dir: str = operational("runs/ddpm_digits")
    steps: int = operational(1800)
    batch_size: int = 64
    sample_every: int = operational(600)
    checkpoint_every: int = operational(600)
    data: DataConfig = DataConfig(name="digits")
    flip: bool = False
    model: ModelConfig = ModelConfig(
        channels=32, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
    )
    diffusion: DiffusionConfig = DiffusionConfig(schedule="cosine")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, warmup_steps=100, ema=0.999)
    sampler: SamplerConfig = operational(SamplerConfig(num_steps=250))


if __name__ == "__main__":
    main(Config, build)
