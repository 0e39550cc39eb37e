"""The recipes that the comparison trains, one a family, and what family a finished run is of."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
    autoencoder_mnist,
    ddpm_cifar,
    flow_recipe,
    gan_recipe,
    pixelcnn_recipe,
    vae_recipe,
    vqvae_cifar,
)
from jaxgen.training import cli, config, loop
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.strategies import make_strategy

SMALL = 8  # images of at most so many pixels a side are the embedded digits' size


class Recipe(NamedTuple):
    """How a family is trained here.

    Attributes:
        module: the experiment.
        settings: `(steps, pixels a side, told labels) -> fields of its config`, nested as in JSON.
        calibration_steps: enough of them to time a step, a few seconds' worth.
        most_steps: on the embedded digits, whatever the budget in seconds: the recipe's own number,
            as quick families overfit so few images in the time that slow ones need.
    """

    module: str
    settings: Callable[[int, int, bool], dict[str, Any]]
    calibration_steps: int
    most_steps: int


class Run(NamedTuple):
    """A run directory and what it is a run of.

    Attributes:
        name: what the comparison calls it.
        kind: its family, a key of `TITLES`.
        module: its experiment.
        config: its flags.
        experiment: built from them.
    """

    name: str
    kind: str
    module: str
    config: Any
    experiment: Experiment


TITLES = {
    "gan": "GAN",
    "autoencoder": "Autoencoder",
    "vae": "VAE",
    "flow": "Flow",
    "autoregressive": "Autoregressive",
    "diffusion": "Diffusion",
}


def _innermost(size: int) -> int:
    """`min_size` of convolutional networks."""
    return 2 if size <= SMALL else 4


# Whatever a recipe counts in steps (a decay, a warm-up) keeps its share of the run.
FAMILIES: dict[str, Recipe] = {
    "gan": Recipe(
        "experiments.dcgan_digits",
        lambda steps, size, told: {"model": {"condition": "none", "min_size": _innermost(size)}},
        100,
        5000,
    ),
    "autoencoder": Recipe(
        "experiments.autoencoder_mnist",
        lambda steps, size, told: {
            "batch_size": 64,
            "model": {
                "network": "conv",
                "min_size": _innermost(size),
                "activation": "silu",
                "latent_dim": 16,
            },
            "optimizer": {"ema": 0.999},
        },
        400,
        5000,
    ),
    "vae": Recipe(
        "experiments.vae_digits",
        lambda steps, size, told: {
            "model": {"min_size": _innermost(size)},
            "objective": {"kl_warmup_steps": steps // 2},
        },
        400,
        2000,
    ),
    "flow": Recipe("experiments.realnvp_digits", lambda steps, size, told: {}, 40, 3000),
    "autoregressive": Recipe(
        "experiments.pixelcnn_digits",
        lambda steps, size, told: {
            "model": {"condition": "label" if told else "none"},
            "optimizer": {"decay_steps": steps},
        },
        40,
        1500,
    ),
    "diffusion": Recipe(
        "experiments.ddpm_digits",
        lambda steps, size, told: {"evaluation": {"num_timesteps": 250}},
        40,
        1800,
    ),
}
KINDS: tuple[tuple[type, str], ...] = (
    (gan_recipe.Config, "gan"),
    (autoencoder_mnist.Config, "autoencoder"),
    (vqvae_cifar.Config, "autoencoder"),
    (vae_recipe.Config, "vae"),
    (flow_recipe.Config, "flow"),
    (pixelcnn_recipe.Config, "autoregressive"),
    (ddpm_cifar.Config, "diffusion"),
)


def settings(
    name: str, steps: int, size: int, *, told: bool, seed: int, data: Mapping[str, Any]
) -> dict[str, Any]:
    """All fields of a family's config that the comparison sets, nested as in JSON.

    Args:
        name: the family, a key of `FAMILIES`.
        steps: of training.
        size: pixels a side of the images.
        told: whether the autoregressive network is told the labels.
        seed: of the run.
        data: fields of its `DataConfig`.
    """
    return {
        "steps": steps,
        "seed": seed,
        "log_every": max(1, steps // 50),
        "sample_every": 0,
        "checkpoint_every": max(1, steps // 3),
        "data": dict(data),
        **FAMILIES[name].settings(steps, size, told),
    }


def make_run(name: str, run_dir: Path, fields: Mapping[str, Any]) -> Run:
    """A family's run, built but not trained.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: for settings or data that do not fit, or a
            directory that holds something else.
    """
    module = importlib.import_module(FAMILIES[name].module)
    made = config.from_dict(module.Config(), {**fields, "run_dir": str(run_dir)})
    saved = cli.load_config(run_dir, FAMILIES[name].module, module.Config())
    if saved is not None and (found := config.differences(saved, made)):
        raise ValueError(f"{run_dir} was made by another config: " + ", ".join(found))
    experiment = module.build(made)
    loop.check_batch(experiment, made, make_strategy(made.strategy))
    return Run(name, name, FAMILIES[name].module, made, experiment)


def open_run(run_dir: Path) -> Run:
    """A finished run of any experiment on images.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if its config cannot be read, or it is no run on images.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"--run-dirs {run_dir} is no run directory: it has no config.json")
    try:
        name = json.loads(path.read_text())["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a run's config: {error!r}") from error
    if not isinstance(name, str) or not name.startswith("experiments."):
        raise ValueError(f"--run-dirs {run_dir} is a run of {name}, not of an experiment here")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--run-dirs {run_dir} is a run of {name}, which is gone") from error
    loaded = cli.load_config(run_dir, name, module.Config())
    kind = next((kind for base, kind in KINDS if isinstance(loaded, base)), None)
    if kind is None:
        raise ValueError(f"--run-dirs {run_dir} is a run of {name}, which is not on images")
    return Run(run_dir.name, kind, name, loaded, module.build(loaded))


def flags(module: str, loaded: RunConfig) -> list[str]:
    """The arguments by which an experiment's own module makes this run."""
    default = importlib.import_module(module).Config()
    return list(_flags(config.to_dict(default), config.to_dict(loaded), ""))


def _flags(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in new.items():
        flag = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(old[name], value, f"{flag}.")
        elif value != old[name]:
            if isinstance(value, bool):
                head, _, tail = flag.rpartition(".")
                dot = "." if head else ""
                yield f"--{flag}" if value else f"--{head}{dot}no-{tail}"
            elif isinstance(value, list | tuple):
                yield from (f"--{flag}", *map(str, value))
            else:
                yield f"--{flag}={value}"
