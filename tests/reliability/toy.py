"""A recipe that trains in a moment, with every kind of event."""

from dataclasses import dataclass

import toys

from jaxgen.training.config import RunConfig, operational
from jaxgen.training.recipe import Recipe

STEPS, EVERY = 40, 10


@dataclass(frozen=True)
class Config(RunConfig):
    """A toy's flags."""

    steps: int = operational(STEPS)
    batch_size: int = 16
    log_every: int = operational(4)  # rows begin before checkpoints and end after them
    sample_every: int = operational(EVERY)
    evaluate_every: int = operational(EVERY)
    checkpoint_every: int = operational(EVERY)


recipe = Recipe(toys.experiment, Config())
