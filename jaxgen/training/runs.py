"""Run directories: the config that they store, and opening one that was trained."""

import hashlib
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from jaxgen.core import PyTree
from jaxgen.data.sources import Source, check_alike
from jaxgen.files import LOCK, is_temporary, open_atomically
from jaxgen.training import config as configs
from jaxgen.training import states
from jaxgen.training.config import RunConfig
from jaxgen.training.evaluation import variables_of
from jaxgen.training.experiment import Experiment
from jaxgen.training.manifest import fingerprints, named_leaves
from jaxgen.training.recipe import INSTALLED, Recipe
from jaxgen.training.strategies import JitStrategy, make_strategy
from jaxgen.training.trained_run import Run
from jaxgen.training.writers import SAMPLES, write_json

CONFIG = "config.json"


def open_run(
    run_dir: str | Path,
    *,
    step: int | Literal["best"] | None = None,
    average: str | None = None,
    strategy: JitStrategy | None = None,
    **changes: Any,
) -> Run:
    """Open a trained run directory: in a notebook, in a comparison, as a first stage.

    It is `jaxgen.open_run` too.

    Args:
        run_dir: Path of the run directory, as given to `--run-dir`.
        step: Step of the checkpoint, or "best": the one of the smallest distance or held-out loss
            that training measured; the newest by default.
        average: Name of the average of the parameters to use, "raw" for those that are trained; the
            first average by default.
        strategy: Strategy that places the variables on devices; `jit` on all devices by default.
        changes: Fields of the config to replace, such as `data={"dir": ...}` where the data have
            moved, or `sampler=...`; only operational fields can be replaced.

    Returns:
        The run.

    Raises:
        FileNotFoundError: No such directory, or no checkpoint in it.
        FileExistsError: A directory of something else, or a file.
        ValueError: A config that cannot be read, a change of a field that is not operational, or
            other data than the run was made on.
        CheckpointError: A damaged checkpoint.

    Examples:
        >>> run = open_run("runs/ddpm_digits")  # doctest: +SKIP
        >>> images = run.sample(16, seed=1)  # doctest: +SKIP
    """
    run_dir = Path(run_dir)
    recipe, name = recipe_of(run_dir), _name_of(run_dir)
    config = load_config(run_dir, name, recipe.config)
    assert config is not None
    new = configs.replace(config, changes)
    if differences := configs.differences(config, new):
        raise ValueError(f"{run_dir} was trained with another config: {'; '.join(differences)}")
    experiment = recipe.build(new)
    check_fixed(run_dir, experiment.family.fixed)
    check_files(run_dir, experiment)
    check_data(run_dir, experiment, new)
    strategy = strategy or make_strategy("jit")
    state = states.restore(experiment, new, strategy, step=step)
    fixed = strategy.put_replicated(experiment.family.fixed)
    variables = variables_of(state, experiment.averages, fixed, average)
    used = next(iter(experiment.averages), None) if average is None else average
    family = experiment.family
    return Run(family, variables, new, experiment, int(state.step), name, used, strategy)


def load_config(run_dir: Path, name: str, default: RunConfig) -> Any:
    """The config that a run directory stores, or None where there is no such directory.

    Args:
        run_dir: Path of the run directory.
        name: Name of the recipe's module.
        default: Config of the recipe, for fields that an older run does not have.

    Raises:
        FileExistsError: If the directory holds something else.
        ValueError: If the run is of another experiment, or its config cannot be read.
    """
    saved = _read(run_dir)
    if saved is None:
        return None
    if saved["experiment"] != name:
        raise ValueError(f"--run-dir {run_dir} is a run of {saved['experiment']}, not of {name}")
    values = {**saved["config"], "run_dir": str(run_dir)}  # it may have been moved since
    return configs.from_dict(default, values)


def begin(run_dir: Path, name: str, config: RunConfig, experiment: Experiment) -> None:
    """Make a run's directory its own, or find that it is: call this under the directory's lock.

    What another command wrote there since the flags were read counts: its config stays.

    Args:
        run_dir: Path of the run directory, which exists.
        name: Name of the recipe's module.
        config: Flags of the run.
        experiment: Experiment of the run.

    Raises:
        FileExistsError: If the directory holds something else.
        ValueError: If it holds a run of another experiment, of another config, or on other
            pretrained arrays or data.
    """
    saved = load_config(run_dir, name, config)
    if saved is not None:
        check_same(run_dir, saved, config)
        check_fixed(run_dir, experiment.family.fixed)
        check_files(run_dir, experiment)
        check_data(run_dir, experiment, config)
    # Of a process that was killed; the lock's holder alone writes here.
    for path in (*run_dir.iterdir(), *(run_dir / SAMPLES).glob(".*")):
        if is_temporary(path):
            path.unlink()
    save_config(run_dir, name, config, experiment)
    for file, content in kept_files(experiment).items():
        with open_atomically(run_dir / file) as opened:
            opened.write(content)


