"""What the GAN recipes share: their flags, and the way from flags to an experiment.

A recipe is a subclass of `Config` whose defaults are the paper's table; it runs nothing by itself
here: see `dcgan_digits`, `dcgan_mnist`, `sngan_cifar`, `wgan_gp_cifar`, `cgan_cifar` and
`acgan_cifar`.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxgen import augmentation, conditioning
from jaxgen.conditioning import Conditioning
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source, load
from jaxgen.data.transforms import prepare_images, random_flip, to_uint8
from jaxgen.families import gan
from jaxgen.losses.gan import dragan_penalty, gradient_penalty, r1_penalty, r2_penalty
from jaxgen.models import dcgan, resnet_gan
from jaxgen.training import pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.optim import adam

Games = Literal[
    "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic_average"
]


@dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    network: Literal["dcgan", "resnet"] = "dcgan"
    """DCGAN's convolutions, or the residual pair of SNGAN and WGAN-GP (32, 64 or 128 pixels)."""
    generator_channels: int = 128
    """Of the generator's last hidden layer (resnet on 32 pixels: of all)."""
    discriminator_channels: int = 128
    """Of the discriminator's first layer (resnet on 32 pixels: of all)."""
    min_size: int = 4
    """Least side of the innermost image of dcgan."""
    latent_dim: int = 100
    """Numbers that a sample is made from."""
    spectral_norm: bool = False
    """Of the residual discriminator."""
    pool: Literal["sum", "mean"] = "sum"
    """Over the residual discriminator's last positions."""
    attention_size: int | None = None
    """Image size at which both residual networks attend to themselves (SAGAN); none by default."""
    stddev_group: int = 0
    """Examples a group of the minibatch standard deviation; 0 for none."""
    condition: Literal["none", "label"] = "none"
    """What both networks are told: the generator by its norms (resnet) or beside its latents
    (dcgan), the discriminator by projection."""
    auxiliary: bool = False
    """The discriminator classifies instead of being told the label (ACGAN)."""


@dataclass(frozen=True)
class GameConfig:
    """The objective."""

    loss: Games = "non_saturating"
    """Of the two players."""
    discriminator_repeats: int = 1
    """Discriminator updates a step, each on its own part of the batch."""
    fakes_per_real: int = 1
    """The generator's batch, in units of one discriminator update's."""
    penalty: Literal["none", "wgan_gp", "r1", "r2", "dragan"] = "none"
    """On the discriminator's gradient."""
    penalty_weight: float = 10.0
    """Of the penalty."""
    auxiliary_real: float = 1.0
    """Weight of the classifier's loss on real images."""
    auxiliary_fake: float = 1.0
    """Weight of the classifier's loss on fakes, in the discriminator's loss."""
    auxiliary_generator: float = 1.0
    """Weight of the classifier's loss in the generator's."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentation of all the discriminator sees."""
    consistency_weight: float = 0.0
    """Of the change of verdicts when real images are moved and mirrored; 0 for none."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for both networks."""

    generator_learning_rate: float = 2e-4
    """Of the generator."""
    discriminator_learning_rate: float = 2e-4
    """Of the discriminator."""
    b1: float = 0.5
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    decay_steps: int | None = None
    """Steps over which both rates fall linearly to zero; constant by default."""
    ema: float = 0.999
    """Decay of the average of the generator, which samples use; 0 for the last parameters."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    truncation: float | None = None
    """Latents from the interval of so many standard deviations around 0."""
    standing_batches: int = 16
    """Batches of latents that the generator's batch statistics are averaged over; 0: the running
    statistics of training."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every GAN recipe."""

    sample_every: int = operational(1000)
    checkpoint_every: int = operational(1000)
    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    game: GameConfig = GameConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampler: SamplerConfig = operational(SamplerConfig())


