"""A recipe small enough to train in a test: the mean of the embedded digits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jaxgen.core import Aux, Family, Optimizer, Phase, Variables
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import digits
from jaxgen.data.transforms import prepare_images
from jaxgen.training.averages import warmed_up
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.recipe import Recipe


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of the toy."""

    steps: int = operational(3)
    batch_size: int = 16
    sample_every: int = operational(0)
    noise: float = operational(0.1)
    """Noise of the samples."""
    side: int = 8
    """Height and width of the mean."""


def build(config):
    def init(key, batch, fixed=None):
        shape = (config.side, config.side, 1)
        return Variables({"net": {"mean": jax.random.normal(key, shape)}}, {"seen": jnp.zeros(2)})

    def distance(variables, batch):
        error = batch["image"] - variables.params["net"]["mean"][None]
        return jnp.square(error).sum(axis=(1, 2, 3))

    def loss(variables, batch, key, step):
        return distance(variables, batch), Aux({}, {"seen": variables.state["seen"] + 1})

    def sample(variables, key, num, *, condition=None):
        mean = variables.params["net"]["mean"]
        return mean[None] + config.noise * jax.random.normal(key, (num, *mean.shape))

    family = Family(
        init,
        {"adam": Optimizer(("net",), optax.adam(0.1))},
        (Phase("mean", "adam", loss),),
        lambda variables, batch, key: (distance(variables, batch), {}),
        sample,
    )
    return Experiment(
        family,
        Pipeline(digits("train"), config.batch_size, seed=config.seed),
        digits("test"),
        prepare_images(flip=False),
        averages={"slow": warmed_up(0.9)},
        files={"meaning.txt": b"of the pixels"},
    )


recipe = Recipe(build, Config())
