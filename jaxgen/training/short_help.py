"""What `--help` shows of a verb: the flags that it is for. `--help-all` shows all of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from jaxgen.training import evaluation
from jaxgen.training.config import RunConfig
from jaxgen.training.recipe import Recipe

ALL = "--help-all"
_RUN_DIR = "--run-dir"
_OF_ALL_VERBS = ("run_dir", "seed", "fsdp", "compilation_cache")
_DATA = ("dir", "held_out")
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "train": (),
    "sample": ("sampler", "pictures"),
    "evaluate": ("evaluation",),
}
"""The groups of flags that are of one verb, where a recipe has them."""


def asked(arguments: Sequence[str]) -> Literal["short", "all", ""]:
    """Which help the arguments of a command line ask for; "" for none.

    Args:
        arguments: Arguments after the verb.
    """
    if ALL in arguments:
        return "all"
    return "short" if {"-h", "--help"} & set(arguments) else ""


def run_dir_of(arguments: Sequence[str]) -> str | None:
    """The run directory among arguments that need not be right; None where none is named.

    Args:
        arguments: Arguments after the verb.
    """
    for argument, value in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == _RUN_DIR:
            return value
        if argument.startswith(f"{_RUN_DIR}="):
            return argument.partition("=")[2]
    return None


def pictures(recipe: Recipe, config: RunConfig) -> str:
    """A line with the names of the pictures that can be drawn, which needs the data.

    Args:
        recipe: Recipe that is asked about.
        config: Flags of it, or of a run.
    """
    try:
        names = sorted(evaluation.drawable(recipe.build(config)))
    except (ValueError, TypeError, OSError, ImportError) as error:
        return f"Pictures (--picture) are named here once the data can be read: {error}"
    return f"Pictures (--picture): {', '.join(['samples', *names])}."


def shown(config: RunConfig, verb: str) -> RunConfig:
    """A config of a type of its own, whose help is of the flags that a verb is for.

    A run's model is fixed when it was trained: what cannot be changed any more, and what is of
    training alone, is not shown of other verbs. All flags can be given, whatever is shown.

    Args:
        config: Config of a recipe, or of a run.
        verb: `train`, `sample` or `evaluate`.
    """
    own = {f.name for f in dataclasses.fields(RunConfig)}
    groups = set().union(*_GROUPS.values()) - set(_GROUPS[verb])
    hidden, replaced = [], {}
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if verb == "train":
            is_shown = name not in groups
        elif name == "data":
            is_shown = True
            replaced[name] = _hiding(value, [f.name for f in dataclasses.fields(value)], _DATA)
        elif dataclasses.is_dataclass(value):
            is_shown = name in _GROUPS[verb]
        else:
            is_operational = name not in own and field.metadata.get("operational")
            is_shown = name in _OF_ALL_VERBS or bool(is_operational)
        if not is_shown:
            hidden.append(name)
    return _hiding(config, hidden, replaced=replaced)


def _hiding(
    config: Any, hidden: list[str], kept: tuple[str, ...] = (), *, replaced: Any = None
) -> Any:
    """An equal config of a derived type, some of whose fields the help does not show."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    hints = get_type_hints(type(config), include_extras=True)
    fields: list[Any] = []
    for name, value in (replaced or {}).items():
        fields.append((name, type(value), dataclasses.field(default=value)))
    for name in hidden:
        if name not in kept:
            marked = Annotated[hints[name], tyro.conf.Suppress]  # type: ignore[valid-type]
            fields.append((name, marked, dataclasses.field(default=values[name])))
    derived = dataclasses.make_dataclass(
        type(config).__name__, fields, bases=(type(config),), frozen=True
    )
    derived.__doc__, derived.__module__ = type(config).__doc__, type(config).__module__
    return derived(**{**values, **(replaced or {})})
