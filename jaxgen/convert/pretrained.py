"""A model from its weights alone: a file, a folder, or a repository of the Hugging Face Hub.

run = from_pretrained("digits.safetensors")     # what jaxgen export wrote
run = from_pretrained("ddpm-cifar10-32")        # a folder of diffusers
images = run.sample(16)
"""

import difflib
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.convert import diffusers_folder
from jaxgen.convert.weights import Origin, Weights, load
from jaxgen.core import PyTree, Variables
from jaxgen.training import config as configs
from jaxgen.training import states
from jaxgen.training.experiment import Experiment
from jaxgen.training.manifest import Leaf, named_leaves
from jaxgen.training.runs import find_recipe, fixed_fingerprint
from jaxgen.training.strategies import JitStrategy, make_strategy
from jaxgen.training.trained_run import Run

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIX = ".safetensors"


def from_pretrained(
    path: str | Path,
    *,
    strategy: JitStrategy | None = None,
    revision: str | None = None,
    **changes: Any,
) -> Run:
    """Open a model from a file that `jaxgen export` wrote, or from a folder of diffusers.

    Of a file of ours the recipe is built as the run built it, so what the recipe looks at must be
    there: its data (images that come with the package, or by `data={"dir": ...}`) and its first
    stage, where it has one. Of the data only what the model means by it is compared, the names of
    the classes.

    A folder of diffusers is one that its `save_pretrained` wrote, with safetensors: a network
    (`UNet2DModel`, `DiTTransformer2DModel`), an `AutoencoderKL`, or a pipeline of these (DDPM,
    DDIM, DiT), which samples by its own scheduler. An option of a config that ours cannot follow
    is refused by its name (`jaxgen.convert.diffusers_folder`).

    Args:
        path: The file, a folder with one such file, a folder of diffusers, or the name "owner/name"
            of a repository of the Hugging Face Hub with either, for which the package
            huggingface_hub must be installed.
        strategy: Strategy that places the variables on devices; `jit` on all devices by default.
        revision: Branch, tag or commit of the repository; its newest by default.
        changes: Fields of the config to replace, such as `data={"dir": ...}` or `sampler=...`; only
            operational fields can be replaced. Of a folder of diffusers those of its config:
            `num_steps=50`, `guidance_scale=2.0`, `scheduler={"kind": "DDIMScheduler"}`.

    Returns:
        The run; its `config.run_dir` names no directory of this machine, but of a folder of
        diffusers that folder.

    Raises:
        FileNotFoundError: If there is no such file, a file of a folder is missing, or the recipe's
            data or first stage are not here.
        ImportError: For a repository, if huggingface_hub is not installed.
        OSError: If a repository cannot be downloaded.
        ValueError: If the file is damaged, of a recipe that there is not, or of a model other than
            the recipe builds now: names the array, its shape and the expected one; or a change of a
            field that is not operational; or an option of diffusers that ours cannot follow.
    """
    place = _place_of(path, revision)
    if place.is_dir() and diffusers_folder.is_one(place):
        return diffusers_folder.open_folder(place, strategy or make_strategy("jit"), changes)
    place = _file_of(place)
    weights = load(place)
    origin = weights.origin
    recipe = find_recipe(origin.recipe)
    saved = configs.from_dict(recipe.config, origin.config)
    config = configs.replace(saved, changes)
    if differences := configs.differences(saved, config):
        raise ValueError(f"{place} was trained with another config: {'; '.join(differences)}")
    strategy = strategy or make_strategy("jit")
    # A recipe looks into its run directory for what makes its data mean the same.
    with tempfile.TemporaryDirectory() as folder:
        for name, content in origin.files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        config = configs.replace(config, {"run_dir": folder})
        experiment = recipe.build(config)
        _check_meaning(place, origin, experiment)
        target = states.abstract_state(experiment, config, strategy)
    arrays = _placed(place, weights, {"params": target.params, "state": target.state})
    experiment.family.check(arrays["params"])
    fixed = strategy.put_replicated(experiment.family.fixed)
    variables = Variables(arrays["params"], arrays["state"], fixed)
    config = configs.replace(config, {"run_dir": origin.config["run_dir"]})
    return Run(
        experiment.family,
        variables,
        config,
        experiment,
        origin.step,
        origin.recipe,
        strategy=strategy,
    )


def _check_meaning(place: Path, origin: Origin, experiment: Experiment) -> None:
    """Checks that pretrained arrays and classes are those that the model was trained on."""
    now = fixed_fingerprint(experiment.family.fixed)
    if now != origin.fixed:
        raise ValueError(
            f"{place} was trained on other pretrained arrays (fingerprint {origin.fixed}, now "
            f"{now}): it needs the first stage, or the encoder, that it was trained with"
        )
    before = origin.data.get("train", {}).get("class_names", [])
    names = list(experiment.pipeline.source.class_names)
    if names != before:
        raise ValueError(f"{place} knows the classes {before}, and the data here have {names}")


def _placed(place: Path, weights: Weights, target: PyTree) -> Any:
    """The arrays in the structure of `target`, where its shardings say, all of them checked."""
    wanted = named_leaves(target, "target")
    given = named_leaves({"params": weights.params, "state": weights.state}, "weights")
    built = f"the model that {weights.origin.recipe} builds in this version of jaxgen"
    for name, leaf in wanted.items():
        if name not in given:
            near = difflib.get_close_matches(name, given, n=1, cutoff=0.0)
            raise ValueError(f"{place} lacks {name} of {built}; near is {near[0]}")
        if Leaf.of(given[name]) != Leaf.of(leaf):
            raise ValueError(
                f"{place}: {name} is {Leaf.of(given[name])}, and {Leaf.of(leaf)} in {built}"
            )
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(given[name]).all()):
            raise ValueError(f"{place}: {name} is not finite")
    if unknown := [name for name in given if name not in wanted]:
        raise ValueError(f"{place} has {unknown[0]} ({len(unknown)} such), which {built} has not")
    leaves = [jax.device_put(given[name], leaf.sharding) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _place_of(path: str | Path, revision: str | None) -> Path:
    """The file or folder that a path or a name means."""
    place = Path(path)
    if not place.exists() and place.suffix != _SUFFIX and _HUB_NAME.fullmatch(str(path)):
        place = _download(str(path), revision)
    if not place.is_file() and not place.is_dir():
        raise FileNotFoundError(f"there is no file or folder of weights {path}")
    return place


def _file_of(place: Path) -> Path:
    """The one file of weights at a place."""
    if place.is_file():
        return place
    files = sorted(place.glob(f"*{_SUFFIX}"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"{place} must hold one file {_SUFFIX}, it has "
            + (", ".join(file.name for file in files) or "none")
        )
    return files[0]


def _download(name: str, revision: str | None) -> Path:
    """The folder of a repository's weights, in the cache of its library."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"there is no file or folder {name} here, and a repository of the Hugging Face Hub "
            "needs the package huggingface_hub: pip install 'jaxgen[hub]'"
        ) from error
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[f"*{_SUFFIX}", "*.json"])
        )
    except Exception as error:  # no such repository, no access, no network: it raises many kinds
        reason, *_ = str(error).splitlines() or ["no reason given"]
        raise OSError(
            f"there is no file or folder {name} here, and the repository {name} cannot be "
            f"downloaded from the Hugging Face Hub ({type(error).__name__}: {reason}); offline, "
            "download it elsewhere and give the path of the file"
        ) from error
