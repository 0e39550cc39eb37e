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

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoregressive import Config, ModelConfig, build
from .recipes.shared import AdamConfig

STEPS = 7500
recipe = Recipe(
    build,
    Config(
        run_dir="runs/pixelcnn_mnist",
        steps=STEPS,
        batch_size=16,
        log_every=50,
        sample_every=2500,
        checkpoint_every=500,
        data=DataConfig(name="mnist"),
        binarize="dynamic",
        model=ModelConfig(features=32, layers=12, head_features=64),
        optimizer=AdamConfig(learning_rate=2e-3, decay_steps=STEPS),
    ),
    data="MNIST",
    published="81.30 nats (other pixels)",
)

if __name__ == "__main__":
    recipe.main()
