"""A very deep VAE, shrunk, on the embedded UCI digits: 8x8 pixels, minutes on two CPU cores.

Child 2021 on 1,500 real handwritten digits that ship with the package: five layers of latents at
1x1, 4x4 and 8x8 pixels, of which those at 4x4 are used. Bits per dimension compare with those of
`vae_digits`, one layer of latents, on the same digits (docs/results.md).

    python -m experiments.vdvae_digits                         trains, or resumes
    python -m experiments.vdvae_digits sample --num 64 --out digits.png
    python -m experiments.vdvae_digits sample --picture reconstructions --out rebuilt.png
    python -m experiments.vdvae_digits evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.hierarchical_vae import ClippedAdamConfig, Config, HierarchyConfig, build
from .recipes.shared import AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vdvae_digits",
        steps=4000,
        batch_size=64,
        log_every=250,
        sample_every=2000,
        checkpoint_every=2000,
        data=DataConfig(name="digits"),
        model=HierarchyConfig(
            encoder="8x1,8d2,4x1,4d4,1x1",
            decoder="1x1,4m1,4x2,8m4",
            width=32,
            bottleneck=0.5,
            latent_dim=4,
            likelihood="discretized_logistic",
        ),
        optimizer=ClippedAdamConfig(
            learning_rate=2e-3,
            b2=0.9,
            warmup_steps=100,
            schedule="linear",
            decay_steps=4000,
            weight_decay=0.01,
            clip_norm=200.0,
            skip_norm=400.0,
        ),
        average=AverageConfig(decay=0.999),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
