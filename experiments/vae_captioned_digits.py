"""A VAE told what to draw by attributes: captioned digits, 16x16 pixels in colour.

    python -m experiments.vae_captioned_digits                        trains, or resumes
    python -m experiments.vae_captioned_digits sample --attributes red seven "blue ground"
    python -m experiments.vae_captioned_digits sample --picture conditions --out conditions.png
    python -m experiments.obedience runs/vae_captioned_digits

A conditional VAE (Sohn et al. 2015): encoder, decoder and the learned prior are told 26 attributes,
the digit, its colour, the ground's and the place. With `--model.condition text` a transformer that
is trained with them reads the sentence instead. A fifth of all combinations of digit, colour and
ground is in no training picture: `experiments.obedience ... --held-out unseen` asks for these. What
it obeys is the ground and the place, seldom the thin strokes' colour and digit (docs/results.md).
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.shared import AverageConfig
from .recipes.text import TextConfig
from .recipes.vae import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vae_captioned_digits",
        steps=30_000,
        batch_size=64,
        log_every=1000,
        sample_every=10_000,
        checkpoint_every=5000,
        data=DataConfig(name="captioned_digits"),
        model=ModelConfig(
            network="conv",
            channels=32,
            hidden=128,
            activation="silu",
            latent_dim=16,
            likelihood="discretized_logistic",
            prior="realnvp",
            condition="attributes",
        ),
        text=TextConfig(width=64),
        objective=ObjectiveConfig(kl_warmup_steps=1000),
        optimizer=OptimizerConfig(learning_rate=2e-3, decay_steps=30_000),
        average=AverageConfig(decay=0.999),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
