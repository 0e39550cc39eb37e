"""A gated PixelCNN on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Van den Oord et al. 2016 ("Conditional Image Generation with PixelCNN Decoders") on 1,500 real
handwritten digits that ship with the package, told the digit, as a demo and as a test: exact
likelihoods, samples by the cached sampler, and a classifier by Bayes' rule. The digits have 17 grey
levels of the 256, which a softmax over values learns and a mixture of logistics cannot: mind that
when bits/dim are compared. What it has measured stands in docs/results.md.

    python -m experiments.pixelcnn_digits                         trains, or resumes
    python -m experiments.pixelcnn_digits sample --num 80 --columns 8 --out digits.png
    python -m experiments.pixelcnn_digits sample --picture completions --out completed.png
    python -m experiments.pixelcnn_digits evaluate --classify
"""

from dataclasses import dataclass

from experiments.pixelcnn_recipe import Config as PixelConfig
from experiments.pixelcnn_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(PixelConfig):
    """A small network and a short run."""

    run_dir: str = operational("runs/pixelcnn_digits")
    steps: int = operational(1500)
    batch_size: int = 64
    sample_every: int = operational(500)
    checkpoint_every: int = operational(500)
    data: DataConfig = DataConfig(name="digits")
    model: ModelConfig = ModelConfig(
        features=32, layers=6, head_features=64, dropout=0.2, condition="label"
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, decay_steps=1500, ema=0.99)


if __name__ == "__main__":
    main(Config, build)
