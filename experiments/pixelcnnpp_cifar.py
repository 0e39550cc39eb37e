"""PixelCNN++ on CIFAR-10 (Salimans et al. 2017).

The paper's network: three resolutions of 5 residual blocks each way, 160 filters, a mixture of 10
logistics, dropout 0.5. The paper reports 2.92 bits/dim on the test images, exact. Of its authors'
code are Adam at 1e-3 (both moments: 0.95 and 0.9995) times 0.999995 each update, and an average
of constant decay 0.9995; they train for days on eight GPUs. What this code has measured stands in
docs/results.md.

    python -m experiments.pixelcnnpp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.pixelcnnpp_cifar sample --num 64 --out grid.png
    python -m experiments.pixelcnnpp_cifar sample --picture completions --out completed.png
    python -m experiments.pixelcnnpp_cifar evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoregressive import Config, ModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/pixelcnnpp_cifar",
        steps=500_000,
        batch_size=128,
        sample_every=10_000,
        checkpoint_every=1000,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            network="pixelcnnpp", features=160, res_blocks=5, levels=3, mixtures=10, dropout=0.5
        ),
        optimizer=AdamConfig(learning_rate=1e-3, b1=0.95, b2=0.9995, decay_rate=0.999995),
        average=AverageConfig(decay=0.9995, warm_up=False),
    ),
    data="CIFAR-10",
    published="2.92 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
