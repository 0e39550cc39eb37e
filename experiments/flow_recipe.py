"""What the flow recipes on images share: their flags, and the way from flags to an experiment.

A recipe is a subclass of `Config` whose defaults are the paper's table; it runs nothing by itself
here: see `realnvp_digits`, `realnvp_cifar`, `glow_mnist` and `glow_cifar`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxgen import conditioning
from jaxgen.conditioning import Conditioning
from jaxgen.core import Batch, Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source, load
from jaxgen.data.transforms import prepare_images, to_model_space, to_uint8
from jaxgen.families.flow import ROUND_TRIP, flow
from jaxgen.models.bijectors import Logit, chain
from jaxgen.models.glow import glow
from jaxgen.models.invertible_linear import check_invertible
from jaxgen.models.realnvp import realnvp_image
from jaxgen.training import latent_pictures, pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment, Picture
from jaxgen.training.optim import adam


@dataclass(frozen=True)
class ModelConfig:
    """The flow."""

    network: Literal["realnvp", "glow"] = "realnvp"
    """RealNVP's couplings under checkerboard and channel masks, or Glow's steps."""
    levels: int = 2
    """Scales of the image; all but the last factor out half of the variables."""
    steps: int = 32
    """Steps a level (glow)."""
    couplings: int = 3
    """Couplings of each mask a level (realnvp)."""
    blocks: int = 8
    """Residual blocks of each coupling's network (realnvp)."""
    width: int = 64
    """Hidden channels of the couplings' networks (realnvp: of the first level)."""
    coupling: Literal["affine", "additive"] = "affine"
    """Of glow."""
    lu: bool = True
    """Glow's 1x1 convolutions as LU products."""
    logit: bool = True
    """Take the data through a logit first, as RealNVP does."""
    class_conditional: bool = False
    """Tell the flow the label (glow)."""
    remat: bool = operational(False)
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: float = 1e-3
    """After warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    clip_norm: float = 100.0
    """Greatest global norm of the gradient."""
    ema: float = 0.999
    """Decay of the parameters' average, which samples and evaluations use."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of flows on images."""

    sample_every: int = operational(1000)
    checkpoint_every: int = operational(1000)
    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    temperature: float = operational(1.0)
    """Standard deviation of the latents that samples come from."""
    direction: tuple[int, int] = operational((3, 8))
    """Of `--picture direction`: from examples of the first class towards the second."""
    num_evaluated: int | None = operational(None)
    """`evaluate` reads the first so many held-out examples; None for all."""


def build(config: Config) -> Experiment:
    """The experiment of a config: bijector, family, data."""
    data, optimizer = config.data, config.optimizer
    train = load(data.name, data.split, data.dir, resize=data.resize)
    held_out = load(data.name, data.held_out, data.dir, resize=data.resize)
    shape = train.spec["image"][0]
    condition: Conditioning | None = None
    if config.model.class_conditional:
        if train.num_classes is None:
            raise ValueError(f"--model.class-conditional needs labels; {data.name} has none")
        condition = conditioning.labels(train.num_classes)
    family = flow(
        make_model(config, shape),
        adam(
            optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            clip_norm=optimizer.clip_norm,
        ),
        event_shape=shape,
        conditioning=condition,
        temperature=config.temperature,
        round_trip=True,
    )

    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=config.flip),
        to_images=to_uint8,
        ema=optimizer.ema,
        sample_condition=None if condition is None else pictures.by_row(condition.sweep),
        grid=(8, 8) if condition is None else (train.num_classes or 1, 8),
        pictures=make_pictures(config, family, train, condition),
        num_evaluated=config.num_evaluated,
        check=check_invertible,
        protocol={
            "bits_per_dim": "bound of the 8-bit data: exact density of uniformly dequantized data, "
            "one draw",
            "data": held_out.protocol,
            "num_examples": min(len(held_out), config.num_evaluated or len(held_out)),
            "round_trip": ROUND_TRIP,
            "preprocessing": "(u + U[0, 1)) / 256" + (", logit" if config.model.logit else ""),
        },
    )


def make_model(config: Config, shape: tuple[int, ...]) -> Any:
    """The bijector of the flags."""
    model, dtype = config.model, jnp.dtype(config.precision)
    height, width, _ = shape
    halvings = model.levels if model.network == "glow" else model.levels - 1
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"--model.levels {model.levels} needs sides that 2^{halvings} divides, the images "
            f"have {height}x{width}: give --data.resize or fewer levels"
        )
    if model.network == "glow":
        body = glow(
            model.levels,
            model.steps,
            model.width,
            coupling=model.coupling,
            lu=model.lu,
            remat=model.remat,
            dtype=dtype,
        )
    else:
        if model.class_conditional:
            raise ValueError("--model.class-conditional needs --model.network glow")
        body = realnvp_image(
            model.levels,
            model.width,
            model.blocks,
            num_couplings=model.couplings,
            remat=model.remat,
            dtype=dtype,
        )
    return chain(Logit(), body) if model.logit else body


def make_pictures(
    config: Config, family: Family, train: Source, condition: Conditioning | None
) -> dict[str, Picture]:
    """Paths between random and between real images, a class's direction; one row a class."""
    latent_dim = math.prod(train.spec["image"][0])
    sweep, key = (None, None) if condition is None else (condition.sweep, condition.key)
    drawn = {
        "reconstructions": latent_pictures.reconstructions(family, condition_key=key),
        "interpolation": pictures.interpolation(family, latent_dim, sweep=sweep),
        "between_examples": latent_pictures.between_examples(
            family, path="linear", condition_key=key
        ),
    }
    if condition is not None:
        drawn["conditions"] = pictures.condition_sweep(family, latent_dim, sweep)
    if train.num_classes is not None and train.num_classes > max(config.direction):

        def examples(label: int) -> Callable[[], Batch]:
            return lambda: _examples(train, label)

        drawn["direction"] = latent_pictures.attribute_direction(
            family, *(examples(label) for label in config.direction), condition_key=key
        )
    return drawn


def _examples(source: Source, label: int, most: int = 64) -> Batch:
    """The first examples of a class, prepared."""
    batch = source[np.arange(min(len(source), 100 * most))]
    rows = np.flatnonzero(batch["label"] == label)[:most]
    chosen = {name: jnp.asarray(values[rows]) for name, values in batch.items()}
    return {**chosen, "image": to_model_space(chosen["image"])}
