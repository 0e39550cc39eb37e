"""What the VAE recipes share: their flags, and the way from flags to an experiment.

The recipes are `vae_digits`, `vae_mnist`, `beta_vae`, `infovae_mnist`, `cvae_mnist` and
`perceptual_vae`; those of `experiments.recipes.autoencoder` and `experiments.recipes.vq` use parts
of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import optax

from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.distributions import likelihoods
from jaxgen.distributions.likelihoods import Likelihood
from jaxgen.families import vae
from jaxgen.metrics.measure import distances_from_training
from jaxgen.models import vae as networks
from jaxgen.models.dcgan import levels
from jaxgen.models.realnvp import realnvp
from jaxgen.training import pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.optim import rated
from jaxgen.training.packing import elementwise
from jaxgen.training.strategies import AXIS

from . import shared
from .game import GameConfig, against_game
from .images import Binarize, Data, check_support, examples_of, load_data
from .perceptual import PerceptualConfig, make_perceptual
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

Likelihoods = Literal[
    "bernoulli",
    "gaussian",
    "learned_gaussian",
    "categorical",
    "discretized_logistic",
    "mixture_of_logistics",
]
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": likelihoods.bernoulli,
    "gaussian": likelihoods.gaussian,
    "learned_gaussian": lambda: likelihoods.gaussian(None),
    "categorical": likelihoods.categorical,
    "discretized_logistic": likelihoods.discretized_logistic,
    "mixture_of_logistics": likelihoods.mixture_of_logistics,
}
EIGHT_BIT = ("categorical", "discretized_logistic", "mixture_of_logistics")
ACTIVATIONS: dict[str, Any] = {"tanh": nn.tanh, "relu": nn.relu, "silu": nn.silu}


@dataclass(frozen=True)
class NetworkConfig:
    """The encoder and the decoder."""

    network: Literal["dense", "conv"] = "dense"
    """Kind of networks: fully connected layers, or 4x4 convolutions of stride 2 (square images of
    b 2^k pixels)."""
    features: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers of dense networks, from the image on; the decoder has them
    reversed."""
    channels: int = 32
    """Channels of the convolution next to the image."""
    hidden: int = 256
    """Width of the dense layer of convolutional networks."""
    min_size: int = 4
    """Least side of the innermost image of convolutional networks."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Function after each hidden layer."""
    latent_dim: int = 50
    """Width of the latents."""


@dataclass(frozen=True)
class ModelConfig(NetworkConfig):
    """The two networks and the likelihood of a pixel."""

    likelihood: Likelihoods = "bernoulli"
    """Likelihood of a pixel, given the latent."""
    prior: Literal["normal", "realnvp"] = "normal"
    """Prior of the latents: N(0, I), or a RealNVP that is learned with the rest."""
    prior_couplings: int = 6
    """Number of couplings of a RealNVP as prior."""
    prior_width: int = 64
    """Width of the two hidden layers of each such coupling's network."""
    condition: Conditions = "none"
    """Condition of both networks, and of a learned prior."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The bound and its modifications."""

    name: Literal["elbo", "iwae", "dreg"] = "elbo"
    """Training objective: the ELBO, or the importance-weighted bound with its own gradient or the
    doubly reparameterized one."""
    num_importance: int = 1
    """Number of latents drawn for each example in training."""
    beta: float = 1.0
    """Weight of the KL."""
    kl_warmup_steps: int = 0
    """Steps over which the weight of the KL rises from 0."""
    free_bits: float = 0.0
    """Floor of each latent's KL, nats."""
    mmd_weight: float = 0.0
    """Weight of the squared MMD between latents and prior (InfoVAE)."""


@dataclass(frozen=True)
class OptimizerConfig(AdamConfig):
    """Adam, whose rate may fall in stages."""

    num_stages: int = 0
    """Number of stages of Burda et al.'s schedule: stage i = 0, 1, ... lasts 3^i epochs at the rate
    times 10^(-i/7); their eight stages take 3,280 epochs. 0 for none."""


