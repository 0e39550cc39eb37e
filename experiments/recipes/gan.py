"""What the GAN recipes share: their flags, and the way from flags to an experiment.

The recipes are `dcgan_digits`, `dcgan_mnist`, `sngan_cifar`, `wgan_gp_cifar`, `cgan_cifar`,
`acgan_cifar` and `anime_attributes`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen.augmentation.diff_augment import diff_augment
from jaxgen.conditioning.base import Conditioning
from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source
from jaxgen.data.transforms import prepare_images, random_flip
from jaxgen.families import gan
from jaxgen.families.gan_players import GENERATOR, Augment
from jaxgen.losses.gan import dragan_penalty, gradient_penalty, r1_penalty, r2_penalty
from jaxgen.metrics.measure import distances_from_training
from jaxgen.models import dcgan, resnet_gan, srresnet_gan
from jaxgen.sampling.latent import interpolate
from jaxgen.training import pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import IMAGES, Experiment

from .images import load_splits
from .shared import (
    AdamConfig,
    AverageConfig,
    Conditions,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)
from .text import TextConfig

Games = Literal[
    "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic_average"
]


@dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    network: Literal["dcgan", "resnet", "srresnet"] = "dcgan"
    """Kind of networks: DCGAN's convolutions, the residual pair of SNGAN and WGAN-GP (32, 64 or
    128 pixels), or SRResNet's of the anime characters (16 times a power of two)."""
    generator_channels: int = 128
    """Channels of the generator's last hidden layer (dcgan); of all of them (srresnet; resnet on 32
    pixels; on 64 and 128 a quarter of it in the last and four times as many in the first)."""
    discriminator_channels: int = 128
    """Channels of the discriminator's first layer (dcgan, srresnet); of all of them (resnet on 32
    pixels; on 64 and 128 half of it in the first and eight times as many in the last)."""
    generator_blocks: int = 16
    """Residual blocks of srresnet's generator."""
    generator_kernel: int = 9
    """Side of the last kernel of srresnet's generator, in pixels; odd."""
    discriminator_blocks: int = 2
    """Residual blocks of srresnet's discriminator at each size."""
    min_size: int = 4
    """Least side of the innermost image of dcgan."""
    latent_dim: int = 100
    """Width of the latents."""
    batch_norm: bool = True
    """Batch normalization of dcgan's discriminator; a gradient penalty needs it without."""
    spectral_norm: bool = False
    """Spectral normalization of the residual discriminator."""
    pool: Literal["sum", "mean"] = "sum"
    """Pooling over the residual discriminator's last positions."""
    attention_size: int | None = None
    """Image size at which both residual networks have attention (SAGAN); None for none."""
    stddev_group: int = 0
    """Size of a group of the minibatch standard deviation, in examples; 0 for none."""
    condition: Conditions = "none"
    """Condition of both networks: it enters the generator's norms (resnet) or is appended to its
    latents (dcgan, srresnet), and is projected in the discriminator."""
    auxiliary: bool = False
    """Let the discriminator name the class, or each attribute, instead of being given them
    (ACGAN)."""


@dataclass(frozen=True)
class GameConfig:
    """The objective."""

    loss: Games = "non_saturating"
    """Loss of the two players."""
    discriminator_repeats: int = 1
    """Discriminator updates a step, each on its own part of the batch."""
    fakes_per_real: int = 1
    """Size of the generator's batch, in units of one discriminator update's."""
    penalty: Literal["none", "wgan_gp", "r1", "r2", "dragan"] = "none"
    """Penalty of the discriminator's gradient."""
    penalty_weight: float = 10.0
    """Weight of the penalty."""
    penalty_every: int = 1
    """Steps from one turn of the penalty to the next, whose weight makes up for those left out
    (StyleGAN2's lazy regularization); with 1 it is part of the discriminator's loss."""
    auxiliary_real: float = 1.0
    """Weight of the classifier's loss on real images."""
    auxiliary_fake: float = 1.0
    """Weight of the classifier's loss on fakes, in the discriminator's loss."""
    auxiliary_generator: float = 1.0
    """Weight of the classifier's loss in the generator's."""
    auxiliary_game: float | None = 1.0
    """Weight of the game itself beside the classifier's losses; None for the number of attributes,
    whose losses are summed (1 for classes)."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentations of everything that the discriminator sees in training."""
    consistency_weight: float = 0.0
    """Weight of the change of verdicts when real images are moved and mirrored; 0 for none."""


