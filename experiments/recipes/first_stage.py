"""First stages: their flags, the way from flags to an experiment, and from a run to its codec.

The recipes are `autoencoder_kl`, `vqgan` and `autoencoder_kl_digits`. A second stage opens a run of
theirs with `real_codec` (diffusion on real latents) or with `discrete_codec` (priors over codes).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import Family, LatentSpace
from jaxgen.data.pipeline import Pipeline
from jaxgen.families import bottlenecks
from jaxgen.families.bottlenecks import Bottleneck
from jaxgen.families.first_stage import first_stage
from jaxgen.families.latent import Codec, codes, continuous, latent_scale
from jaxgen.families.patch_game import PatchGame
from jaxgen.losses.gan import Adversarial, hinge, non_saturating
from jaxgen.models.autoencoder import Decoder, Encoder, Sizes, check_image_size
from jaxgen.models.vq import FiniteScalars
from jaxgen.sampling.latent import interpolate
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.pictures import Picture, between_examples
from jaxgen.training.runs import Run, find_recipe
from jaxgen.training.strategies import AXIS

from . import game
from .images import load_data
from .perceptual import PerceptualConfig, make_perceptual
from .shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_averages,
    protocol,
)

# What the generator minimizes is minus the logit in both: the authors' code has it so.
GAMES: Mapping[str, Adversarial] = {
    "hinge": hinge,
    "vanilla": non_saturating._replace(generator=hinge.generator),
}
_BATCH, _BATCHES = 64, 4  # of the data, for the deviation of the latents


@dataclass(frozen=True)
class ModelConfig:
    """The two networks and what lies between them."""

    bottleneck: Literal["kl", "vq", "fsq"] = "kl"
    """What lies between the networks: a Gaussian, a codebook, or numbers rounded one by one."""
    channels: int = 128
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level as multiples of the first level's; each but the last halves the
    image."""
    num_res_blocks: int = 2
    """Residual blocks a level of the encoder; the decoder has one more."""
    attention_factors: tuple[int, ...] = ()
    """Factors by which the image is smaller where each block is followed by self-attention."""
    latent_channels: int = 4
    """Numbers at a position of the latent map; with fsq as many as there are levels."""
    num_codes: int = 1024
    """Number of codes of a codebook (vq)."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Number of values of each of a code's numbers (fsq)."""
    remat: bool = False
    """Compute each block again in the backward pass: less memory for about a third more time."""


@dataclass(frozen=True)
class LossConfig:
    """What the bottleneck adds to the autoencoder's loss."""

    kl_weight: float = 1e-6
    """Weight of the divergence from N(0, I), of an example (kl)."""
    codebook_weight: float = 0.25
    """Weight of what moves the codes to the encoder's outputs (vq)."""
    commitment_weight: float = 1.0
    """Weight of what holds the encoder to its codes (vq)."""


@dataclass(frozen=True)
class GameConfig(game.GameConfig):
    """The discriminator of patches."""

    weight: float = 0.5
    """Factor of the adaptive weight of the adversarial loss; 0 for no discriminator."""
    start: int = 50_001
    """Step from which on there is a discriminator."""
    loss: Literal["hinge", "vanilla"] = "hinge"
    """Loss of the discriminator."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every first stage."""

    sample_every: int = operational(1000)
    """Number of steps between pictures of reconstructions, there being no prior to sample from; 0
    for none."""
    flip: bool = False
    """Mirror half of the training images."""
    model: ModelConfig = ModelConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    loss: LossConfig = LossConfig()
    game: GameConfig = GameConfig()
    optimizer: AdamConfig = AdamConfig()
    average: AverageConfig = AverageConfig(decay=0.0)
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    data, num_examples = load_data(config, flip=config.flip), config.evaluation.num_examples
    perceptual = config.perceptual
    distance = "L1"
    if perceptual.distance != "none":
        distance += f" + {perceptual.weight:g} {perceptual.distance}"
    family = make_family(config, data.image_shape)
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        averages=make_averages(config.average, config.batch_size),
        pictures={} if family.num_codes is None else {"between_examples": between_codes(family)},
        num_evaluated=num_examples,
        protocol=protocol(
            data.held_out,
            num_examples,
            loss=f"{distance} and the bottleneck's penalty, without the discriminator",
            psnr="mean over images of 10 log10(4 / mse) in [-1, 1], not cut off or rounded, dB",
            preprocessing=data.preprocessing,
        ),
    )


