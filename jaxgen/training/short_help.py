"""What `--help` shows of a verb: the flags that it is for. `--help-all` shows all of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from jaxgen.training import evaluation
from jaxgen.training.checkpoint import CheckpointError
from jaxgen.training.config import RunConfig
from jaxgen.training.recipe import Recipe

ALL = "--help-all"
_RUN_DIR = "--run-dir"
_OF_ALL_VERBS = ("run_dir", "seed", "fsdp", "compilation_cache")
_DATA = ("dir", "held_out")
_SHARED = {f.name for f in dataclasses.fields(RunConfig)}
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "sample": ("sampler", "pictures"),
    "evaluate": ("evaluation",),
}
"""The groups of flags that are of one verb, where a recipe has them."""
_OF_TRAINING = (
    "run_dir",
    "steps",
    "batch_size",
    "seed",
    "precision",
    "sample_every",
    "measure_every",
    "writers",
)
_MOST_USED = (
    "name",
    "dir",
    "resize",
    "sample_rate",
    "condition",
    "channels",
    "encoder",
    "learning_rate",
    "warmup_steps",
    "schedule",
    "decay",
)
"""Names of the flags of any group that the help of `train` shows."""


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
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, has_value, value = argument.partition("=")
        if name.replace("_", "-") == _RUN_DIR:  # as tyro reads it
            return value if has_value else following
    return None


def pictures(recipe: Recipe, config: RunConfig) -> str:
    """A line with the names of the pictures that can be drawn, which needs the data.

    Args:
        recipe: Recipe that is asked about.
        config: Flags of it, or of a run.
    """
    try:
        names = sorted(evaluation.drawable(recipe.build(config)))
    except (ValueError, TypeError, OSError, ImportError, CheckpointError) as error:
        return f"Pictures (--picture) are named here once the data can be read: {error}"
    return f"Pictures (--picture): {', '.join(['samples', *names])}."


def shown(config: RunConfig, verb: str) -> RunConfig:
    """A config of a type of its own, whose help is of the flags that a verb is for.

    Of `train` these are the recipe's own and, of those that recipes share, the most used. A run's
    model is fixed when it was trained: what cannot be changed any more, and what is of training
    alone, is not shown of other verbs. All flags can be given, whatever is shown.

    Args:
        config: Config of a recipe, or of a run.
        verb: `train`, `sample` or `evaluate`.
    """
    return _shown_of_train(config) if verb == "train" else _shown_of_runs(config, _GROUPS[verb])


def _shown_of_train(config: RunConfig) -> RunConfig:
    others = set().union(*_GROUPS.values())
    hidden, replaced = list[str](), dict[str, Any]()
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            group = None if name in others else _with_only(value, _MOST_USED)
            replaced |= {} if group is None else {name: group}
            is_shown = group is not None
        else:
            is_shown = name in _OF_TRAINING or name not in _SHARED
        hidden += [] if is_shown else [name]
    return _hiding(config, hidden, replaced)


def _shown_of_runs(config: RunConfig, own: tuple[str, ...]) -> RunConfig:
    hidden = list[str]()
    for field in dataclasses.fields(config):
        name = field.name
        if dataclasses.is_dataclass(getattr(config, name)):
            is_shown = name in ("data", *own)
        else:
            is_operational = name not in _SHARED and field.metadata.get("operational")
            is_shown = name in _OF_ALL_VERBS or bool(is_operational)
        hidden += [] if is_shown else [name]
    data = _with_only(config.data, _DATA)
    return _hiding(config, hidden, {} if data is None else {"data": data})


def _with_only(group: Any, names: tuple[str, ...]) -> Any:
    """A group of which these flags are shown, and those of groups in it; None where it has none."""
    hidden, replaced = list[str](), dict[str, Any]()
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            if (inner := _with_only(value, names)) is not None:
                replaced[field.name] = inner
                continue
        elif field.name in names:
            continue
        hidden.append(field.name)
    if len(hidden) == len(dataclasses.fields(group)):
        return None
    return _hiding(group, hidden, replaced)


def _hiding(config: Any, hidden: Sequence[str], replaced: Mapping[str, Any]) -> Any:
    """An equal config of a derived type, some of whose fields the help does not show."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    hints = get_type_hints(type(config), include_extras=True)
    fields: list[Any] = []
    for name, value in replaced.items():
        fields.append((name, type(value), dataclasses.field(default=value)))
    for name in hidden:
        marked = Annotated[hints[name], tyro.conf.Suppress]  # type: ignore[valid-type]
        fields.append((name, marked, dataclasses.field(default=values[name])))
    derived = dataclasses.make_dataclass(
        type(config).__name__, fields, bases=(type(config),), frozen=True
    )
    derived.__doc__, derived.__module__ = type(config).__doc__, type(config).__module__
    return derived(**{**values, **replaced})
