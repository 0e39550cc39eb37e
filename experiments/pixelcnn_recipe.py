"""What the PixelCNN recipes share: their flags, and the way from flags to an experiment.

A recipe is a subclass of `Config` whose defaults are the paper's table; it runs nothing by itself
here: see `pixelcnn_digits`, `pixelcnn_mnist` and `pixelcnnpp_cifar`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from experiments.image_data import Binarize, Data, load_data
from jaxgen import conditioning
from jaxgen.conditioning import Conditioning
from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.transforms import to_uint8
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.classifier import evaluate_as_classifier
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.training import pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment, Picture
from jaxgen.training.optim import adam


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    network: Literal["pixelcnn", "gated", "pixelcnnpp"] = "gated"
    """PixelCNN and gated PixelCNN give a softmax over each channel's values, PixelCNN++ a mixture
    of logistics."""
    features: int = 128
    """Channels of the hidden layers."""
    layers: int = 15
    """Residual blocks (pixelcnn) or gated layers (gated)."""
    kernel_size: int = 3
    """Of the gated layers but the first (gated)."""
    head_features: int = 256
    """Of the last hidden layer (pixelcnn, gated)."""
    res_blocks: int = 5
    """Residual blocks a level (pixelcnnpp)."""
    levels: int = 3
    """Resolutions (pixelcnnpp)."""
    mixtures: int = 10
    """Logistics a pixel (pixelcnnpp)."""
    dropout: float = 0.0
    """Rate within the residual blocks (pixelcnnpp) or after the gates (gated)."""
    condition: Literal["none", "label"] = "none"
    """What the network is told (gated, pixelcnnpp)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: float = 1e-3
    """At the start."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    decay_rate: float | None = None
    """Factor of the rate from one update to the next; None for none."""
    decay_steps: int | None = None
    """Updates over which the rate falls linearly to zero; None for none."""
    ema: float = 0.999
    """Decay of the parameters' average, which samples and evaluations use."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every PixelCNN recipe."""

    sample_every: int = operational(1000)
    checkpoint_every: int = operational(1000)
    binarize: Binarize = "none"
    """Pixels of 0 and 1: by a threshold, by one draw for the run, or by a draw for each batch."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    temperature: float = operational(1.0)
    """Of samples: below 1 the likely becomes likelier."""
    sampler: Literal["cached", "naive"] = operational("cached")
    """One position's work a position, or a whole pass (for comparison)."""
    classify: bool = operational(False)
    """`evaluate` also as a classifier, p(y | x) by Bayes' rule (one likelihood a class)."""
    num_evaluated: int | None = operational(None)
    """`evaluate` reads the first so many held-out examples; None for all."""


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    data = load_data(config.data, config.binarize, flip=config.flip)
    condition: Conditioning | None = None
    if config.model.condition == "label":
        if data.train.num_classes is None:
            raise ValueError(f"--model.condition label needs labels; {config.data.name} has none")
        condition = conditioning.labels(data.train.num_classes)
    family = make_family(config, data, condition)
    drawn: dict[str, Picture] = {
        "completions": pictures.completions(family, None if condition is None else condition.key)
    }
    if config.classify:
        if condition is None:
            raise ValueError("--classify needs --model.condition label")
        family = evaluate_as_classifier(family, condition.num_classes or 0)
    optimizer = config.optimizer
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        to_images=to_uint8,
        ema=optimizer.ema,
        ema_of=None if optimizer.ema else (),
        sample_condition=None if condition is None else pictures.by_row(condition.sweep),
        grid=(8, 8) if condition is None else (condition.num_classes or 1, 8),
        pictures=drawn,
        num_evaluated=config.num_evaluated,
        protocol={
            "loss": "-log p, exact, nats an example"
            + ("" if condition is None else ", given its label"),
            "data": data.held_out.protocol,
            "num_examples": min(len(data.held_out), config.num_evaluated or len(data.held_out)),
            "preprocessing": data.preprocessing,
        },
    )


def make_family(config: Config, data: Data, condition: Conditioning | None) -> Family:
    """The network of the flags, and its likelihood."""
    optimizer = config.optimizer
    num_values = 256 if config.binarize == "none" else 2
    mixture = config.model.network == "pixelcnnpp"
    return autoregressive(
        make_network(config.model, data.image_shape, num_values, config.precision),
        adam(
            optimizer.learning_rate,
            b1=optimizer.b1,
            b2=optimizer.b2,
            decay_rate=optimizer.decay_rate,
            decay_steps=optimizer.decay_steps,
        ),
        image_shape=data.image_shape,
        likelihood="mixture_of_logistics" if mixture else "categorical",
        num_values=num_values,
        conditioning=condition,
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
