"""What the VAE recipes share: their flags, and the way from flags to an experiment.

A recipe is a subclass of `Config` whose defaults are the paper's table; it runs nothing by itself
here: see `vae_digits`, `vae_mnist`, `beta_vae`, `infovae_mnist`, `cvae_mnist` and, of their parts,
`autoencoder_mnist` and `vqvae_cifar`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.image_data import Binarize, Data, load_data
from jaxgen import conditioning, likelihoods
from jaxgen.conditioning import Conditioning
from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source, decode
from jaxgen.data.transforms import to_uint8
from jaxgen.families import vae
from jaxgen.likelihoods import Likelihood
from jaxgen.models import vae as networks
from jaxgen.models.dcgan import levels
from jaxgen.training import latent_pictures, pictures
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.optim import adam

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
class ModelConfig:
    """The two networks and what the decoder says of a pixel."""

    network: Literal["dense", "conv"] = "dense"
    """Fully connected layers, or 4x4 convolutions of stride 2 (square images of b 2^k pixels)."""
    features: tuple[int, ...] = (200, 200)
    """Of the hidden layers of dense networks, from the image on; the decoder has them reversed."""
    channels: int = 32
    """Of the convolution next to the image."""
    hidden: int = 256
    """Features of the dense layer of convolutional networks."""
    min_size: int = 4
    """Least side of the innermost image of convolutional networks."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """After each hidden layer."""
    latent_dim: int = 50
    """Numbers in a latent."""
    likelihood: Likelihoods = "bernoulli"
    """Of a pixel, given the latent."""
    condition: Literal["none", "label"] = "none"
    """What both networks are told."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The bound and its modifications."""

    name: Literal["elbo", "iwae", "dreg"] = "elbo"
    """The ELBO, or the importance-weighted bound with its own gradient or the doubly
    reparameterized one."""
    num_importance: int = 1
    """Latents drawn for each example in training."""
    beta: float = 1.0
    """Weight of the KL."""
    kl_warmup_steps: int = 0
    """Steps over which that weight rises from 0."""
    free_bits: float = 0.0
    """Floor of each latent's KL, nats."""
    mmd_weight: float = 0.0
    """Of the squared MMD between latents and prior (InfoVAE)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: float = 1e-3
    """At the start."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    decay_steps: int | None = None
    """Steps over which the rate falls linearly to zero; constant by default."""
    num_stages: int = 0
    """Burda et al.'s schedule: stage i = 0, 1, ... lasts 3^i epochs at the rate times 10^(-i/7);
    their eight stages take 3,280 epochs. 0: not in stages."""
    ema: float = 0.0
    """Decay of the parameters' average; 0 for the last parameters."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How `evaluate` estimates the bound."""

    num_importance: int = 1
    """K of the importance-weighted bound; 1 for the ELBO with the KL in closed form."""
    chunk: int = 25
    """Of the K samples, how many are in memory at a time."""
    num_examples: int | None = None
    """The first so many of the held-out examples; None for all."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    output: Literal["mean", "mode", "sample"] = "mean"
    """The likelihood's mean or mode, or a sample of every pixel."""