@dataclass(frozen=True)
class EvaluationConfig(shared.EvaluationConfig):
    """How `evaluate` estimates the bound."""

    num_importance: int = 1
    """Number of samples K of the importance-weighted bound; 1 for the ELBO."""
    chunk: int = 25
    """Number of the K samples that are in memory at a time."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    output: Literal["mean", "mode", "sample"] = "mean"
    """What is shown of the likelihood: its mean, its mode, or a sample of every pixel."""


@dataclass(frozen=True)
class PictureConfig:
    """What `sample --picture` draws."""

    attribute: tuple[int, int] = (3, 8)
    """Classes between whose mean latents the picture `attribute` moves."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every VAE recipe."""

    batch_size: int = 100
    binarize: Binarize = "none"
    """Way to pixels of 0 and 1: a threshold, one draw for the run, or a draw for each batch."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    game: GameConfig = GameConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig(decay=0.0)
    evaluation: EvaluationConfig = operational(EvaluationConfig())
    sampler: SamplerConfig = operational(SamplerConfig())
    picture: PictureConfig = operational(PictureConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    data, evaluation = load_data(config, config.binarize), config.evaluation
    family = make_family(config, data)
    drawn, left_out = attribute_picture(config.picture, family, data)
    check_support(LIKELIHOODS[config.model.likelihood](), data)
    k = evaluation.num_importance
    closed = config.model.prior == "normal"
    kl = "KL in closed form" if closed else "KL by the latent drawn, learned prior"
    bound = f"ELBO, {kl}" if k == 1 else f"importance-weighted bound, K = {k}"
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        averages=make_averages(config.average, config.batch_size),
        distances=distances_from_training,
        pictures=drawn,
        left_out=left_out,
        num_evaluated=evaluation.num_examples,
        protocol=protocol(
            data.held_out,
            evaluation.num_examples,
            loss=f"negative {bound}, nats an example",
            negative_elbo=f"{kl}, one latent an example",
            num_importance=k,
            likelihood=config.model.likelihood,
            preprocessing=data.preprocessing,
        ),
    )


def make_family(config: Config, data: Data) -> Family:
    """The networks and their bound."""
    model, objective = config.model, config.objective
    likelihood = LIKELIHOODS[model.likelihood]()
    num_params = likelihood.num_params(data.image_shape[-1])
    encoder, decoder = make_networks(model, data.image_shape, num_params, config.precision)
    optimizer = make_optimizer(config.optimizer, len(data.train) / config.batch_size)
    family = vae.vae(
        encoder,
        decoder,
        likelihood,
        optimizer,
        latent_dim=model.latent_dim,
        image_shape=data.image_shape,
        prior=make_prior(model, config.precision),
        objective=objective.name,
        num_importance=objective.num_importance,
        beta=objective.beta,
        kl_warmup_steps=objective.kl_warmup_steps,
        free_bits=objective.free_bits,
        mmd_weight=objective.mmd_weight,
        perceptual=make_perceptual(config.perceptual, data.image_shape, config.precision),
        perceptual_weight=config.perceptual.weight,
        conditioning=make_conditioning(model.condition, data.train, config.text),
        bound_samples=config.evaluation.num_importance,
        bound_chunk=config.evaluation.chunk,
        output=config.sampler.output,
        eight_bit=model.likelihood in EIGHT_BIT,
    )
    axis_name = AXIS if config.strategy == "pmap" else None
    return against_game(
        family, config.game, optimizer, data.image_shape, config.precision, axis_name
    )


def make_prior(config: ModelConfig, precision: str) -> Any:
    """The flow of the flags from latents to N(0, I), or None."""
    if config.prior == "normal":
        return None
    if config.latent_dim < 2 or config.prior_width < 1:
        raise ValueError(
            "--model.prior realnvp needs --model.latent-dim of at least 2 and --model.prior-width "
            f"of at least 1, got {config.latent_dim} and {config.prior_width}"
        )
    hidden = (config.prior_width, config.prior_width)
    return realnvp(config.prior_couplings, hidden, dtype=jnp.dtype(precision))


def make_networks(
    config: NetworkConfig,
    image_shape: tuple[int, int, int],
    num_params: int,
    precision: str,
    *,
    stochastic: bool = True,
) -> tuple[Any, Any]:
    """Encoder and decoder of the flags, for images of a shape.

    Args:
        config: The flags.
        image_shape: (H, W, C) of the images.
        num_params: The numbers a pixel that the decoder makes.
        precision: The type of the networks' arithmetic.
        stochastic: Whether the encoder has a variance.

    Raises:
        ValueError: If there are no such networks for such images.
    """
    height, width, _ = image_shape
    if config.latent_dim < 1:
        raise ValueError(f"--model.latent-dim must be at least 1, got {config.latent_dim}")
    common: dict[str, Any] = {
        "activation": ACTIVATIONS[config.activation],
        "dtype": jnp.dtype(precision),
    }
    if config.network == "dense":
        encoder = networks.DenseEncoder(
            config.latent_dim, config.features, stochastic=stochastic, **common
        )
        return encoder, networks.DenseDecoder(
            (height, width), num_params, tuple(reversed(config.features)), **common
        )
    if height != width:
        raise ValueError(f"images must be square, got {height}x{width}: give --data.resize")
    levels(height, config.min_size)
    common |= {"channels": config.channels, "hidden": config.hidden, "min_size": config.min_size}
    return (
        networks.ConvEncoder(config.latent_dim, stochastic=stochastic, **common),
        networks.ConvDecoder(height, num_params, **common),
    )


def make_optimizer(config: OptimizerConfig, steps_per_epoch: float) -> optax.GradientTransformation:
    """Adam of the flags, with Burda et al.'s stages where there are any.

    Args:
        config: The flags.
        steps_per_epoch: The steps of an epoch, for the stages.

    Raises:
        ValueError: If a number is out of its range, or stages are asked for beside a linear decay.
    """
    base = make_adam(config)
    if config.num_stages < 0:
        raise ValueError(f"--optimizer.num-stages must be at least 0, got {config.num_stages}")
    if config.num_stages and config.decay_steps is not None:
        raise ValueError("--optimizer.num-stages and --optimizer.decay-steps exclude each other")
    # Stage i begins after 1 + 3 + ... + 3^(i - 1) epochs.
    begins = [math.ceil((3**i - 1) / 2 * steps_per_epoch) for i in range(1, config.num_stages)]
    factors = dict.fromkeys(begins, 10 ** (-1 / 7))
    stage = optax.piecewise_constant_schedule(1, factors)
    transform = elementwise(optax.chain(base, optax.scale_by_schedule(stage)))
    return rated(transform, lambda count: base.learning_rate(count) * stage(count))


def attribute_picture(
    config: PictureConfig, family: Family, data: Data
) -> tuple[dict[str, pictures.Picture], dict[str, str]]:
    """The picture `attribute` by name, where the data has classes and the model is not given them.

    Returns:
        The picture, or nothing; and, by its name, why it is left out, or nothing.
    """
    classes = data.held_out.num_classes
    if classes is None or family.conditioning is not None:
        return {}, {}
    if not all(0 <= label < classes for label in config.attribute):
        reason = f"--picture.attribute must be classes in 0..{classes - 1}, got " + " ".join(
            map(str, config.attribute)
        )
        return {}, {"attribute": reason}
    groups = [examples_of(data, label) for label in config.attribute]
    return {"attribute": pictures.attribute_direction(family, *groups)}, {}