def make_family(config: Config, image_shape: tuple[int, int, int]) -> Family:
    """The networks, their bottleneck and their losses."""
    model, bottleneck = config.model, make_bottleneck(config)
    sizes = make_sizes(model)
    check_image_size(image_shape[:2], sizes)
    dtype = jnp.dtype(config.precision)
    return first_stage(
        Encoder(sizes, bottleneck.moments, dtype, model.remat),
        Decoder(sizes, image_shape[-1], dtype, model.remat),
        bottleneck,
        make_adam(config.optimizer),
        image_shape=image_shape,
        perceptual=make_perceptual(config.perceptual, image_shape, config.precision),
        perceptual_weight=config.perceptual.weight,
        game=make_game(config, image_shape),
        axis_name=_axis(config),
    )


def make_sizes(config: ModelConfig) -> Sizes:
    """The sizes of both networks."""
    dims = len(config.levels) if config.bottleneck == "fsq" else config.latent_channels
    factors = config.attention_factors
    return Sizes(config.multipliers, dims, factors, config.channels, config.num_res_blocks)


def make_bottleneck(config: Config) -> Bottleneck:
    """What lies between the networks."""
    model, loss = config.model, config.loss
    if model.bottleneck == "kl":
        return bottlenecks.gaussian(loss.kl_weight)
    if model.bottleneck == "fsq":
        return bottlenecks.finite_scalars(FiniteScalars(model.levels))
    return bottlenecks.codebook(
        model.num_codes,
        model.latent_channels,
        codebook_weight=loss.codebook_weight,
        commitment_weight=loss.commitment_weight,
    )


def make_game(config: Config, image_shape: tuple[int, int, int]) -> PatchGame | None:
    """The discriminator of the flags, trained as the autoencoder is; None for a weight of 0."""
    flags = config.game
    if not flags.weight:
        return None
    network = game.make_discriminator(flags, image_shape, config.precision, _axis(config))
    optimizer = make_adam(config.optimizer)
    return PatchGame(network, optimizer, flags.weight, flags.start, GAMES[flags.loss])


def real_codec(run: Run) -> Codec:
    """The codec of a first stage for a second one on real numbers: diffusion on its latents.

    Of a Gaussian draws, of codes the vectors before they are quantized, scaled to a deviation of 1
    over the first training images, as in latent diffusion (`scale_by_std`; its first batch).

    Args:
        run: Run of one of these recipes.
    """
    source, prepare = run.experiment.pipeline.source, run.experiment.prepare

    def batches() -> Any:
        for start in range(0, min(len(source), _BATCH * _BATCHES), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(source)))
            yield prepare(jax.random.key(start), jax.tree.map(jnp.asarray, source[rows]), False)

    scale = latent_scale(run.family, run.variables, batches(), continuous=True)
    return continuous(run.family, run.variables, scale=scale, continuous=True)


def discrete_codec(run: Run) -> tuple[Codec, tuple[int, int, int], int]:
    """The codec of a first stage for a second one on codes, such as a prior over them.

    Args:
        run: Run of a first stage.

    Returns:
        The codec, the shape [height, width, 1] of an example's codes, and the number of codes.

    Raises:
        ValueError: If the first stage has no codes.
    """
    num_codes, encode = run.family.num_codes, run.family.encode
    if num_codes is None or encode is None:
        raise ValueError(
            "--first-stage must be a run with codes, of vqvae_cifar or of vqgan "
            f"(--model.bottleneck vq or fsq), got one of {run.name}"
        )
    raw = jax.tree.map(jnp.asarray, run.experiment.pipeline.source[np.arange(1)])
    batch = run.experiment.prepare(jax.random.key(0), raw, False)
    indices = jax.eval_shape(encode, run.variables, batch, jax.random.key(0))
    _, height, width = indices.shape
    return codes(run.family, run.variables, num_codes=num_codes), (height, width, 1), num_codes


def check_finished(run: Run, run_dir: str) -> None:
    """Raises ValueError for a first stage that is not trained to its end.

    Args:
        run: Run of a first stage.
        run_dir: Directory that was given for it.
    """
    if run.step < run.config.steps:
        raise ValueError(
            f"--first-stage {run_dir} has done {run.step} of {run.config.steps} steps: resume it, "
            f"or say that it is done by `{find_recipe(run.name).command('train')} --run-dir "
            f"{run_dir} --steps {run.step}`"
        )


def between_codes(family: Family) -> Picture:
    """The picture between examples, on the straight way of their vectors before quantization.

    Args:
        family: First stage with codes.
    """
    return between_examples(
        family._replace(
            encode=partial(cast(Callable, family.encode), continuous=True),
            latents=LatentSpace(partial(interpolate, path="linear")),
        )
    )


def _axis(config: Config) -> str | None:
    return AXIS if config.strategy == "pmap" else None
