"""What `--help` shows of a verb: the flags that it is for. `--help-all` shows all of them."""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

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
    "strategy",
    "precision",
    "sample_every",
    "measure_every",
    "measure_extractor",
    "writers",
    "profile",
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
    "decay_steps",
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


def shown(config: RunConfig, verb: str) -> Any:
    """A config of another type, for help alone: it has the flags that a verb is for, and no others.

    Of `train` these are the recipe's own and, of those that recipes share, the most used, with the
    first words of their descriptions. A run's model is fixed when it was trained: what cannot be
    changed any more, and what is of training alone, is not shown of other verbs. All flags can be
    given, whatever is shown.

    Args:
        config: Config of a recipe, or of a run.
        verb: `train`, `sample` or `evaluate`.
    """
    fields: list[Any] = []
    for flag in _flags(config):
        if _is_of(verb, flag):
            text = _first_words(flag.text) if verb == "train" else flag.text
            said = tyro.conf.arg(name=".".join(flag.path), help=text)
            default = dataclasses.field(default=flag.value)
            fields.append(("__".join(flag.path), Annotated[flag.type, said], default))
    return dataclasses.make_dataclass("Flags", fields, frozen=True)()


class _Flag(NamedTuple):
    path: tuple[str, ...]  # its groups and its name
    type: Any
    value: Any
    text: str
    is_operational: bool


def _flags(config: Any, groups: tuple[str, ...] = ()) -> Iterator[_Flag]:
    """All flags of a config, with those of its groups in their place."""
    hints, texts = get_type_hints(type(config), include_extras=True), _descriptions(type(config))
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, (*groups, name))
        else:
            is_operational = bool(field.metadata.get("operational"))
            path, text = (*groups, name), texts.get(name, "")
            yield _Flag(path, hints[name], value, text, is_operational)


def _is_of(verb: str, flag: _Flag) -> bool:
    *groups, name = flag.path
    if verb == "train":
        if groups:
            return name in _MOST_USED and not any(groups[0] in own for own in _GROUPS.values())
        return name in _OF_TRAINING or name not in _SHARED
    if groups:
        return groups[0] in _GROUPS[verb] or (groups == ["data"] and name in _DATA)
    return name in _OF_ALL_VERBS or (name not in _SHARED and flag.is_operational)


def _descriptions(group: type) -> dict[str, str]:
    """The texts below the fields of a dataclass; none of one whose source is not at hand."""
    texts = {}
    for kind in filter(dataclasses.is_dataclass, reversed(group.__mro__)):
        try:
            (defined,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        except (OSError, TypeError):
            continue
        assert isinstance(defined, ast.ClassDef)
        for field, after in itertools.pairwise(defined.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    texts[field.target.id] = " ".join(text.value.split())
    return texts


def _first_words(text: str) -> str:
    """A description up to its first stop, semicolon or colon."""
    return re.split(r"[.;:](?: |$)", text, maxsplit=1)[0] + "."
