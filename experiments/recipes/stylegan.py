"""What the StyleGAN2 recipes share: their flags, and the way from flags to an experiment.

The recipes are `stylegan2_cifar` and `stylegan2_digits`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.core import Batch, Family, Variables
from jaxgen.data.sources import Source
from jaxgen.data.transforms import prepare_images
from jaxgen.families.gan_players import Augment
from jaxgen.families.stylegan import PathLength, stylegan, styles_of
from jaxgen.models.stylegan2 import Generator, sizes
from jaxgen.models.stylegan2_discriminator import Discriminator
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.pictures import Picture

from . import gan
from .gan import Games, OptimizerConfig, counted_in_updates, gan_experiment, make_augment
from .images import load_splits
from .shared import AdamConfig, AverageConfig, Conditions, make_adam, make_conditioning
from .text import TextConfig


@dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    channel_base: int = 32768
    """Channels times size of both networks' images, where these are fewer than `channel_max`."""
    channel_max: int = 512
    """Most channels of a layer."""
    latent_dim: int = 512
    """Width of the latents."""
    style_dim: int = 512
    """Width of the styles and of the mapping network."""
    mapping_layers: int = 8
    """Number of layers of the generator's mapping network."""
    mixing: float = 0.9
    """Probability that an example's styles are mixed in training."""
    residual: bool = True
    """Whether the discriminator's blocks have a shortcut."""
    stddev_group: int = 4
    """Size of a group of the minibatch standard deviation, in examples; 0 for none."""
    clamp: float | None = 256.0
    """Greatest size of an activation, so that small float types do not overflow; None for none."""
    condition: Conditions = "none"
    """Condition of both networks: it is embedded beside the latents, and projected in the
    discriminator."""


@dataclass(frozen=True)
class GameConfig:
    """The objective."""

    loss: Games = "non_saturating"
    """Loss of the two players."""
    r1_weight: float = 10.0
    """Weight gamma of R1, gamma / 2 times the square of the gradient's norm; 0 for none."""
    r1_every: int = 16
    """Steps from one turn of R1 to the next."""
    path_length_weight: float = 2.0
    """Weight of path length regularization; 0 for none."""
    path_length_every: int = 4
    """Steps from one turn of path length regularization to the next."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentations of everything that the discriminator sees in training."""
    ada_target: float | None = None
    """Mean sign of the verdicts on real images that adaptive augmentation (ADA) aims at; None for
    no such augmentation."""
    ada_ramp: int = 500_000
    """Images in which the probability of adaptive augmentation can rise from 0 to 1."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    truncation: float = 1.0
    """Share of the way from the mean style to a sample's own, psi; 1 for all of it."""
    random_noise: bool = False
    """Whether each sample has noise of its own, in the place of the layers' constant noise."""