@dataclass(frozen=True)
class OptimizerConfig:
    """One Adam for each network."""

    generator: AdamConfig = AdamConfig(learning_rate=2e-4, b1=0.5)
    """Adam of the generator."""
    discriminator: AdamConfig = AdamConfig(learning_rate=2e-4, b1=0.5)
    """Adam of the discriminator; its schedules are counted in steps too."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    truncation: float | None = None
    """Greatest size of a number in a latent, in standard deviations; None for no truncation."""
    standing_batches: int = 16
    """Number of batches of latents that the generator's batch statistics are averaged over; 0 for
    the running statistics of training."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every GAN recipe."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    spread_bytes: bool = False
    """Bytes u as u / 128 - 1 plus noise of U[0, 1 / 128), spread over their bins, in the place of
    2 u / 255 - 1."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    game: GameConfig = GameConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig()
    sampler: SamplerConfig = operational(SamplerConfig())


PENALTIES: dict[str, gan.Penalty] = {
    "wgan_gp": gradient_penalty,
    "r1": lambda critic, real, fake, key: r1_penalty(critic, real),
    "r2": lambda critic, real, fake, key: r2_penalty(critic, fake),
    "dragan": lambda critic, real, fake, key: dragan_penalty(critic, real, key),
}


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    train, held_out = load_splits(config)
    return gan_experiment(
        config,
        make_family(config, train),
        train,
        held_out,
        make_prepare(config),
        preprocessing="u / 128 - 1 + U[0, 1 / 128)" if config.spread_bytes else "2 u / 255 - 1",
    )


def gan_experiment(
    config: Any,
    family: Family,
    train: Source,
    held_out: Source,
    prepare: Callable[..., Any],
    **entries: Any,
) -> Experiment:
    """The experiment of a family of two players.

    Args:
        config: Flags of a recipe: batch_size, seed, average and game.
        family: Family of the flags.
        train: Examples to train on.
        held_out: Examples to evaluate on.
        prepare: Function `(key, raw batch, train) -> batch`.
        entries: What the protocol says of the recipe's own.
    """
    sweep = None if family.conditioning is None else family.conditioning.sweep
    known = family.conditioning is None or sweep is not None
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare,
        medium=IMAGES if sweep is None else IMAGES._replace(grid=(len(sweep), 8)),
        averages=make_averages(config.average, config.batch_size, of=(GENERATOR,)),
        distances=distances_from_training,
        pictures={"interpolation_linear": _linear_interpolation(family)} if known else {},
        protocol=protocol(
            held_out,
            loss=f"the discriminator's {config.game.loss} loss on held-out images and fakes; "
            "no measure of the samples",
            **entries,
        ),
    )


def make_prepare(config: Config) -> Callable[..., dict[str, Any]]:
    """`(key, raw batch, train) -> batch` of the flags."""
    plain = prepare_images(flip=config.flip)

    def spread(key: Any, raw: Mapping[str, Any], train: bool) -> dict[str, Any]:
        batch = plain(key, raw, train)
        image = batch["image"]
        noise = jax.random.uniform(jax.random.fold_in(key, 1), (image.size,)).reshape(image.shape)
        return {**batch, "image": (image + 1) * (127.5 / 128) - 1 + noise / 128}

    return spread if config.spread_bytes else plain


def make_family(config: Config, source: Source) -> Family:
    """The networks and their game."""
    game, optimizer = config.game, config.optimizer
    generator, discriminator = make_networks(config, source)
    conditioning = _conditioning(config, source)
    return gan.gan(
        generator,
        discriminator,
        make_adam(optimizer.generator),
        make_adam(counted_in_updates(optimizer.discriminator, game)),
        loss=game.loss,
        conditioning=conditioning,
        discriminator_repeats=game.discriminator_repeats,
        fakes_per_real=game.fakes_per_real,
        penalty=PENALTIES.get(game.penalty),
        penalty_weight=game.penalty_weight,
        penalty_every=game.penalty_every,
        auxiliary=make_auxiliary(game, conditioning) if config.model.auxiliary else None,
        augment=make_augment(game.augment) if game.augment else None,
        consistency_augment=_moved_and_mirrored if game.consistency_weight else None,
        consistency_weight=game.consistency_weight,
        truncation=config.sampler.truncation,
        standing_batches=config.sampler.standing_batches,
    )


def make_networks(config: Config, source: Source) -> tuple[Any, Any]:
    """(generator, discriminator) for the images of a source."""
    model = config.model
    height, width, image_channels = source.spec["image"][0]
    if height != width:
        raise ValueError(f"images must be square, got {height}x{width}: give --data.resize")
    axis_name = "data" if config.strategy == "pmap" else None
    kind = _conditioning(config, source) if model.auxiliary else None
    shared: dict[str, Any] = {"dtype": jnp.dtype(config.precision)}
    of_generator = {
        "image_size": height,
        "out_channels": image_channels,
        "channels": model.generator_channels,
        "latent_dim": model.latent_dim,
        "axis_name": axis_name,
        **shared,
    }
    of_discriminator = {
        "channels": model.discriminator_channels,
        "num_classes": None if kind is None else kind.width,
        **shared,
    }
    if model.network == "dcgan":
        dcgan.levels(height, model.min_size)
        return (
            dcgan.Generator(min_size=model.min_size, **of_generator),
            dcgan.Discriminator(
                min_size=model.min_size,
                batch_norm=model.batch_norm,
                axis_name=axis_name,
                stddev_group=model.stddev_group,
                **of_discriminator,
            ),
        )
    if model.network == "srresnet":
        if model.stddev_group or model.attention_size is not None or model.spectral_norm:
            raise ValueError(
                "--model.network srresnet has no --model.stddev-group, --model.attention-size and "
                "--model.spectral-norm"
            )
        srresnet_gan.doublings(height)  # refuses other sizes
        return (
            srresnet_gan.Generator(
                blocks=model.generator_blocks,
                kernel_size=model.generator_kernel,
                **of_generator,
            ),
            srresnet_gan.Discriminator(blocks=model.discriminator_blocks, **of_discriminator),
        )
    resnet_gan.generator_channels(height, model.generator_channels)  # refuses other sizes
    if height > 32:  # the network's own count is that at full size: 64 where 256 and 128 are given
        of_generator["channels"] = max(1, model.generator_channels // 4)
        of_discriminator["channels"] = max(1, model.discriminator_channels // 2)
    return (
        resnet_gan.Generator(attention_size=model.attention_size, **of_generator),
        resnet_gan.Discriminator(
            normalize=model.spectral_norm,
            pool=model.pool,
            stddev_group=model.stddev_group,
            attention_size=model.attention_size,
            **of_discriminator,
        ),
    )


def make_augment(policy: tuple[str, ...]) -> Augment:
    """Differentiable augmentation by the policy's names."""
    return functools.partial(diff_augment, policy=policy)


