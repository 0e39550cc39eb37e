"""How the comparison trains one model of each family, by its digits recipe."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen.training import config as configs
from jaxgen.training import runs
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.flag_checks import check_batch
from jaxgen.training.recipe import Recipe
from jaxgen.training.strategies import make_strategy

SMALL = 8  # images of at most so many pixels a side are the embedded digits' size


class Task(NamedTuple):
    """What a family is trained for.

    Attributes:
        steps: Number of training steps.
        size: Pixels a side of the images.
        labels: Whether the autoregressive network is conditioned on the labels.
        digits: Whether the images are the embedded digits at their own size.
    """

    steps: int
    size: int
    labels: bool
    digits: bool


class Entrant(NamedTuple):
    """How a family is trained here.

    Attributes:
        module: The module of its recipe.
        settings: `task -> fields of its config`, nested as in JSON.
        calibration_steps: Number of steps that time a step, a few seconds' worth.
        most_steps: Most steps on the embedded digits, whatever the budget in seconds: the recipe's
            own number, as quick families overfit so few images in the time that slow ones need.
    """

    module: str
    settings: Callable[[Task], dict[str, Any]]
    calibration_steps: int
    most_steps: int


class Planned(NamedTuple):
    """A run that the comparison is to make, built but not trained.

    Attributes:
        name: What the comparison calls it, a key of `ENTRANTS`.
        recipe: The recipe that it is a run of.
        config: Its flags.
        experiment: What the flags build.
    """

    name: str
    recipe: Recipe
    config: Any
    experiment: Experiment


def _innermost(size: int) -> int:
    """`min_size` of convolutional networks."""
    return 2 if size <= SMALL else 4


# Whatever a recipe counts in steps (a decay, a warm-up) keeps its share of the run.
ENTRANTS: dict[str, Entrant] = {
    "gan": Entrant(
        "experiments.dcgan_digits",
        lambda task: {"model": {"condition": "none", "min_size": _innermost(task.size)}},
        100,
        5000,
    ),
    "autoencoder": Entrant(
        "experiments.autoencoder_mnist",
        lambda task: {
            "batch_size": 64,
            "model": {
                "network": "conv",
                "min_size": _innermost(task.size),
                "activation": "silu",
                "latent_dim": 16,
            },
            "average": {"decay": 0.999},
        },
        400,
        5000,
    ),
    "vae": Entrant(
        "experiments.vae_digits",
        lambda task: {
            "model": {"min_size": _innermost(task.size)},
            "objective": {"kl_warmup_steps": task.steps // 5},
            "optimizer": {"decay_steps": task.steps},
        },
        400,
        5000,
    ),
    "flow": Entrant(
        "experiments.realnvp_digits",
        lambda task: {
            "model": {} if task.digits else {"values": 256},
            "optimizer": {"decay_steps": task.steps, "warmup_steps": task.steps // 60},
        },
        40,
        6000,
    ),
    "autoregressive": Entrant(
        "experiments.pixelcnn_digits",
        lambda task: {
            "model": {"condition": "label" if task.labels else "none"},
            "optimizer": {"decay_steps": task.steps},
        },
        40,
        1500,
    ),
    "diffusion": Entrant(
        "experiments.edm_digits",
        lambda task: {
            "process": {} if task.digits else {"sigma_data": 0.5},
            "optimizer": {"decay_steps": task.steps, "warmup_steps": task.steps // 12},
            "evaluation": {"tolerance": 1e-3},
        },
        40,
        1200,
    ),
}


def settings(
    name: str, steps: int, size: int, *, labels: bool, seed: int, data: Mapping[str, Any]
) -> dict[str, Any]:
    """All fields of a family's config that the comparison sets, nested as in JSON.

    Args:
        name: The family, a key of `ENTRANTS`.
        steps: Number of training steps.
        size: Pixels a side of the images.
        labels: Whether the autoregressive network is conditioned on the labels.
        seed: Seed of the run.
        data: Fields of its `DataConfig`.
    """
    digits = data["name"] == "digits" and data.get("resize") is None
    return {
        "steps": steps,
        "seed": seed,
        "log_every": max(1, steps // 50),
        "sample_every": 0,
        "checkpoint_every": max(1, steps // 3),
        "data": dict(data),
        **ENTRANTS[name].settings(Task(steps, size, labels, digits)),
    }


def plan_run(name: str, run_dir: Path, fields: Mapping[str, Any]) -> Planned:
    """A family's run, built but not trained.

    Args:
        name: The family, a key of `ENTRANTS`.
        run_dir: The run's directory.
        fields: Fields of its config, nested as in JSON.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: for settings or data that do not fit, or a
            directory that holds something else.
    """
    recipe: Recipe = runs.find_recipe(ENTRANTS[name].module)
    config = configs.from_dict(recipe.config, {**fields, "run_dir": str(run_dir)})
    saved = runs.load_config(run_dir, recipe.name(), recipe.config)
    if saved is not None and (differences := configs.differences(saved, config)):
        raise ValueError(f"{run_dir} was made by another config: " + ", ".join(differences))
    experiment = recipe.build(config)
    check_batch(experiment, config, make_strategy(config.strategy))
    return Planned(name, recipe, config, experiment)


def flags(recipe: Recipe, config: RunConfig) -> list[str]:
    """The arguments by which a recipe's own command line makes a run of this config."""
    return list(_flags(configs.to_dict(recipe.config), configs.to_dict(config), ""))


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
