"""What the flow recipes on images share: their flags, and the way from flags to an experiment.

The recipes are `realnvp_digits`, `realnvp_cifar`, `glow_mnist` and `glow_cifar`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.core import Batch, Family, Params
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source
from jaxgen.data.transforms import prepare_images, to_model_space
from jaxgen.families.flow import ROUND_TRIP, check_values, flow
from jaxgen.metrics.measure import distances_from_training
from jaxgen.models.bijectors.algebra import Logit, chain
from jaxgen.models.bijectors.skip_resnet import sum_of_squared_scales
from jaxgen.models.glow import glow
from jaxgen.models.realnvp import realnvp_image
from jaxgen.training import pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.pictures import Picture

from .images import load_splits
from .shared import (
    AdamConfig,
    AverageConfig,
    Conditions,
    EvaluationConfig,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)
from .text import TextConfig


@dataclass(frozen=True)
class ModelConfig:
    """The flow."""

    network: Literal["realnvp", "glow"] = "realnvp"
    """Kind of flow: RealNVP's couplings under checkerboard and channel masks, or Glow's steps."""
    levels: int = 2
    """Number of scales of the image; all but the last factor out half of the variables."""
    steps: int = 32
    """Number of steps of a level (glow)."""
    couplings: int = 3
    """Number of couplings of each mask in a level (realnvp)."""
    blocks: int = 8
    """Number of residual blocks of each coupling's network (realnvp)."""
    width: int = 64
    """Hidden channels of the couplings' networks (realnvp: of the first level)."""
    coupling: Literal["affine", "sigmoid", "additive"] = "affine"
    """Kind of Glow's couplings: x e^s + t with bounded s, (x + t) sigmoid(r + 2), or x + t."""
    lu: bool = True
    """Make Glow's 1x1 convolutions of LU products."""
    bound: float | None = 2.0
    """Greatest size of log-scales of priors and affine couplings, in nats; None for none (glow)."""
    edges: bool = False
    """Tell Glow's 3x3 convolutions and priors where the image ends."""
    log_scale_factor: float | None = None
    """Factor of Glow's learned log-scales, of activation normalization and of a scale after each
    convolution that starts at 0; None for 1 and for no such scale."""
    skips: bool = False
    """Give RealNVP's residual networks a skip from each block to the output, weight normalization
    and learned log-scales."""
    diagonal: bool = False
    """Let RealNVP factor out the pixels off the diagonal of each 2x2 block, not the odd rows."""
    logit: bool = True
    """Take the data through a logit first, as RealNVP does."""
    values: int = 256
    """Number of values of a pixel, evenly spaced in 0..255, over whose bins noise is spread; fewer
    than 256 where the data have no others."""
    condition: Conditions = "none"
    """Condition of the flow (glow)."""
    remat: bool = operational(False)
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class OptimizerConfig(AdamConfig):
    """Adam, or Adamax."""

    learning_rate: float = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: int = 100
    """Steps over which the rate rises linearly from 0."""
    clip_norm: float | None = 100.0
    """Greatest global norm of the gradient; None for no clipping."""
    infinity: bool = False
    """Divide by a decayed maximum of the gradient, not the root of the second moment (Adamax)."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of flows on images."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    shift: float = 0.0
    """Greatest shift of training images, as a share of their sides."""
    l2: float = 0.0
    """Weight of the squares of all learned scales of RealNVP's networks in the loss, nats."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Standard deviation of the latents that samples come from."""
    direction: tuple[int, int] = operational((3, 8))
    """Classes of `--picture direction`: from examples of the first towards the second."""
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: bijector, family, data."""
    train, held_out = load_splits(config)
    shape, values = train.spec["image"][0], config.model.values
    for source in (train, held_out):
        first = source[np.arange(min(len(source), 256))]["image"]
        check_values(to_model_space(jnp.asarray(first)), values)
    family = flow(
        make_model(replace(config, precision="float32"), shape),
        make_adam(config.optimizer, infinity=config.optimizer.infinity),
        event_shape=shape,
        training_model=make_model(config, shape),
        conditioning=make_conditioning(config.model.condition, train, config.text),
        penalty=make_penalty(config),
        num_values=values,
        temperature=config.temperature,
        round_trip=True,
    )
    drawn, left_out = direction_picture(config, family, train)
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=config.flip, shift=config.shift),
        averages=make_averages(config.average, config.batch_size),
        distances=distances_from_training,
        pictures=drawn,
        left_out=left_out,
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            held_out,
            config.evaluation.num_examples,
            bits_per_dim="bound of the 8-bit data: exact density of uniformly dequantized data, "
            "one draw" + ("" if values == 256 else f", pixels of {values} values"),
            round_trip=ROUND_TRIP,
            preprocessing=f"(u + U[0, 1)) / {values}" + (", logit" if config.model.logit else ""),
        ),
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
            bound=model.bound,
            edges=model.edges,
            log_scale_factor=model.log_scale_factor,
            remat=model.remat,
            dtype=dtype,
        )
    else:
        if model.condition != "none":
            raise ValueError("--model.condition needs --model.network glow")
        if model.bound is None:
            raise ValueError("--model.bound None needs --model.network glow")
        body = realnvp_image(
            model.levels,
            model.width,
            model.blocks,
            num_couplings=model.couplings,
            skips=model.skips,
            diagonal=model.diagonal,
            bound=model.bound,
            remat=model.remat,
            dtype=dtype,
        )
    return chain(Logit(), body) if model.logit else body


def make_penalty(config: Config) -> Callable[[Params], Array] | None:
    """The L2 penalty of the flags, or None.

    Raises:
        ValueError: A negative weight, or one of scales that the network does not have.
    """
    if not 0 <= config.l2 < math.inf:
        raise ValueError(f"--l2 must be at least 0 and finite, got {config.l2}")
    if not config.l2:
        return None
    if config.model.network != "realnvp" or not config.model.skips:
        raise ValueError("--l2 needs --model.network realnvp and --model.skips")
    return lambda params: config.l2 * sum_of_squared_scales(params)


def direction_picture(
    config: Config, family: Family, train: Source
) -> tuple[dict[str, Picture], dict[str, str]]:
    """The picture `direction` between two classes by name, where the data has classes.

    Returns:
        The picture, or nothing; and, by its name, why it is left out, or nothing.
    """
    classes = train.num_classes
    if classes is None:
        return {}, {}
    if not all(0 <= label < classes for label in config.direction):
        named = " ".join(map(str, config.direction))
        return {}, {"direction": f"--direction must be classes in 0..{classes - 1}, got {named}"}

    def examples(label: int) -> Callable[[], Batch]:
        return lambda: _examples(train, label)

    groups = (examples(label) for label in config.direction)
    return {"direction": pictures.attribute_direction(family, *groups)}, {}


def _examples(source: Source, label: int, most: int = 64) -> Batch:
    """The first examples of a class, prepared."""
    batch = source[np.arange(min(len(source), 100 * most))]
    rows = np.flatnonzero(batch["label"] == label)[:most]
    chosen = {name: jnp.asarray(values[rows]) for name, values in batch.items()}
    return {**chosen, "image": to_model_space(chosen["image"])}
