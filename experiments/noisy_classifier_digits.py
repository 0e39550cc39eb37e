"""A classifier of noisy digits, for classifier guidance: 8x8 pixels, a minute on two CPU cores.

The method of Dhariwal & Nichol 2021, section 4: trained on images at random levels of noise, which
it is told. They give no accuracy; their classifiers for ImageNet are a U-Net's way down with
attention pooling. This one pools by the mean, and sees EDM's scale, by which one classifier serves
every process.

    python -m experiments.noisy_classifier_digits             trains, or resumes
    python -m experiments.noisy_classifier_digits evaluate    accuracy over the levels of noise
    python -m experiments.guide runs/edm_digits runs/noisy_classifier_digits
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.noisy_classifier import Config, build
from .recipes.shared import AdamConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/noisy_classifier_digits",
        steps=1500,
        batch_size=64,
        checkpoint_every=500,
        data=DataConfig(name="digits"),
        optimizer=AdamConfig(learning_rate=2e-3, warmup_steps=100, clip_norm=1.0),
    ),
    data="digits",
)

if __name__ == "__main__":
    recipe.main()
