"""What the flow recipes on vectors share: their flags, and the way from flags to an experiment.

The recipes are `maf_tabular` and `nsf_tabular`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.shared import (
    AdamConfig,
    AverageConfig,
    make_adam,
    make_averages,
    protocol,
)
from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource
from jaxgen.data.vectors import load_vectors
from jaxgen.families.flow import ROUND_TRIP, flow
from jaxgen.models.bijectors.splines import neural_spline_flow
from jaxgen.models.maf import maf
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import VECTORS, Experiment
from jaxgen.training.pictures import Picture

PIXELS = 128  # a side of the density's pictures


@dataclass(frozen=True)
class ModelConfig:
    """The flow."""

    network: Literal["maf", "nsf"] = "maf"
    """Kind of flow: masked autoregressive layers, or rational-quadratic spline couplings."""
    layers: int = 5
    """Number of autoregressive layers or couplings."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of each layer's network."""
    num_bins: int = 8
    """Number of bins of the splines (nsf)."""
    bound: float = 3.0
    """Bound of the splines, from minus this to this, in deviations of the data (nsf)."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of flows on vectors."""

    batch_size: int = 256
    sample_every: int = operational(2000)
    checkpoint_every: int = operational(2000)
    data: DataConfig = DataConfig(name="two_moons")
    """Data set: `two_moons`, `checkerboard`, or `file`, a .npy, .npz or .csv file by --data.dir."""
    model: ModelConfig = ModelConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3, warmup_steps=100, clip_norm=5.0)
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Standard deviation of the latents that samples come from."""


def build(config: Config) -> Experiment:
    """The experiment of a config: bijector, family, data."""
    data, model = config.data, config.model
    if data.resize is not None:
        raise ValueError(f"--data.resize is for images, got {data.resize} for vectors")
    train = load_vectors(data.name, data.split or "train", data.dir)
    held_out = load_vectors(data.name, data.held_out or "test", data.dir)
    ((width,), _) = train.spec["vector"]
    bijector: Any
    if model.network == "maf":
        bijector = maf(model.layers, model.hidden)
    else:
        bijector = neural_spline_flow(
            model.layers, model.hidden, num_bins=model.num_bins, bound=model.bound
        )
    family = flow(
        bijector,
        make_adam(config.optimizer),
        event_shape=(width,),
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
            loss="exact negative log-density, nats a vector, in the data's own units",
            round_trip=ROUND_TRIP,
            preprocessing="none",
        ),
    )


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
