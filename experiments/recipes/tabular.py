"""What the flow recipes on vectors share: their flags, and the way from flags to an experiment.

The recipes are `maf_tabular` and `nsf_tabular`, of any table, and with the papers' hyper-parameters
`maf_power`, `maf_gas`, `nsf_power` and `nsf_gas`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource
from jaxgen.data.vectors import load_vectors
from jaxgen.families.flow import ROUND_TRIP, flow
from jaxgen.models.bijectors.coupling import Affine
from jaxgen.models.bijectors.residual import residual_spline_flow
from jaxgen.models.bijectors.splines import neural_spline_flow
from jaxgen.models.maf import maf
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import VECTORS, Experiment
from jaxgen.training.optim import rated
from jaxgen.training.packing import elementwise
from jaxgen.training.pictures import Picture

from .shared import (
    AdamConfig,
    AverageConfig,
    make_adam,
    make_averages,
    protocol,
)

PIXELS = 128  # a side of the density's pictures
_STANDARDIZED = "deviations from the mean, column by column, of the training rows"
_PREPROCESSING = {
    "power": "Papamakarios et al. 2017: noise, deviations from the mean of train and val",
    "gas": "Papamakarios et al. 2017: deviations from the mean of all rows",
}


@dataclass(frozen=True)
class ModelConfig:
    """The flow."""

    network: Literal["maf", "nsf"] = "maf"
    """Kind of flow: masked autoregressive layers, or rational-quadratic spline couplings."""
    layers: int = 5
    """Number of autoregressive layers or couplings."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of each layer's network."""
    activation: Literal["silu", "relu", "tanh"] = "silu"
    """Function after each hidden layer (maf)."""
    blocks: int = 0
    """Number of residual blocks of each network, which then has one width (nsf); 0 for hidden
    layers without shortcuts."""
    dropout: float = 0.0
    """Rate of the dropout within the residual blocks (nsf)."""
    num_bins: int = 8
    """Number of bins of the splines (nsf)."""
    bound: float = 3.0
    """Bound of the splines, from minus this to this, in deviations of the data (nsf); greatest size
    of a layer's log-scales, in nats (maf)."""


@dataclass(frozen=True)
class VectorDataConfig(DataConfig):
    """Flags of the data."""

    name: str = "two_moons"
    """Name of the data set: `two_moons`, `checkerboard`, `power`, `gas`, or `file`."""
    dir: str | None = operational(None)
    """Path of the file of `power` and `gas` (.npy, .csv) or `file` (.npy, .npz, .csv)."""
    split: str | None = "train"
    """Split to train on: `train`, or of an .npz file the name of an array."""
    held_out: str | None = operational("test")
    """Split to evaluate on: `test`, of `power` and `gas` also `val`, or an array's name."""
    standardize: bool = False
    """Take the vectors of a file in deviations from the mean, column by column, of the rows of
    `train`; densities and samples are of these."""


@dataclass(frozen=True)
class OptimizerConfig(AdamConfig):
    """Adam."""

    learning_rate: float = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: int = 100
    """Steps over which the rate rises linearly from 0."""
    clip_norm: float | None = 5.0
    """Greatest global norm of the gradient; None for no clipping."""
    l2: float = 0.0
    """Weight of half the squares of all parameters in the loss, nats."""

    @staticmethod
    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        """The flags of an older run, whose schedule was called `cosine`, by the names of now."""
        new = dict(values)
        if "cosine" in new:
            new["schedule"] = "cosine" if new.pop("cosine") else None
        return new


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of flows on vectors."""

    batch_size: int = 256
    sample_every: int = operational(2000)
    checkpoint_every: int = operational(2000)
    data: VectorDataConfig = VectorDataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Standard deviation of the latents that samples come from."""


def build(config: Config) -> Experiment:
    """The experiment of a config: bijector, family, data."""
    data = config.data
    if data.resize is not None:
        raise ValueError(f"--data.resize is for images, got {data.resize} for vectors")
    load = partial(load_vectors, data.name, path=data.dir, standardize=data.standardize)
    train, held_out = load(data.split or "train"), load(data.held_out or "test")
    ((width,), _) = train.spec["vector"]
    family = flow(
        make_model(config.model, "float32"),
        make_optimizer(config.optimizer),
        event_shape=(width,),
        training_model=make_model(config.model, config.precision),
        temperature=config.temperature,
        round_trip=True,
    )
    is_plane = width == 2
    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=lambda key, raw, train: raw,
        medium=VECTORS,
        averages=make_averages(config.average, config.batch_size),
        pictures={"density": density(family, train)} if is_plane else {},
        shown="density" if is_plane else None,
        protocol=protocol(
            held_out,
            loss="exact negative log-density, nats a vector, in the units of the data, see "
            "preprocessing",
            round_trip=ROUND_TRIP,
            preprocessing=_PREPROCESSING.get(
                data.name, _STANDARDIZED if data.standardize else "none"
            ),
        ),
    )


