"""What the StackGAN recipes share: their flags, and the way from flags to an experiment.

The recipes are `stackgan_stage1`, `stackgan_stage2` and `stackgan_digits`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from jaxgen.conditioning.base import Conditioning, frozen
from jaxgen.core import Family
from jaxgen.data.sources import Source
from jaxgen.data.tokens import Tokenized
from jaxgen.data.transforms import prepare_images
from jaxgen.families import gan
from jaxgen.families.gan_players import GENERATOR
from jaxgen.models import stackgan
from jaxgen.models.dcgan import levels
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.runs import open_run

from .gan import (
    Games,
    OptimizerConfig,
    SamplerConfig,
    gan_experiment,
    make_augment,
)
from .images import load_splits
from .shared import AdamConfig, AverageConfig, make_adam, make_conditioning
from .text import TextConfig

BIRDS = 8855
"""Training images of Caltech-UCSD Birds in the authors' split by class, of which epochs are."""


@dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    generator_channels: int = 128
    """Channels of the generator's last hidden layer (stage I), of its first one (stage II)."""
    discriminator_channels: int = 64
    """Channels of the discriminator's first layer."""
    condition_dim: int = 128
    """Width of the code that the generator draws of a condition, and of the discriminator's map of
    it."""
    batch_norm: bool = True
    """Batch normalization of the discriminator."""


@dataclass(frozen=True)
class Stage1ModelConfig(ModelConfig):
    """The two networks, and what they are told."""

    noise_dim: int = 100
    """Width of the noise."""
    min_size: int = 4
    """Least side of the innermost image."""
    condition: Literal["label", "attributes", "text", "embedding"] = "text"
    """Condition of both networks."""


@dataclass(frozen=True)
class Stage2ModelConfig(ModelConfig):
    """The two networks of stage II."""

    blocks: int = 4
    """Number of the generator's residual units."""
    min_size: int = 4
    """Least side of the discriminator's innermost image."""


@dataclass(frozen=True)
class GameConfig:
    """The objective."""

    loss: Games = "non_saturating"
    """Loss of the two players."""
    mismatch: float = 0.5
    """Share of real images with another image's condition in what the discriminator refuses."""
    kl_weight: float = 2.0
    """Weight of the divergence of a condition's code from N(0, I), a mean over its dimensions, in
    the generator's loss."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentations of everything that the discriminator sees in training."""


