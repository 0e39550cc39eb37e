"""A trained model as one safetensors file that says what it is.

    weights = of_run("runs/ddpm_digits")
    save("digits.safetensors", weights)
    load("digits.safetensors").params                    # or from_pretrained("digits.safetensors")

The arrays are `params/...` and `state/...`, by the names of the networks' layers. The file's
metadata hold the recipe, its config, the files without which its data would mean something else (a
tokenizer, a palette), a fingerprint of every array, and the version of jaxgen that wrote it.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

import jaxgen
from jaxgen.core import Params, PyTree
from jaxgen.files import open_atomically
from jaxgen.training import config as configs
from jaxgen.training.images import check_output
from jaxgen.training.manifest import fingerprints, named_leaves
from jaxgen.training.runs import kept_files, open_run, saved_config

FORMAT, SUFFIX = "1", ".safetensors"
_KEY = "jaxgen"  # of the metadata, in the file


class Origin(NamedTuple):
    """Where weights come from: all that is needed to build their model again.

    Attributes:
        recipe: Name of the recipe's module, such as "experiments.ddpm_cifar".
        config: Flags of the run, as JSON.
        step: Number of training steps that were done.
        average: Name of the average that the parameters are, "raw" for the trained ones; None where
            the run keeps no average.
        data: Description of the data of the run, by role, as the run's config.json has it.
        fixed: Fingerprint of the pretrained arrays that the model uses besides; None for none.
        files: Content of what the run keeps so that its data mean the same, by the file's name.
        version: Version of jaxgen that wrote the file.
    """

    recipe: str
    config: dict[str, Any]
    step: int
    average: str | None
    data: dict[str, Any] = {}
    fixed: str | None = None
    files: dict[str, bytes] = {}
    version: str = jaxgen.__version__


class Weights(NamedTuple):
    """The arrays of a trained model, and where they come from.

    Attributes:
        params: Parameters by network.
        state: Arrays that training changes without a gradient: batch statistics, codebooks.
        origin: Recipe, config and step.
    """

    params: Params
    state: PyTree
    origin: Origin


def of_run(
    run_dir: str | Path,
    *,
    step: int | Literal["best"] | None = None,
    average: str | None = None,
    **changes: Any,
) -> Weights:
    """The weights of a trained run.

    Args:
        run_dir: Path of the run directory.
        step: Step of the checkpoint, or "best", as for `open_run`; the newest by default.
        average: Name of the average of the parameters, "raw" for the trained ones; the first
            average by default.
        changes: Fields of the config to replace, as for `open_run`.

    Raises:
        Exception: What `open_run` raises.
        FloatingPointError: If an array is not finite; names it.
    """
    run = open_run(run_dir, step=step, average=average, **changes)
    saved = saved_config(run_dir)
    origin = Origin(
        recipe=run.name,
        config=configs.to_dict(run.config),
        step=run.step,
        average=run.average,
        data=saved.get("data", {}),
        fixed=saved.get("fixed"),
        files=dict(kept_files(run.experiment)),
    )
    weights = Weights(run.variables.params, run.variables.state, origin)
    for name, array in _named(weights).items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and not bool(jnp.isfinite(array).all()):
            raise FloatingPointError(f"{run_dir}: {name} of step {run.step} is not finite")
    return weights


def save(path: str | Path, weights: Weights) -> None:
    """Write a new file of weights, whole or not at all.

    Args:
        path: Path of the file, which must not exist yet; its name ends in .safetensors.
        weights: Weights to write.

    Raises:
        FileExistsError: If there is such a file.
        PermissionError: If its directory is not writable.
        ValueError: Another suffix.
        TypeError: If a leaf of the weights is no array.
    """
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    check_output(path, accepted=(SUFFIX,))
    arrays = _named(weights)
    origin = {
        **weights.origin._asdict(),
        "files": {
            name: base64.b64encode(content).decode()
            for name, content in weights.origin.files.items()
        },
        "format": FORMAT,
        "fingerprints": fingerprints(arrays),
    }
    metadata = {_KEY: json.dumps(origin, sort_keys=True), "format": "np"}
    content = to_bytes({name: np.asarray(array) for name, array in arrays.items()}, metadata)
    with open_atomically(path) as file:
        file.write(content)


def load(path: str | Path) -> Weights:
    """The weights in a file that `save` wrote, every array checked by its fingerprint.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, was not written by jaxgen, or has an array that is not the
            one that was written; names the file and the array.
    """
    path = Path(path)
    arrays, metadata = read_safetensors(path)
    if _KEY not in metadata:
        raise ValueError(
            f"{path} holds arrays but not the recipe that they are of: jaxgen export did not write "
            "it. Files of other packages are read by the modules of jaxgen.convert, a folder of "
            "diffusers, with its config, by from_pretrained(folder)"
        )
    try:
        stored = json.loads(metadata[_KEY])
        expected, form = dict(stored.pop("fingerprints")), stored.pop("format")
        if form == FORMAT:
            stored["files"] = {
                name: base64.b64decode(text, validate=True)
                for name, text in stored["files"].items()
            }
            origin = Origin(**stored)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"the metadata of {path} are damaged: {error!r}") from error
    if form != FORMAT:
        raise ValueError(f"{path} is of format {form!r}, written by jaxgen {stored.get('version')}")
    if lost := sorted(expected.keys() ^ arrays.keys()):
        raise ValueError(f"{path} is damaged: the array {lost[0]} is missing, or too many")
    actual = fingerprints({name: jnp.asarray(array) for name, array in arrays.items()})
    if changed := [name for name in arrays if actual[name] != expected[name]]:
        raise ValueError(f"{path} is damaged: {changed[0]} is not the array that was written")
    tree = unflatten_dict(arrays, sep="/")
    return Weights(tree.get("params", {}), tree.get("state", {}), origin)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """The arrays of any safetensors file by name, and its metadata.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as one.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # the library raises several kinds
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def _named(weights: Weights) -> dict[str, jax.Array]:
    """The arrays by their names in the file."""
    return named_leaves({"params": weights.params, "state": weights.state}, "weights")