def check_same(run_dir: Path, saved: Any, config: Any) -> None:
    """Checks that flags ask for the run that a directory holds.

    Args:
        run_dir: Path of the run directory.
        saved: Config that it stores.
        config: Flags.

    Raises:
        ValueError: If they differ in a field that is not operational.
    """
    if differences := configs.differences(saved, config):
        raise ValueError(
            f"--run-dir {run_dir} was made by another config:\n  "
            + "\n  ".join(differences)
            + "\nUse another --run-dir for a new run, or drop these flags to go on with this one"
        )


def save_config(run_dir: Path, name: str, config: RunConfig, experiment: Experiment) -> None:
    """Write the config of a run into its directory, and what identifies its data.

    Args:
        run_dir: Path of the run directory.
        name: Name of the recipe's module.
        config: Flags of the run.
        experiment: Experiment of the run: of its sources the digests and class names are stored, of
            its family's pretrained arrays a fingerprint.
    """
    saved = {
        "experiment": name,
        "config": configs.to_dict(config),
        "data": {role: _described(source) for role, source in _sources(experiment).items()},
    }
    if (fingerprint := fixed_fingerprint(experiment.family.fixed)) is not None:
        saved["fixed"] = fingerprint
    if files := kept_files(experiment):
        saved["files"] = {file: _digest(content) for file, content in files.items()}
    write_json(run_dir / CONFIG, saved)


