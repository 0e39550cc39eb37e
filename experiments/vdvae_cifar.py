"""The very deep VAE on CIFAR-10 (Child 2021): 43 layers of latents, 39.1 million parameters.

The authors' table, row by row (their code's `cifar10`):

    width, latents a pixel, bottleneck     384, 16, 1/4
    encoder                                32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3
    decoder                                1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21
    likelihood                             ten logistics, log-scales of at least -7
    optimizer                              AdamW, 2e-4, betas 0.9 and 0.9, weight decay 0.01
    warm-up                                100 updates
    gradient                               clipped at 200, left out from 400 on (nats a dimension)
    batch                                  16 images on each of two GPUs
    average of the parameters              0.9999, not where an update is left out
    images                                 (u - 120.638) / 64.167 for the encoder, not mirrored

They report 2.87 bits/dim on the test set (negative ELBO), the mean of four seeds: 2.879, 2.842,
2.898 and 2.864, each after the updates that were best for 5,000 held-out training images, 650,000
to 1,050,000 of them (about a week).

    python -m experiments.vdvae_cifar --data.dir DIR            trains, or resumes
    python -m experiments.vdvae_cifar evaluate
    python -m experiments.vdvae_cifar sample --num 16 --sampler.temperature 0.9 --out grid.png

Departures: it trains on all 50,000 images, and for a fixed number of steps; biases are not decayed;
the loss is in nats an example, and the numbers above are converted. Their released weights open by
`jaxgen.convert.vdvae`. It has not been trained here.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.hierarchical_vae import (
    ClippedAdamConfig,
    Config,
    HierarchyConfig,
    TemperatureConfig,
    build,
)
from .recipes.shared import AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vdvae_cifar",
        steps=1_000_000,
        batch_size=32,
        sample_every=10_000,
        checkpoint_every=10_000,
        data=DataConfig(name="cifar10"),
        model=HierarchyConfig(
            encoder="32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
            decoder="1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
            width=384,
            mean=120.63838,
            std=64.16736,
        ),
        optimizer=ClippedAdamConfig(
            learning_rate=2e-4,
            b1=0.9,
            b2=0.9,
            warmup_steps=100,
            weight_decay=0.01,
            clip_norm=200.0,
            skip_norm=400.0,
        ),
        average=AverageConfig(decay=0.9999, warm_up=False),
        sampler=TemperatureConfig(output="sample"),
    ),
    data="CIFAR-10",
    published="2.87 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
