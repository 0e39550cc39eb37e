"""A plain autoencoder on MNIST: a bottleneck and the squared error (Hinton & Salakhutdinov 2006).

The paper's sizes, 784-1000-500-250-30, trained end to end by Adam instead of layer by layer; the
paper reports a mean squared error of 3.00 a digit on the test set, summed over pixels of [0, 1],
which is 12.0 on this package's scale of [-1, 1]. An autoencoder has no prior, so there is nothing
to sample: look at its pictures.

    python -m experiments.autoencoder_mnist --data.dir DIR    trains, or resumes
    python -m experiments.autoencoder_mnist sample --picture reconstructions --out rebuilt.png
    python -m experiments.autoencoder_mnist sample --picture between_examples --out path.png
    python -m experiments.autoencoder_mnist evaluate
"""

from dataclasses import dataclass

from experiments.image_data import load_data
from experiments.vae_recipe import (
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    example_pictures,
    make_networks,
    make_optimizer,
)
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.transforms import to_uint8
from jaxgen.families.autoencoder import autoencoder
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import Experiment


@dataclass(frozen=True)
class Config(RunConfig):
    """The paper's sizes, 50 epochs."""

    run_dir: str = operational("runs/autoencoder_mnist")
    steps: int = operational(30_000)
    batch_size: int = 100
    log_every: int = operational(600)
    sample_every: int = operational(6000)
    """Steps between pictures of reconstructions: there is no prior to sample from."""
    checkpoint_every: int = operational(6000)
    data: DataConfig = DataConfig(name="mnist")
    model: ModelConfig = ModelConfig(
        features=(1000, 500, 250), activation="relu", latent_dim=30, likelihood="gaussian"
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    evaluation: EvaluationConfig = operational(EvaluationConfig())
    picture: PictureConfig = operational(PictureConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    if (config.model.condition, config.model.likelihood) != ("none", "gaussian"):
        raise ValueError("an autoencoder takes no --model.condition and no --model.likelihood")
    data = load_data(config.data)
    encoder, decoder = make_networks(
        config.model, data.image_shape, data.image_shape[-1], config.precision, stochastic=False
    )
    family = autoencoder(
        encoder,
        decoder,
        make_optimizer(config.optimizer, len(data.train) / config.batch_size),
        latent_dim=config.model.latent_dim,
        image_shape=data.image_shape,
    )
    num_examples = config.evaluation.num_examples
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        to_images=to_uint8,
        ema=config.optimizer.ema,
        ema_of=None if config.optimizer.ema else (),
        pictures=example_pictures(config, family, data, config.model.latent_dim),
        grid_picture="reconstructions",
        num_evaluated=num_examples,
        protocol={
            "loss": "squared error in [-1, 1], summed over pixels and channels",
            "mse": "the same, the mean over pixels and channels",
            "data": data.held_out.protocol,
            "num_examples": min(len(data.held_out), num_examples or len(data.held_out)),
            "preprocessing": data.preprocessing,
        },
    )


if __name__ == "__main__":
    main(Config, build)
