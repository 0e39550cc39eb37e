"""The recipes that are measured, at full size and shrunk, on images and sounds made here."""

import dataclasses
import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from scipy.io import wavfile

from jaxgen.core import State
from jaxgen.training import states
from jaxgen.training.experiment import Experiment
from jaxgen.training.program import is_resident, make_program
from jaxgen.training.strategies import JitStrategy, make_strategy

Changes = Mapping[str, Any]


class Measured(NamedTuple):
    """A recipe to measure.

    Attributes:
        shape: Shape of an image of its data, or None for sounds.
        shrunk: Changes of its config with which a CPU computes it in seconds.
    """

    shape: tuple[int, int, int] | None
    shrunk: Changes


_CIFAR, _MNIST = (32, 32, 3), (28, 28, 1)
RECIPES = {
    "ddpm_cifar": Measured(_CIFAR, {"batch_size": 8, "model.channels": 32}),
    "sngan_cifar": Measured(
        _CIFAR,
        {"batch_size": 40, "model.generator_channels": 32, "model.discriminator_channels": 32},
    ),
    "pixelcnnpp_cifar": Measured(
        _CIFAR, {"batch_size": 4, "model.features": 16, "model.res_blocks": 1}
    ),
    "glow_cifar": Measured(_CIFAR, {"batch_size": 8, "model.steps": 4, "model.width": 32}),
    "vae_mnist": Measured(_MNIST, {"batch_size": 20, "model.features": (64, 64)}),
    "wavenet_audio": Measured(
        None,
        {
            "batch_size": 2,
            "model.stacks": 1,
            "model.channels": 16,
            "model.skip_channels": 32,
            "audio.window": 2000,
            "sample_seconds": 0.05,
        },
    ),
}


def build(
    name: str, changes: Changes, *, shrunk: bool, data: str | None = None, num_devices: int = 1
) -> tuple[Any, Any]:
    """The config and the experiment of a recipe on made data.

    Args:
        name: Name of the recipe.
        changes: Changes of its config.
        shrunk: Whether to take the sizes for a CPU.
        data: Directory of the made data, or None where the recipe's own are embedded.
        num_devices: Number of devices, each with the recipe's batch.
    """
    recipe = importlib.import_module(f"experiments.{name}").recipe
    place = {} if data is None else {"data.name": "folder", "data.dir": data}
    small = RECIPES[name].shrunk if shrunk else {}
    config = replaced(recipe.config, {**place, **small, **changes})
    config = replaced(config, {"batch_size": config.batch_size * num_devices})
    return config, recipe.build(config)


def make_data(name: str) -> tempfile.TemporaryDirectory:
    """A directory with noise in the form of a recipe's data, two splits of ten classes."""
    directory = tempfile.TemporaryDirectory(prefix="jaxgen-")
    rng, root, shape = np.random.default_rng(0), Path(directory.name), RECIPES[name].shape
    if shape is None:
        for i in range(20):
            sound = rng.normal(0, 3000, 100_000).astype(np.int16)
            wavfile.write(root / f"{i}.wav", 16_000, sound)
        return directory
    for split in ("train", "test"):
        for i in range(640):
            place = root / split / str(i % 10)
            place.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(image.squeeze()).save(place / f"{i}.png", compress_level=1)
    return directory


def replaced(config: Any, changes: Changes) -> Any:
    """A config with changes by dotted names, such as `{"model.channels": 32}`."""
    groups: dict[str, dict[str, Any]] = {}
    own = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            groups.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    for head, inner in groups.items():
        own[head] = replaced(getattr(config, head), inner)
    return dataclasses.replace(config, **own)


class Training(NamedTuple):
    """A recipe's compiled training.

    Attributes:
        config: Config of the recipe.
        experiment: Experiment of the recipe.
        strategy: Strategy whose devices compute.
        state: State before the first step.
        arguments: What `run` takes after the state but before the number of steps.
        run: Compiled loop of steps.
    """

    config: Any
    experiment: Experiment
    strategy: JitStrategy
    state: State
    arguments: tuple[Any, ...]
    run: Any


def prepare(config: Any, experiment: Experiment, devices: Any) -> Training:
    """The training of an experiment on some devices; nothing is compiled but its first state."""
    strategy = make_strategy("jit", devices)
    state = states.new_state(experiment, config, strategy)
    if is_resident(experiment, config):
        data = strategy.put_replicated(experiment.pipeline.arrays)
    else:
        data = strategy.put_batch(experiment.pipeline.host_batch(0))
    fixed = strategy.put_replicated(experiment.family.fixed)
    run = make_program(experiment, config, strategy, jax.eval_shape(lambda s: s, state))
    return Training(config, experiment, strategy, state, (fixed, data), run)