PENALTIES: dict[str, gan.Penalty] = {
    "wgan_gp": gradient_penalty,
    "r1": lambda critic, real, fake, key: r1_penalty(critic, real),
    "r2": lambda critic, real, fake, key: r2_penalty(critic, fake),
    "dragan": lambda critic, real, fake, key: dragan_penalty(critic, real, key),
}


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    data, optimizer = config.data, config.optimizer
    train = load(data.name, data.split, data.dir, resize=data.resize)
    held_out = load(data.name, data.held_out, data.dir, resize=data.resize)
    condition = make_conditioning(config, train)
    family = make_family(config, train, condition)
    latent_dim = config.model.latent_dim
    sweep = None if condition is None else condition.sweep
    drawn = {
        f"interpolation_{path}": pictures.interpolation(family, latent_dim, path=path, sweep=sweep)
        for path in ("linear", "spherical")
    }
    sample_condition = None
    if sweep is not None:
        drawn["conditions"] = pictures.condition_sweep(family, latent_dim, sweep)
        sample_condition = pictures.by_row(sweep)
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=config.flip),
        to_images=to_uint8,
        ema=optimizer.ema,
        ema_of=(gan.GENERATOR,),
        sample_condition=sample_condition,
        grid=(8, 8) if sweep is None else (len(sweep), 8),
        pictures=drawn,
        watch=functools.partial(gan.warnings, config.game.loss),
        protocol={
            "loss": f"the discriminator's {config.game.loss} loss on held-out images and fakes; "
            "no measure of the samples",
            "data": held_out.protocol,
            "num_examples": len(held_out),
            "preprocessing": "2 u / 255 - 1",
        },
    )


def make_conditioning(config: Config, source: Source) -> Conditioning | None:
    """What the networks are told."""
    if config.model.condition == "none" and not config.model.auxiliary:
        return None
    if source.num_classes is None:
        raise ValueError(f"--model.condition label needs labels; {config.data.name} has none")
    return conditioning.labels(source.num_classes)


def make_family(config: Config, source: Source, condition: Conditioning | None):
    """The networks and their game."""
    model, game, optimizer = config.model, config.game, config.optimizer
    height, width, image_channels = source.spec["image"][0]
    if height != width:
        raise ValueError(f"images must be square, got {height}x{width}: give --data.resize")
    dtype: Any = jnp.dtype(config.precision)
    axis_name = "data" if config.strategy == "pmap" else None
    num_classes = source.num_classes if model.auxiliary else None
    if model.network == "dcgan":
        dcgan.levels(height, model.min_size)
        generator: Any = dcgan.Generator(
            height,
            image_channels,
            model.generator_channels,
            model.latent_dim,
            model.min_size,
            axis_name=axis_name,
            dtype=dtype,
        )
        discriminator: Any = dcgan.Discriminator(
            model.discriminator_channels,
            model.stddev_group,
            num_classes,
            model.min_size,
            axis_name=axis_name,
            dtype=dtype,
        )
    else:
        resnet_gan.generator_channels(height, model.generator_channels)
        generator = resnet_gan.Generator(
            height,
            image_channels,
            model.generator_channels,
            model.latent_dim,
            model.attention_size,
            axis_name=axis_name,
            dtype=dtype,
        )
        discriminator = resnet_gan.Discriminator(
            model.discriminator_channels,
            model.spectral_norm,
            model.pool,
            model.attention_size,
            model.stddev_group,
            num_classes,
            dtype=dtype,
        )
    return gan.gan(
        generator,
        discriminator,
        make_optimizer(optimizer, optimizer.generator_learning_rate, 1),
        make_optimizer(
            optimizer, optimizer.discriminator_learning_rate, game.discriminator_repeats
        ),
        loss=game.loss,
        conditioning=condition,
        discriminator_repeats=game.discriminator_repeats,
        fakes_per_real=game.fakes_per_real,
        penalty=PENALTIES.get(game.penalty),
        penalty_weight=game.penalty_weight,
        auxiliary=gan.Auxiliary(game.auxiliary_real, game.auxiliary_fake, game.auxiliary_generator)
        if model.auxiliary
        else None,
        augment=make_augment(game.augment) if game.augment else None,
        consistency_augment=_moved_and_mirrored if game.consistency_weight else None,
        consistency_weight=game.consistency_weight,
        truncation=config.sampler.truncation,
        standing_batches=config.sampler.standing_batches,
    )


def make_optimizer(
    optimizer: OptimizerConfig, rate: float, repeats: int
) -> optax.GradientTransformation:
    """Adam, its decay counted in updates."""
    decay = None if optimizer.decay_steps is None else optimizer.decay_steps * repeats
    return adam(rate, b1=optimizer.b1, b2=optimizer.b2, decay_steps=decay)


def make_augment(policy: tuple[str, ...]) -> gan.Augment:
    """Differentiable augmentation by the policy's names."""
    return functools.partial(augmentation.diff_augment, policy=policy)


def _moved_and_mirrored(key, images):
    return augmentation.diff_augment(key, random_flip(key, images), ("translation",))