def fixed_fingerprint(fixed: PyTree) -> str | None:
    """A digest of a family's pretrained arrays, their names and shapes; None where it has none."""
    if not jax.tree.leaves(fixed):
        return None
    leaves = named_leaves(fixed, "fixed")
    arrays = {name: jax.numpy.asarray(array) for name, array in leaves.items()}
    described = [
        (name, str(arrays[name].dtype), arrays[name].shape, fingerprint)
        for name, fingerprint in sorted(fingerprints(arrays).items())
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def check_fixed(run_dir: Path, fixed: PyTree) -> None:
    """Checks that a family's pretrained arrays are those that a run started with.

    Args:
        run_dir: Path of the run directory.
        fixed: Pretrained arrays of the family.

    Raises:
        ValueError: If their fingerprints differ.
    """
    saved = _read(run_dir)
    if saved is None:
        return
    before, now = saved.get("fixed"), fixed_fingerprint(fixed)
    if before != now:
        raise ValueError(
            f"{run_dir} was trained on other pretrained arrays (fingerprint {before}, now {now}): "
            "was the first stage trained further since?"
        )


def check_files(run_dir: Path, experiment: Experiment) -> None:
    """Checks that what makes data mean the same, a tokenizer or a palette, is what it was.

    Args:
        run_dir: Path of the run directory.
        experiment: Experiment as it was built now.

    Raises:
        ValueError: If a file's content is another than the run started with; names it.
    """
    saved = _read(run_dir)
    if saved is None:
        return
    now = {file: _digest(content) for file, content in kept_files(experiment).items()}
    for file, before in saved.get("files", {}).items():
        if now.get(file) != before:
            raise ValueError(
                f"{run_dir} was made with another {file} (digest {before}, now {now.get(file)}): "
                f"restore {run_dir / file}, without which its data would mean something else"
            )


def kept_files(experiment: Experiment) -> Mapping[str, bytes]:
    """What a run keeps so that its data mean the same ever after: content by the file's name.

    Args:
        experiment: Experiment of the run.
    """
    conditioning = experiment.family.conditioning
    return {**experiment.files, **({} if conditioning is None else conditioning.files)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def check_data(run_dir: Path, experiment: Experiment, config: RunConfig) -> None:
    """Checks that training and held-out examples are alike, and those that a run started with.

    Wherever they are now. The held-out examples are compared with those of before where their
    split has the same name.

    Args:
        run_dir: Path of the run directory; one that does not exist yet remembers no data.
        experiment: Experiment as it was built now.
        config: Flags that it was built from.

    Raises:
        ValueError: If shapes, labels or class names of the two sets differ, or examples or class
            names are not those of before; names both.
    """
    check_alike(*_sources(experiment).values())
    saved = _read(run_dir)
    if saved is None:
        return
    same_split = saved["config"].get("data", {}).get("held_out") == config.data.held_out
    for role, source in _sources(experiment).items():
        before, now = saved.get("data", {}).get(role), _described(source)
        if before is None or before["digest"] == now["digest"]:
            continue
        if role == "train" or same_split:
            raise ValueError(
                f"{run_dir} was made on other data ({role}): {_line(before)}; now they are "
                f"{_line(now)}. Give it the data that it was made on (they may have moved: "
                "--data.dir), or use another --run-dir"
            )


def _sources(experiment: Experiment) -> dict[str, Source]:
    return {"train": experiment.pipeline.source, "held_out": experiment.held_out}


def _described(source: Source) -> dict[str, Any]:
    """What a run remembers of a set."""
    return {
        "protocol": source.protocol,
        "class_names": list(source.class_names),
        "digest": source.digest,
    }


def _line(described: Mapping[str, Any]) -> str:
    names = described["class_names"]
    shown = ", ".join([*names[:10], *(["..."] if len(names) > 10 else [])])
    return described["protocol"] + (f", classes {shown}" if names else "")


def saved_config(run_dir: str | Path) -> dict[str, Any]:
    """The content of a run directory's config.json: recipe, flags, data, fingerprints.

    Args:
        run_dir: Path of the run directory.

    Raises:
        FileNotFoundError: No such directory, or one without a config.
        FileExistsError: A directory of something else, or a file.
        ValueError: If the file cannot be read.
    """
    saved = _read(Path(run_dir))
    if saved is None:
        raise FileNotFoundError(f"{run_dir} is no run directory: it has no {CONFIG}")
    return saved


def _read(run_dir: Path) -> dict[str, Any] | None:
    """The content of a run directory's config, or None where there is no such directory."""
    path = run_dir / CONFIG
    if not path.exists():
        if run_dir.is_dir() and not all(map(_is_beginning, run_dir.iterdir())):
            raise FileExistsError(
                f"--run-dir {run_dir} exists and is no run directory (it has no {CONFIG}): "
                "name a new directory"
            )
        if run_dir.exists() and not run_dir.is_dir():
            raise FileExistsError(f"--run-dir {run_dir} is a file: name a directory")
        return None
    try:
        saved = json.loads(path.read_text())
        saved["experiment"], dict(saved["config"])
        return dict(saved)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a run's config: {error!r}") from error


def _is_beginning(path: Path) -> bool:
    """Whether a file is what a run leaves that is killed before its config is written."""
    return path.name == LOCK or is_temporary(path, CONFIG)


def recipe_of(run_dir: str | Path) -> Recipe:
    """The recipe that a run directory names, whether it is installed or in a checkout.

    Args:
        run_dir: Path of the run directory.

    Raises:
        FileNotFoundError: No such directory, or one without a config.
        FileExistsError: A directory of something else, or a file.
        ValueError: If there is no such module, it has no recipe, or it lies in the run directory
            itself, which may be a stranger's: nothing in it is run.
    """
    name = _name_of(Path(run_dir))
    root, parts = Path(run_dir).resolve(), name.split(".")
    places = [Path(place, *parts).resolve() for place in sys.path]
    if any(place.is_relative_to(root) for place in places):
        raise ValueError(f"{run_dir} is a run of {name!r}, which lies in it: nothing there is run")
    try:
        return find_recipe(name)
    except ValueError as error:
        raise ValueError(f"{run_dir} is a run of {name!r}, which has no recipe here") from error


def find_recipe(name: str) -> Recipe:
    """The recipe of a module, in a checkout or installed with the package.

    Args:
        name: Name of the module as runs store it, such as "experiments.ddpm_cifar".

    Raises:
        ValueError: If there is no such module, or it has no recipe.
    """
    # The package that the process already uses comes first, so that its types are the same.
    root, both = name.partition(".")[0], (name, f"{INSTALLED}{name}")
    for module in both[::-1] if f"{INSTALLED}{root}" in sys.modules else both:
        try:
            recipe: Recipe = importlib.import_module(module).recipe
            return recipe
        except (ModuleNotFoundError, AttributeError) as error:
            failure = error
    raise ValueError(f"{name} has no recipe: {failure}") from failure


def _name_of(run_dir: Path) -> str:
    """The name of the recipe's module that a run directory stores."""
    return str(saved_config(run_dir)["experiment"])
