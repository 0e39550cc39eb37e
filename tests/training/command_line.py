"""A toy's recipe, whose command line the tests call."""

from dataclasses import dataclass

import toys

from jaxgen.training.config import RunConfig, operational
from jaxgen.training.recipe import Recipe


@dataclass(frozen=True)
class Config(RunConfig):
    """A toy's flags."""

    steps: int = operational(4)
    batch_size: int = 16
    log_every: int = operational(2)
    sample_every: int = operational(4)
    width: int = 3
    """Some width."""


def build(config):
    return toys.experiment(config)._replace(protocol={"data": "digits, test"})


recipe = Recipe(build, Config())
