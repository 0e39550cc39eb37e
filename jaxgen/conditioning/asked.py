"""Conditions by name, as a command line or a notebook asks for them."""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.conditioning.base import Conditioning


def asked(
    conditioning: Conditioning | None,
    labels: Sequence[str] = (),
    attributes: Sequence[str] = (),
    text: Sequence[str] = (),
) -> np.ndarray | None:
    """The conditions that are asked for, [rows, *shape], or None where nothing is.

    Args:
        conditioning: What the model is conditioned on, or None.
        labels: Classes by name or number, each one row.
        attributes: Attributes by name or number: the rows of the data's examples that have them
            all, or where none does, one row that lacks all others.
        text: Captions, each one row.

    Raises:
        ValueError: Conditions of another kind than the model takes, or names that it does not
            know; says which are near.
    """
    kind = None if conditioning is None else conditioning.key
    for name, given in (("label", labels), ("attributes", attributes), ("text", text)):
        if given and kind != name:
            takes = "no condition" if kind is None else f"the condition {kind!r}"
            raise ValueError(f"{name} must not be given: the model takes {takes}")
    if conditioning is None or not (labels or attributes or text):
        return None
    if text:
        assert conditioning.tokenize is not None
        return conditioning.tokenize(text)
    if labels:
        return np.array([_index(conditioning, "label", word) for word in labels], np.int32)
    columns = [_index(conditioning, "attributes", word) for word in attributes]
    if conditioning.examples is not None:  # of what excludes each other something must hold
        having = conditioning.examples[conditioning.examples[:, columns].all(axis=1)]
        if len(having):
            return np.unique(having, axis=0).astype(np.int32)
    row = np.zeros((1, *conditioning.shape), np.int32)
    row[0, columns] = 1
    return row


def rows_of(conditioning: Conditioning | None, condition: Any) -> np.ndarray | None:
    """The conditions that one value asks for, [rows, *shape], or None where it is None.

    Args:
        conditioning: What the model is conditioned on, or None.
        condition: A class by name or number, or a list of them, each one row; an attribute, or a
            list of those that all are to have; a caption or a list of captions, each one row; or an
            array of conditions as the data has them, [rows, *shape] or one without the rows.

    Raises:
        ValueError: A condition for a model that takes none, one of another kind or shape, or names
            that the model does not know; says which are near.

    Examples:
        >>> from jaxgen.conditioning.labels import labels
        >>> rows_of(labels(3, ("cat", "dog", "cow")), ["cow", 0])
        array([2, 0], dtype=int32)
    """
    if condition is None:
        return None
    if conditioning is None:
        raise ValueError(f"condition must be None: the model takes none, got {condition!r}")
    key, words = conditioning.key, _words(condition)
    if words is None and key == "label":
        words = _words(np.asarray(condition).reshape(-1).tolist())
    if words == []:
        raise ValueError("condition must not be empty: None stands for all of the sweep")
    if words is not None:
        if key == "label":
            return asked(conditioning, labels=words)
        if key == "attributes":
            return asked(conditioning, attributes=words)
        if conditioning.tokenize is not None:
            return asked(conditioning, text=words)
    return _checked(conditioning, np.asarray(condition))


def _words(condition: Any) -> list[str] | None:
    """The names or numbers of a condition; None where it is something else, such as an array."""
    several = condition if isinstance(condition, list | tuple) else [condition]
    if all(isinstance(word, str | int | np.integer) for word in several):
        return [str(word) for word in several]
    return None


def _checked(conditioning: Conditioning, values: np.ndarray) -> np.ndarray:
    """Conditions as the data has them, [rows, *shape]."""
    rows = values[None] if values.shape == conditioning.shape else values
    is_class = conditioning.num_classes is not None
    kinds = "iu" if is_class else "buif"
    if rows.shape[1:] != conditioning.shape or not rows.size or rows.dtype.kind not in kinds:
        shape = ", ".join(map(str, ("rows", *conditioning.shape)))
        raise ValueError(
            f"condition must be of {conditioning.key!r}, numbers [{shape}], got "
            f"{values.dtype}{list(values.shape)}"
        )
    binary = conditioning.num_attributes is not None
    if binary and not np.isin(rows, (0, 1)).all():
        raise ValueError(f"condition must be of attributes 0 or 1, got {rows.tolist()}")
    return rows.astype(np.float32 if rows.dtype.kind == "f" and not binary else np.int32)


def _index(conditioning: Conditioning, name: str, word: str) -> int:
    """The place of a class or an attribute among the others."""
    known, count = conditioning.names, conditioning.width or 0
    if word in known:
        return known.index(word)
    if word.isdecimal() and int(word) < count:
        return int(word)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.4)
    hint = f"; near are {', '.join(map(repr, near))}" if near else ""
    names = f", or of {', '.join(known[:40])}" if known else ""
    raise ValueError(f"{name} must be of 0..{count - 1}{names}, got {word!r}{hint}")
