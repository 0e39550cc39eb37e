"""Conditions by name, as a command line asks for them."""

import difflib
from collections.abc import Sequence

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