@dataclass(frozen=True)
class PictureConfig:
    """What `sample --picture` draws."""

    attribute: tuple[int, int] = (3, 8)
    """The classes between whose mean latents the picture `attribute` moves."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every VAE recipe."""

    batch_size: int = 100
    binarize: Binarize = "none"
    """Pixels of 0 and 1: by a threshold, by one draw for the run, or by a draw for each batch."""
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = operational(EvaluationConfig())
    sampler: SamplerConfig = operational(SamplerConfig())
    picture: PictureConfig = operational(PictureConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: networks, family, data."""
    data = load_data(config.data, config.binarize)
    condition = make_conditioning(config.model, data.train)
    family = make_family(config, data, condition)
    check_support(LIKELIHOODS[config.model.likelihood](), data)
    sample_condition, grid = None, (8, 8)
    if condition is not None:
        sweep = condition.sweep
        assert sweep is not None
        grid = (len(sweep), 8)
        sample_condition = pictures.by_row(sweep)
    k = config.evaluation.num_importance
    bound = "ELBO, KL in closed form" if k == 1 else f"importance-weighted bound, K = {k}"
    return Experiment(
        family=family,
        pipeline=Pipeline(data.train, config.batch_size, seed=config.seed),
        held_out=data.held_out,
        prepare=data.prepare,
        to_images=to_uint8,
        ema=config.optimizer.ema,
        ema_of=None if config.optimizer.ema else (),
        sample_condition=sample_condition,
        grid=grid,
        pictures=make_pictures(config, family, data, condition),
        watch=vae.warnings,
        num_evaluated=config.evaluation.num_examples,
        protocol={
            "loss": f"negative {bound}, nats an example",
            "negative_elbo": "KL in closed form, one latent an example",
            "num_importance": k,
            "likelihood": config.model.likelihood,
            "data": data.held_out.protocol,
            "num_examples": min(
                len(data.held_out), config.evaluation.num_examples or len(data.held_out)
            ),
            "preprocessing": data.preprocessing,
        },
    )


def check_support(likelihood: Likelihood, data: Data) -> None:
    """Raise ValueError, before training, if a batch is not what the likelihood is of."""
    raw = data.train[np.arange(min(len(data.train), 64))]
    likelihood.check(np.asarray(data.prepare(jax.random.key(0), raw, False)["image"]))


def make_conditioning(model: ModelConfig, source: Source) -> Conditioning | None:
    """What the networks are told."""
    if model.condition == "none":
        return None
    if source.num_classes is None:
        raise ValueError(f"--model.condition label needs labels; {source.name} has none")
    return conditioning.labels(source.num_classes)


def make_networks(
    model: ModelConfig,
    image_shape: tuple[int, int, int],
    num_params: int,
    precision: str,
    *,
    stochastic: bool = True,
) -> tuple[Any, Any]:
    """Encoder and decoder of the flags, for images of a shape."""
    height, width, _ = image_shape
    if model.latent_dim < 1:
        raise ValueError(f"--model.latent-dim must be at least 1, got {model.latent_dim}")
    common: dict[str, Any] = {
        "activation": ACTIVATIONS[model.activation],
        "dtype": jnp.dtype(precision),
    }
    if model.network == "dense":
        encoder = networks.DenseEncoder(
            model.latent_dim, model.features, stochastic=stochastic, **common
        )
        return encoder, networks.DenseDecoder(
            (height, width), num_params, tuple(reversed(model.features)), **common
        )
    if height != width:
        raise ValueError(f"images must be square, got {height}x{width}: give --data.resize")
    levels(height, model.min_size)
    common |= {"channels": model.channels, "hidden": model.hidden, "min_size": model.min_size}
    return (
        networks.ConvEncoder(model.latent_dim, stochastic=stochastic, **common),
        networks.ConvDecoder(height, num_params, **common),
    )


def make_family(config: Config, data: Data, condition: Conditioning | None) -> Family:
    """The networks and their bound."""
    model, objective = config.model, config.objective
    likelihood = LIKELIHOODS[model.likelihood]()
    num_params = likelihood.num_params(data.image_shape[-1])
    encoder, decoder = make_networks(model, data.image_shape, num_params, config.precision)
    steps_per_epoch = len(data.train) / config.batch_size
    return vae.vae(
        encoder,
        decoder,
        likelihood,
        make_optimizer(config.optimizer, steps_per_epoch),
        latent_dim=model.latent_dim,
        image_shape=data.image_shape,
        objective=objective.name,
        num_importance=objective.num_importance,
        beta=objective.beta,
        kl_warmup_steps=objective.kl_warmup_steps * config.accumulate,
        free_bits=objective.free_bits,
        mmd_weight=objective.mmd_weight,
        conditioning=condition,
        bound_samples=config.evaluation.num_importance,
        bound_chunk=config.evaluation.chunk,
        output=config.sampler.output,
        eight_bit=model.likelihood in EIGHT_BIT,
    )


def make_optimizer(
    optimizer: OptimizerConfig, steps_per_epoch: float
) -> optax.GradientTransformation:
    """Adam, with a linear decay or Burda et al.'s stages."""
    base = adam(
        optimizer.learning_rate,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        decay_steps=optimizer.decay_steps,
    )
    if optimizer.num_stages < 0:
        raise ValueError(f"--optimizer.num-stages must be at least 0, got {optimizer.num_stages}")
    if optimizer.num_stages and optimizer.decay_steps is not None:
        raise ValueError("--optimizer.num-stages and --optimizer.decay-steps exclude each other")
    # Stage i begins after 1 + 3 + ... + 3^(i - 1) epochs.
    begins = [math.ceil((3**i - 1) / 2 * steps_per_epoch) for i in range(1, optimizer.num_stages)]
    factors = dict.fromkeys(begins, 10 ** (-1 / 7))
    return optax.chain(base, optax.scale_by_schedule(optax.piecewise_constant_schedule(1, factors)))


def make_pictures(
    config: Config, family: Family, data: Data, condition: Conditioning | None
) -> dict[str, Any]:
    """What `sample --picture` can draw."""
    latent_dim = config.model.latent_dim
    sweep, key = (None, None) if condition is None else (condition.sweep, condition.key)
    drawn = example_pictures(config, family, data, latent_dim, key)
    drawn["interpolation"] = pictures.interpolation(family, latent_dim, sweep=sweep)
    if condition is not None:
        drawn["conditions"] = pictures.condition_sweep(family, latent_dim, sweep)
    elif latent_dim == 2:
        drawn["latent_plane"] = latent_pictures.latent_plane(family)
    return drawn


def example_pictures(
    config: Any, family: Family, data: Data, latent_dim: int, condition_key: str | None = None
) -> dict[str, Any]:
    """The pictures that begin with examples, and need no prior."""
    drawn = {
        "reconstructions": latent_pictures.reconstructions(family, condition_key=condition_key),
        "between_examples": latent_pictures.between_examples(family, condition_key=condition_key),
        "traversal": latent_pictures.traversal(family, latent_dim, condition_key=condition_key),
    }
    classes = data.held_out.num_classes
    if classes is not None and condition_key is None:
        for label in config.picture.attribute:
            if not 0 <= label < classes:
                raise ValueError(
                    f"--picture.attribute must be classes in 0..{classes - 1}, got {label}"
                )
        groups = [_examples_of(data, label) for label in config.picture.attribute]
        drawn["attribute"] = latent_pictures.attribute_direction(family, *groups)
    return drawn


def _examples_of(data: Data, label: int, most: int = 500):
    """A function that makes the batch of a class's held-out examples, the first `most`."""

    def batch():
        source = decode(data.held_out)
        rows = np.flatnonzero(source.arrays["label"] == label)[:most]
        if not rows.size:
            raise ValueError(f"no held-out example of {source.name} has the label {label}")
        return data.prepare(jax.random.key(label), source[rows], False)

    return batch
