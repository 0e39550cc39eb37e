"""What the PixelCNN and ImageGPT recipes share: their flags, and the way to an experiment.

The recipes are `pixelcnn_digits`, `pixelcnn_captioned_digits`, `pixelcnn_mnist`,
`pixelcnnpp_cifar`, `imagegpt_digits` and `imagegpt_cifar`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from jaxgen.core import Batch, Family, PyTree
from jaxgen.data import palette as palettes
from jaxgen.data.palette import Colours
from jaxgen.data.pipeline import Pipeline
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.classify import evaluate_as_classifier
from jaxgen.families.latent import Codec, on_latents
from jaxgen.metrics.measure import distances_from_training
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.models.transformer import Transformer
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .images import Binarize, Data, load_data
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

FILE = "palette.npy"


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    network: Literal["pixelcnn", "gated", "pixelcnnpp", "transformer"] = "gated"
    """Kind of network: PixelCNN, gated PixelCNN and ImageGPT's transformer give a softmax over each
    channel's values, PixelCNN++ a mixture of logistics."""
    features: int = 128
    """Number of channels of the hidden layers; the transformer's width."""
    layers: int = 15
    """Number of residual blocks (pixelcnn), gated layers (gated) or blocks (transformer)."""
    num_heads: int = 8
    """Number of heads of the attention (transformer)."""
    kernel_size: int = 3
    """Kernel size of the gated layers but the first (gated)."""
    head_features: int = 256
    """Number of channels of the last hidden layer (pixelcnn, gated)."""
    res_blocks: int = 5
    """Number of residual blocks of a level (pixelcnnpp)."""
    levels: int = 3
    """Number of resolutions (pixelcnnpp)."""
    mixtures: int = 10
    """Number of logistics of a pixel (pixelcnnpp)."""
    dropout: float = 0.0
    """Dropout rate within the residual blocks (pixelcnnpp), after the gates (gated), or on what
    each part of a block adds (transformer)."""
    condition: Conditions = "none"
    """Condition of the network (gated, pixelcnnpp, transformer)."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every PixelCNN and ImageGPT recipe."""

    binarize: Binarize = "none"
    """Way to pixels of 0 and 1: a threshold, one draw for the run, or a draw for each batch."""
    palette: int | None = None
    """Number of colours of a palette, found by k-means, whose codes stand for the pixels; the run
    keeps it. None for the values of the channels as they are."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3)
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Temperature of samples: below 1 the likely becomes likelier."""
    sampler: Literal["cached", "naive"] = operational("cached")
    """Way of sampling: one position's work a position, or a whole pass (for comparison)."""
    classify: bool = operational(False)
    """Let `evaluate` also classify, p(y | x) by Bayes' rule (one likelihood a class)."""
    evaluation: EvaluationConfig = operational(EvaluationConfig())

    @staticmethod
    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        """The flags of an older run, which had a `cosine` of its own, by the names of now."""
        new = dict(values)
        if "cosine" in new:
            schedule = "cosine" if new.pop("cosine") else None
            new["optimizer"] = {**new["optimizer"], "schedule": schedule}
        return new


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    data = load_data(config, config.binarize, flip=config.flip)
    palette = None if config.palette is None else make_palette(config, data)
    family = make_family(config, data, palette)
    given = "" if family.conditioning is None else f", given its {family.conditioning.key}"
    of = "" if palette is None else f" of the {len(palette)} colours' codes, not of the bytes"
    if config.classify:
        if family.conditioning is None or family.conditioning.num_classes is None:
            raise ValueError("--classify needs --model.condition label")
        family = evaluate_as_classifier(family, family.conditioning.num_classes)
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        averages=make_averages(config.average, config.batch_size),
        distances=distances_from_training,
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            data.held_out,
            config.evaluation.num_examples,
            loss=f"-log p, exact{of}, nats an example{given}",
            preprocessing=data.preprocessing,
        ),
        files={} if palette is None else {FILE: palettes.content_of(palette)},
    )


def make_palette(config: Config, data: Data) -> Colours:
    """The palette of a run: the one that it keeps, else that of its data and seed.

    Raises:
        ValueError: If the data have fewer colours, or the flags do not go together.
    """
    if config.binarize != "none" or config.model.network == "pixelcnnpp":
        raise ValueError("--palette goes with --binarize none and a network of a softmax")
    assert config.palette is not None
    kept = Path(config.run_dir) / FILE
    if kept.exists():
        return palettes.read(kept, config.palette, data.image_shape[-1])
    return palettes.find(data.train, config.palette, config.seed)


def in_palette(family: Family, colours: Colours) -> Family:
    """A family of images of codes, `[B, H, W, 1]`, as one of images in a palette's colours.

    Its likelihood is that of the codes.

    Args:
        family: Family of images of as many values as there are colours.
        colours: Palette, f32[K, C] in [-1, 1].
    """

    def encode(fixed: PyTree, batch: Batch, key: Array) -> Batch:
        return {**batch, "image": palettes.values_of(colours, batch["image"])}

    def decode(fixed: PyTree, latents: Array, key: Array) -> Array:
        return palettes.images_of(colours, latents)

    return on_latents(family, Codec(encode, decode, {}, per_pixel=True))


def make_family(config: Config, data: Data, palette: Colours | None = None) -> Family:
    """The network of the flags, and its likelihood."""
    num_values = 256 if config.binarize == "none" else 2
    image_shape = data.image_shape
    if palette is not None:
        num_values, image_shape = len(palette), (*image_shape[:2], 1)
    mixture = config.model.network == "pixelcnnpp"
    family = autoregressive(
        make_network(config.model, image_shape, num_values, config.precision),
        make_adam(config.optimizer),
        image_shape=image_shape,
        likelihood="mixture_of_logistics" if mixture else "categorical",
        num_values=num_values,
        conditioning=make_conditioning(config.model.condition, data.train, config.text),
        temperature=config.temperature,
        sampler=config.sampler,
    )
    return family if palette is None else in_palette(family, palette)


def make_network(
    model: ModelConfig, image_shape: tuple[int, int, int], num_values: int, precision: str
) -> Any:
    """The network of the flags."""
    channels, dtype = image_shape[-1], jnp.dtype(precision)
    if model.network == "pixelcnnpp":
        return PixelCNNPP(
            channels,
            model.features,
            model.res_blocks,
            model.levels,
            model.mixtures,
            model.dropout,
            dtype=dtype,
        )
    if model.network == "transformer":
        return Transformer(
            num_values,
            math.prod(image_shape),
            model.features,
            model.layers,
            model.num_heads,
            model.dropout,
            dtype,
        )
    if model.network == "gated":
        return GatedPixelCNN(
            channels,
            num_values,
            model.features,
            model.layers,
            model.kernel_size,
            model.head_features,
            model.dropout,
            dtype=dtype,
        )
    if model.condition != "none" or model.dropout:
        raise ValueError("--model.network pixelcnn takes no --model.condition and no dropout")
    return PixelCNN(
        channels, num_values, model.features, model.layers, model.head_features, dtype=dtype
    )
