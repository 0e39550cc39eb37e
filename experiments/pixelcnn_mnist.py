"""A gated PixelCNN on binarized MNIST, 20 minutes on two CPU cores.

Van den Oord et al. 2016a ("Pixel Recurrent Neural Networks", table 4) report 81.30 nats for
PixelCNN on the static binarization that is published as files (Larochelle & Murray 2011), which is
not this package's: such numbers compare only roughly. Here a gated PixelCNN of 12 layers of 32
features sees a fresh draw of the pixels in each batch; `--binarize static` draws once, and
`--model.network pixelcnn` is the network of 2016a. What it has measured stands in docs/results.md.

    python -m experiments.pixelcnn_mnist --data.dir DIR           trains, or resumes
    python -m experiments.pixelcnn_mnist sample --num 64 --out digits.png
    python -m experiments.pixelcnn_mnist sample --picture completions --out completed.png
    python -m experiments.pixelcnn_mnist evaluate
"""

from dataclasses import dataclass

from experiments.image_data import Binarize
from experiments.pixelcnn_recipe import Config as PixelConfig
from experiments.pixelcnn_recipe import ModelConfig, OptimizerConfig, build
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational

STEPS = 7500


@dataclass(frozen=True)
class Config(PixelConfig):
    """A network that two cores train in minutes; two epochs."""

    run_dir: str = operational("runs/pixelcnn_mnist")
    steps: int = operational(STEPS)
    batch_size: int = 16
    log_every: int = operational(50)
    sample_every: int = operational(2500)
    checkpoint_every: int = operational(500)
    data: DataConfig = DataConfig(name="mnist")
    binarize: Binarize = "dynamic"
    model: ModelConfig = ModelConfig(features=32, layers=12, head_features=64)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, decay_steps=STEPS, ema=0.999)


if __name__ == "__main__":
    main(Config, build)
