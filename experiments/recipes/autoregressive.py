"""What the PixelCNN recipes share: their flags, and the way from flags to an experiment.

The recipes are `pixelcnn_digits`, `pixelcnn_mnist` and `pixelcnnpp_cifar`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from experiments.recipes.images import Binarize, Data, load_data
from experiments.recipes.shared import (
    AdamConfig,
    AverageConfig,
    Conditions,
    EvaluationConfig,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)
from experiments.recipes.text import TextConfig
from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.classify import evaluate_as_classifier
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    network: Literal["pixelcnn", "gated", "pixelcnnpp"] = "gated"
    """Kind of network: PixelCNN and gated PixelCNN give a softmax over each channel's values,
    PixelCNN++ a mixture of logistics."""
    features: int = 128
    """Number of channels of the hidden layers."""
    layers: int = 15
    """Number of residual blocks (pixelcnn) or gated layers (gated)."""
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
    """Dropout rate within the residual blocks (pixelcnnpp) or after the gates (gated)."""
    condition: Conditions = "none"
    """Condition of the network (gated, pixelcnnpp)."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every PixelCNN recipe."""

    binarize: Binarize = "none"
    """Way to pixels of 0 and 1: a threshold, one draw for the run, or a draw for each batch."""
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


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    data = load_data(config, config.binarize, flip=config.flip)
    family = make_family(config, data)
    given = "" if family.conditioning is None else f", given its {family.conditioning.key}"
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
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            data.held_out,
            config.evaluation.num_examples,
            loss=f"-log p, exact, nats an example{given}",
            preprocessing=data.preprocessing,
        ),
    )


def make_family(config: Config, data: Data) -> Family:
    """The network of the flags, and its likelihood."""
    num_values = 256 if config.binarize == "none" else 2
    mixture = config.model.network == "pixelcnnpp"
    return autoregressive(
        make_network(config.model, data.image_shape, num_values, config.precision),
        make_adam(config.optimizer),
        image_shape=data.image_shape,
        likelihood="mixture_of_logistics" if mixture else "categorical",
        num_values=num_values,
        conditioning=make_conditioning(config.model.condition, data.train, config.text),
        temperature=config.temperature,
        sampler=config.sampler,
    )


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