def counted_in_updates(adam: AdamConfig, game: GameConfig) -> AdamConfig:
    """The discriminator's Adam, its schedules counted in updates: those of all turns of a step."""

    def updates(steps: int) -> int:
        turns = -(-steps // game.penalty_every) if game.penalty_every > 1 else 0
        return (steps + turns) * game.discriminator_repeats

    decay_steps = None if adam.decay_steps is None else updates(adam.decay_steps)
    return replace(adam, warmup_steps=updates(adam.warmup_steps), decay_steps=decay_steps)


def _conditioning(config: Config, source: Source) -> Conditioning | None:
    model = config.model
    if model.auxiliary and model.condition == "none":
        return make_conditioning("label", source)
    return make_conditioning(model.condition, source, config.text)


def make_auxiliary(game: GameConfig, conditioning: Conditioning | None) -> gan.Auxiliary:
    """The weights of the classifier's losses, and of the game beside them."""
    weight = game.auxiliary_game
    if weight is None:
        weight = float((conditioning and conditioning.num_attributes) or 1)
    return gan.Auxiliary(game.auxiliary_real, game.auxiliary_fake, game.auxiliary_generator, weight)


def _linear_interpolation(family: Family) -> pictures.Picture:
    assert family.latents is not None
    linear = family.latents._replace(interpolate=functools.partial(interpolate, path="linear"))
    return pictures.interpolation(family._replace(latents=linear))


def _moved_and_mirrored(key, images):
    return diff_augment(key, random_flip(key, images), ("translation",))
