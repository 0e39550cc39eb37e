"""What the configs of diffusers have in common: options by name, of which none is passed over."""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The content of a config's file.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as options by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold options by name, got {type(config).__name__}")
    return config


def check_options(
    config: Mapping[str, Any],
    known: Collection[str],
    *,
    needed: Collection[str] = (),
    fixed: Mapping[str, Any] = {},
    prefix: str = "",
) -> None:
    """Checks that a config has no option that would be passed over.

    Args:
        config: Options by name; those that begin with `_` are notes.
        known: Names of the options that are looked at, or have no effect here.
        needed: Names of those that it must have.
        fixed: Options that are known too, and the one value that each may have.
        prefix: Text before the names in errors.

    Raises:
        ValueError: If an option is unknown, is missing, or has another value; names it.
    """
    names = {*known, *fixed}
    for name, value in config.items():
        if name in fixed and value != fixed[name]:
            raise ValueError(f"{prefix}{name} must be {fixed[name]!r} here, got {value!r}")
        if name not in names and not name.startswith("_"):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" (near is {near[0]})" if near else ""
            raise ValueError(f"{prefix}{name} is an option that is not known here{hint}: {value!r}")
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"the config lacks the option {prefix}{missing[0]}")