def make_model(model: ModelConfig, precision: str) -> Any:
    """The bijector of the flags, its networks computing in a precision.

    Raises:
        ValueError: Flags of the other kind of flow, or residual blocks of several widths.
    """
    dtype = jnp.dtype(precision)
    if model.network == "maf":
        if model.blocks or model.dropout:
            raise ValueError("--model.blocks and --model.dropout need --model.network nsf")
        activation = {"silu": nn.silu, "relu": nn.relu, "tanh": jnp.tanh}[model.activation]
        return maf(
            model.layers,
            model.hidden,
            transform=Affine(model.bound),
            activation=activation,
            dtype=dtype,
        )
    if model.activation != "silu":
        raise ValueError("--model.activation needs --model.network maf")
    options: dict[str, Any] = {"num_bins": model.num_bins, "bound": model.bound, "dtype": dtype}
    if not model.blocks:
        if model.dropout:
            raise ValueError("--model.dropout needs --model.blocks")
        return neural_spline_flow(model.layers, model.hidden, **options)
    if len(model.hidden) != 1:
        raise ValueError(
            f"--model.hidden must be one width with --model.blocks, got {model.hidden}"
        )
    return residual_spline_flow(
        model.layers, model.hidden[0], model.blocks, dropout=model.dropout, **options
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam of the flags, of a loss with the squares of the parameters.

    Raises:
        ValueError: A negative weight of theirs.
    """
    update = make_adam(config)
    if not 0 <= config.l2 < math.inf:
        raise ValueError(f"--optimizer.l2 must be at least 0 and finite, got {config.l2}")
    if not config.l2:
        return update
    transform = elementwise(optax.chain(optax.add_decayed_weights(config.l2), update))
    return rated(transform, update.learning_rate)


def density(family: Family, train: ArraySource) -> Picture:
    """A row of three: the data's histogram, the model's density, the histogram of its samples.

    White is the greatest density of the data; the square has the data's range and a tenth around.
    """
    points = train.arrays["vector"]
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    half = float(0.6 * np.max(points.max(axis=0) - points.min(axis=0)))
    axis = (np.arange(PIXELS) + 0.5) / PIXELS * 2 * half - half
    across, up = np.meshgrid(middle[0] + axis, middle[1] + axis[::-1])
    places = np.stack([across.ravel(), up.ravel()], axis=1).astype(np.float32)
    area = (2 * half / PIXELS) ** 2
    top = np.quantile(_histogram(points, middle, half, np) / area, 0.99)

    def draw(variables, batch, key, rows: int, columns: int) -> jax.Array:
        assert family.log_prob is not None
        assert family.sample is not None
        key_density, key_sample = jax.random.split(key)
        batch = {"vector": jnp.asarray(places)}
        values = jnp.exp(family.log_prob(variables, batch, key_density))
        samples = family.sample(variables, key_sample, len(points))
        pictures = [
            jnp.asarray(_histogram(points, middle, half, np)) / area,
            values.reshape(PIXELS, PIXELS),
            _histogram(samples, middle, half, jnp) / area,
        ]
        return jnp.clip(2.0 * jnp.stack(pictures)[..., None] / top - 1.0, -1.0, 1.0)

    return draw


def _histogram(points: Any, middle: np.ndarray, half: float, xp: Any) -> Any:
    """The share of the points in each pixel of the square, smoothed over 3x3 pixels, y upwards."""
    cells = xp.floor((points - middle[None]) / (2 * half) * PIXELS + PIXELS / 2).astype(np.int32)
    inside = ((cells >= 0) & (cells < PIXELS)).all(axis=1)
    flat = xp.where(inside, (PIXELS - 1 - cells[:, 1]) * PIXELS + cells[:, 0], PIXELS * PIXELS)
    size = {"length" if xp is jnp else "minlength": PIXELS * PIXELS + 1}
    counts = xp.bincount(flat, **size)
    image = counts[:-1].reshape(PIXELS, PIXELS) / len(points)
    padded = xp.pad(image, 1)
    shifts = [padded[i : i + PIXELS, j : j + PIXELS] for i in range(3) for j in range(3)]
    return sum(shifts) / 9
