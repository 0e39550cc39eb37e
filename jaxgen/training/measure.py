"""Quality while training: samples of the moment, and how far they are from real images."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen.core import Variables
from jaxgen.training import evaluation
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.strategies import JitStrategy
from jaxgen.training.writers import MEASUREMENTS, write_json

PROTOCOL = "measurements.json"


def check_measurable(
    experiment: Experiment, config: RunConfig, asked: str = "--measure-every"
) -> None:
    """Checks that samples can be measured, where `config.measure_every` asks for it.

    Args:
        experiment: Experiment of the samples.
        config: Flags of the run.
        asked: Name of what asks for it, in errors.

    Raises:
        ValueError: If the medium is no images, or the family has no prior to draw them from, or the
            recipe has no distances.
    """
    if not config.measure_every:
        return
    family, conditioning = experiment.family, experiment.family.conditioning
    if experiment.medium.unit != "images":
        raise ValueError(
            f"{asked} is for models of images, and this is one of {experiment.medium.unit}"
        )
    if family.sample is None:
        raise ValueError(f"{asked} draws samples, and this model has no prior to draw from")
    if experiment.distances is None:
        raise ValueError(f"{asked} needs distances, and this recipe names none")
    if conditioning is not None and conditioning.key not in experiment.pipeline.source.spec:
        raise ValueError(
            f"{asked} draws samples under the conditions of training examples, and "
            f"{experiment.pipeline.source.name} has no entry {conditioning.key!r}"
        )


class Measure:
    """The distances of `config.measure_num` samples from real images, as `--measure-every` asks.

    The samples are drawn as `sample` draws them, by the same noise each time: a function of the
    seed. Those of a conditional family are under the conditions of as many training examples.

    Args:
        experiment: Experiment that is trained.
        config: Flags of the run.
        strategy: Strategy whose devices draw.

    Raises:
        ValueError: If it cannot be done (`check_measurable`), the extractor cannot be had or cannot
            see the images, or the run has rows that were measured otherwise.
    """

    def __init__(self, experiment: Experiment, config: RunConfig, strategy: JitStrategy):
        check_measurable(experiment, config)
        assert experiment.distances is not None
        self.config = config
        train, held_out = experiment.pipeline.source, experiment.held_out
        self.distances = experiment.distances(train, held_out, config)
        self.sample = evaluation.make_sample(experiment, strategy)
        self.conditions = conditions_like(experiment, config.measure_num)
        if jax.process_index() == 0:
            self._keep_protocol()

    def __call__(self, variables: Variables) -> dict[str, float]:
        """Name -> number, the distance first.

        Args:
            variables: Variables to draw by.

        Raises:
            FloatingPointError: If a sample is not finite; says how many are not.
        """
        key = jax.random.key(self.config.seed)
        samples = self.sample(variables, key, self.config.measure_num, self.conditions)
        numbers = self.distances.of(samples)
        values = np.array([numbers[name] for name in self.distances.names])
        if jax.process_count() > 1:  # one path for all: checkpoints are kept by it
            values = np.asarray(multihost_utils.broadcast_one_to_all(values))
        return dict(zip(self.distances.names, values.tolist(), strict=True))

    def nothing(self) -> dict[str, float]:
        """The row of a step that could not be measured."""
        return dict.fromkeys(self.distances.names, math.nan)

    def _keep_protocol(self) -> None:
        """Write what the numbers are of beside them; refuse to mix them with others."""
        path = Path(self.config.run_dir) / PROTOCOL
        protocol = {
            **self.distances.protocol,
            "samples": self.config.measure_num,
            "seed": self.config.seed,
        }
        protocol = json.loads(json.dumps(protocol))
        if path.exists() and (Path(self.config.run_dir) / MEASUREMENTS).exists():
            before = _read_protocol(path)
            if differing := [
                f"{name}: {before.get(name)} -> {protocol.get(name)}"
                for name in {**before, **protocol}
                if before.get(name) != protocol.get(name)
            ]:
                raise ValueError(
                    f"{MEASUREMENTS} of {self.config.run_dir} was measured otherwise:\n  "
                    + "\n  ".join(differing)
                    + f"\nGive the flags of before, or move {MEASUREMENTS} away"
                )
        write_json(path, protocol)


def _read_protocol(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}, which says what {MEASUREMENTS} is of, cannot be read: {error}. Put the file "
            "back, or move both away"
        ) from error


def conditions_like(experiment: Experiment, num: int) -> np.ndarray | None:
    """Conditions of `num` training examples, evenly spaced; None for an unconditional family.

    Args:
        experiment: Experiment with the examples.
        num: Number of conditions.
    """
    conditioning, source = experiment.family.conditioning, experiment.pipeline.source
    if conditioning is None:
        return None
    values = np.asarray(source[np.arange(num) * len(source) // num][conditioning.key])
    several = values.ndim > 1 + len(conditioning.shape)  # captions of each example
    return values[:, 0] if several else values