_EPOCHS = AdamConfig(learning_rate=2e-4, b1=0.5, decay_rate=0.5, decay_every=50 * (BIRDS // 64))


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of both stages."""

    flip: bool = True
    """Mirror half of the training images left to right."""
    shift: float = 6 / 64
    """Greatest shift of training images, as a share of their sides."""
    game: GameConfig = GameConfig()
    optimizer: OptimizerConfig = OptimizerConfig(_EPOCHS, _EPOCHS)
    average: AverageConfig = AverageConfig(decay=0.0)
    # Running statistics: standing ones would be of those conditions alone that are asked for.
    sampler: SamplerConfig = operational(SamplerConfig(standing_batches=0))


@dataclass(frozen=True)
class Stage1Config(Config):
    """Flags of stage I."""

    model: Stage1ModelConfig = Stage1ModelConfig()
    text: TextConfig = TextConfig()


@dataclass(frozen=True)
class Stage2Config(Config):
    """Flags of stage II."""

    first_stage: str = operational("runs/stackgan_stage1")
    """Run directory of stage I; it may move, but not be trained on."""
    model: Stage2ModelConfig = Stage2ModelConfig()


def build_stage1(config: Stage1Config) -> Experiment:
    """The experiment of stage I: coarse images of conditions."""
    train, held_out = load_splits(config)
    conditioning = make_conditioning(config.model.condition, train, config.text)
    assert conditioning is not None
    generator = make_generator(config, train)
    family = _family(config, train, generator, conditioning)
    return _experiment(config, family, train, held_out)


def build_stage2(config: Stage2Config) -> Experiment:
    """The experiment of stage II: finer images, of the same conditions, through stage I's.

    Raises:
        ValueError: If the first stage is no run of stage I, or was told something else.
    """
    first = open_run(config.first_stage, data={"dir": config.data.dir})
    if not isinstance(first.config, Stage1Config):
        raise ValueError(
            "--first-stage must be a run of StackGAN's stage I, such as stackgan_stage1, got "
            f"{config.first_stage}, one of {first.name}"
        )
    small = first.experiment.pipeline.source
    train, held_out = load_splits(config)
    if isinstance(small, Tokenized):  # captions mean what they meant to stage I
        train, held_out = (Tokenized(source, small.tokenizer) for source in (train, held_out))
    conditioning = _conditioning_of(first, train)
    shared = _shared(config)
    generator = stackgan.Refiner(
        make_generator(first.config, small),
        _side(train),
        config.model.generator_channels,
        config.model.condition_dim,
        config.model.blocks,
        **shared,
    )
    stackgan.refinements(_side(small), _side(train))  # refuses other sizes
    stage1 = {stackgan.FIRST: first.variables.params[GENERATOR]}
    family = _family(config, train, generator, conditioning, frozen=stage1)
    entry = f"{first.name}, {first.step} steps"
    return _experiment(config, family, train, held_out, first_stage=entry)


def make_generator(config: Stage1Config, source: Source) -> stackgan.Generator:
    """Stage I's generator, for the images of a source."""
    model = config.model
    levels(_side(source), model.min_size)  # refuses other sizes
    return stackgan.Generator(
        _side(source),
        source.spec["image"][0][-1],
        model.generator_channels,
        model.noise_dim,
        model.condition_dim,
        model.min_size,
        **_shared(config),
    )


def _family(
    config: Any, source: Source, generator: Any, conditioning: Conditioning, **options: Any
) -> Family:
    """The game of a generator and a discriminator."""
    model, game, optimizer = config.model, config.game, config.optimizer
    levels(_side(source), model.min_size)
    discriminator = stackgan.Discriminator(
        model.discriminator_channels,
        model.condition_dim,
        model.min_size,
        model.batch_norm,
        **_shared(config),
    )
    return gan.gan(
        generator,
        discriminator,
        make_adam(optimizer.generator),
        make_adam(optimizer.discriminator),
        loss=game.loss,
        conditioning=conditioning,
        mismatch=game.mismatch,
        kl_weight=game.kl_weight,
        augment=make_augment(game.augment) if game.augment else None,
        truncation=config.sampler.truncation,
        standing_batches=config.sampler.standing_batches,
        **options,
    )


def _conditioning_of(first: Any, source: Source) -> Conditioning:
    """Stage I's conditioning, frozen, for other images that are told the same."""
    trained = first.family.conditioning
    own = make_conditioning(first.config.model.condition, source, first.config.text)
    assert trained is not None
    assert own is not None
    if (own.shape, own.names) != (trained.shape, trained.names):
        raise ValueError(
            f"--first-stage was told other {trained.key!r} than {source.name} has: "
            f"{_described(trained)}, not {_described(own)}"
        )
    return frozen(trained, first.variables)


def _described(conditioning: Conditioning) -> str:
    names = ", ".join(conditioning.names[:10])
    return f"shape {conditioning.shape}" + (f" ({names}, ...)" if names else "")


def _experiment(
    config: Any, family: Family, train: Source, held_out: Source, **entries: Any
) -> Experiment:
    prepare = prepare_images(flip=config.flip, shift=config.shift)
    entries["preprocessing"] = "2 u / 255 - 1"
    return gan_experiment(config, family, train, held_out, prepare, **entries)


def _side(source: Source) -> int:
    height, width, _ = source.spec["image"][0]
    if height != width:
        raise ValueError(f"images must be square, got {height}x{width}: give --data.resize")
    return height


def _shared(config: RunConfig) -> dict[str, Any]:
    axis_name = "data" if config.strategy == "pmap" else None
    return {"axis_name": axis_name, "dtype": jnp.dtype(config.precision)}