_ADAM = AdamConfig(learning_rate=2e-3, b1=0.0, b2=0.99)


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every StyleGAN2 recipe."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    game: GameConfig = GameConfig()
    optimizer: OptimizerConfig = OptimizerConfig(_ADAM, _ADAM)
    average: AverageConfig = AverageConfig(half_life=10_000)
    sampler: SamplerConfig = operational(SamplerConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    train, held_out = load_splits(config)
    generator, discriminator = make_networks(config, train)
    family = make_family(config, train, generator, discriminator)
    prepare = prepare_images(flip=config.flip)
    entries = {"preprocessing": "2 u / 255 - 1"}
    experiment = gan_experiment(config, family, train, held_out, prepare, **entries)
    sweep = None if family.conditioning is None else family.conditioning.sweep
    if family.conditioning is not None and sweep is None:
        return experiment
    mixing = style_mixing(family, generator, config.sampler.truncation)
    return experiment._replace(pictures={**experiment.pictures, "style_mixing": mixing})


def style_mixing(family: Family, generator: Generator, truncation: float = 1.0) -> Picture:
    """Row i and column j: the coarser half of the styles of image i, the finer half of image j.

    On the diagonal are the images themselves. In a conditional family image i is of the condition i
    of the sweep.

    Args:
        family: Family of StyleGAN2, unconditional or with a sweep.
        generator: Its generator.
        truncation: Truncation psi of the styles.
    """
    styles = styles_of(generator, family.conditioning)
    assert family.latents is not None
    draw_latents, decode = family.latents.draw, family.decode
    assert draw_latents is not None
    assert decode is not None

    def draw(variables: Variables, batch: Batch, key: Any, rows: int, columns: int) -> Array:
        num = max(rows, columns)
        condition = None
        if family.conditioning is not None:
            sweep = jnp.asarray(family.conditioning.sweep)
            condition = sweep[jnp.arange(num) % len(sweep)]
        z = draw_latents(key, num)
        w = styles(variables, z, condition=condition, truncation=truncation)
        coarse = jnp.arange(generator.num_styles)[None, None, :, None] < generator.num_styles // 2
        mixed = jnp.where(coarse, w[:rows, None], w[None, :columns])
        return decode(variables, mixed.reshape(-1, *w.shape[1:]), key)

    return draw


def make_family(
    config: Config, source: Source, generator: Generator, discriminator: Discriminator
) -> Family:
    """The networks, their game and its regularization."""
    game, optimizer = config.game, config.optimizer
    weight, every = game.path_length_weight, game.path_length_every
    return stylegan(
        generator,
        discriminator,
        make_adam(lazy(optimizer.generator, every, weight, "path-length")),
        make_adam(lazy(optimizer.discriminator, game.r1_every, game.r1_weight, "r1")),
        loss=game.loss,
        conditioning=make_conditioning(config.model.condition, source, config.text),
        r1_weight=game.r1_weight,
        r1_every=game.r1_every,
        path_length=PathLength(weight, every) if weight else None,
        augment=choose_augment(game, config.batch_size),
        truncation=config.sampler.truncation,
        random_noise=config.sampler.random_noise,
    )


def make_networks(config: Config, source: Source) -> tuple[Generator, Discriminator]:
    """The two networks for the images of a source."""
    model = config.model
    height, width, image_channels = source.spec["image"][0]
    if height != width:
        raise ValueError(f"images must be square, got {height}x{width}: give --data.resize")
    sizes(height)  # refuses other sizes
    shared: dict[str, Any] = {
        "channel_base": model.channel_base,
        "channel_max": model.channel_max,
        "clamp": model.clamp,
        "dtype": jnp.dtype(config.precision),
    }
    generator = Generator(
        height,
        image_channels,
        latent_dim=model.latent_dim,
        style_dim=model.style_dim,
        mapping_layers=model.mapping_layers,
        mixing=model.mixing,
        **shared,
    )
    return generator, Discriminator(
        residual=model.residual, stddev_group=model.stddev_group, **shared
    )


def choose_augment(game: GameConfig, batch_size: int) -> Augment | Adaptive | None:
    """The augmentation of the flags: by names, adaptive or none.

    Args:
        game: Flags of the objective.
        batch_size: The examples of a step.

    Raises:
        ValueError: If both kinds are asked for.
    """
    if game.ada_target is None:
        return make_augment(game.augment) if game.augment else None
    if game.augment:
        raise ValueError("--game.augment must be empty with --game.ada-target: give one of the two")
    return Adaptive(batch_size, target=game.ada_target, ramp=game.ada_ramp)


def lazy(adam: AdamConfig, every: int, weight: float, name: str) -> AdamConfig:
    """Adam of an optimizer that has one more update every few steps (Karras et al. 2020, appendix
    B): with c = every / (every + 1) the rate is multiplied by c, and the moments' decays are raised
    to the power c. Its schedules are counted in updates.

    As in the authors' code the rate and the decays are these where the weight is 0, too.

    Args:
        adam: Adam as it would be without lazy regularization.
        every: Steps from one turn of the regularization to the next, at least 1.
        weight: Weight of the regularization; where it is 0 there are no such turns.
        name: Name of the regularization in the flag of its steps, for errors.

    Raises:
        ValueError: If there is less than a step from one turn to the next.
    """
    if every < 1:
        raise ValueError(f"--game.{name}-every must be at least 1, got {every}")
    share = every / (every + 1)
    counted = counted_in_updates(adam, gan.GameConfig(penalty_every=every if weight else 1))
    return replace(
        counted,
        learning_rate=adam.learning_rate * share,
        b1=adam.b1**share,
        b2=adam.b2**share,
    )
