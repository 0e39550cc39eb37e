"""A VAE on the embedded UCI digits: 8x8 pixels, a minute on two CPU cores.

Kingma & Welling 2014 on 1,500 real handwritten digits that ship with the package, as a demo and as
a test. The prior is a RealNVP learned with the rest (Chen et al. 2017): with N(0, I) in its place
reconstructions are as readable as real digits, but three of four samples are not, since they come
from where no digit is encoded. The likelihood is a discretized logistic of each pixel, a mass of
the 8-bit data, so that bits per dimension compare with those of the other families on the same
digits (docs/results.md). `sample` shows the likelihood's mean; `--sampler.output sample` draws the
pixels too.

    python -m experiments.vae_digits                         trains, or resumes
    python -m experiments.vae_digits sample --num 64 --out digits.png
    python -m experiments.vae_digits sample --picture reconstructions --out rebuilt.png
    python -m experiments.vae_digits evaluate --evaluation.num-importance 1000
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.shared import AverageConfig
from .recipes.vae import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vae_digits",
        steps=5000,
        batch_size=64,
        log_every=500,
        sample_every=2500,
        checkpoint_every=2500,
        data=DataConfig(name="digits"),
        # Networks of half the width overfit 1,500 digits later than the prior learns them.
        model=ModelConfig(
            network="conv",
            channels=16,
            hidden=128,
            min_size=2,
            activation="silu",
            latent_dim=16,
            likelihood="discretized_logistic",
            prior="realnvp",
            prior_couplings=8,
        ),
        objective=ObjectiveConfig(kl_warmup_steps=1000),
        optimizer=OptimizerConfig(learning_rate=2e-3, decay_steps=5000),
        average=AverageConfig(decay=0.999),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
