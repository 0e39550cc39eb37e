"""Conditions by name: which rows they are, and what is said of unknown ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.asked import asked, rows_of
from jaxgen.conditioning.attributes import attributes, embeddings
from jaxgen.conditioning.labels import labels

ANIMALS = labels(3, ("cat", "dog", "2"))
LOOKS = attributes(3, ("red hair", "glasses", "hat"))


def test_classes_by_name_and_number():
    np.testing.assert_array_equal(asked(ANIMALS, labels=("dog", "0", "2", "dog")), [1, 0, 2, 1])
    np.testing.assert_array_equal(asked(labels(12), labels=("11",)), [11])


def test_attributes_are_one_row():
    np.testing.assert_array_equal(asked(LOOKS, attributes=("glasses", "0")), [[1, 1, 0]])


def test_the_other_attributes_are_those_of_examples():
    """Every row that occurs with what is asked for; where there is none, nothing else holds."""
    rows = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]])
    known = LOOKS._replace(examples=rows)
    np.testing.assert_array_equal(asked(known, attributes=("glasses",)), rows[1:3])
    np.testing.assert_array_equal(asked(known, attributes=("hat", "red hair")), rows[:1])
    np.testing.assert_array_equal(asked(known, attributes=("red hair", "glasses")), [[1, 1, 0]])


def test_nothing_asked_for():
    assert asked(ANIMALS) is None
    assert asked(None) is None


@pytest.mark.parametrize(
    ("conditioning", "given", "message"),
    [
        (None, {"labels": ("0",)}, "label must not be given: the model takes no condition"),
        (LOOKS, {"labels": ("0",)}, "the model takes the condition 'attributes'"),
        (embeddings(2), {"attributes": ("a",)}, "the model takes the condition 'embedding'"),
        (ANIMALS, {"labels": ("dgo",)}, r"of 0..2, or of cat, dog, 2, got 'dgo'; near are 'dog'"),
        (labels(3), {"labels": ("3",)}, r"label must be of 0..2, got '3'"),
        (labels(3), {"labels": ("-1",)}, r"label must be of 0..2, got '-1'"),
        (LOOKS, {"attributes": ("red_hair",)}, "got 'red_hair'; near are 'red hair'"),
    ],
)
def test_bad_input(conditioning, given, message):
    with pytest.raises(ValueError, match=message):
        asked(conditioning, **given)


def test_names_of_another_number():
    with pytest.raises(ValueError, match="names must be 3 of 'label', got 2"):
        labels(3, ("a", "b"))
    with pytest.raises(ValueError, match="names must be 1 of 'attributes', got 2"):
        attributes(1, ("a", "b"))


SAID = LOOKS._replace(
    key="text", tokenize=lambda captions: np.array([[len(c), 0, 1] for c in captions])
)


@pytest.mark.parametrize(
    ("conditioning", "condition", "rows"),
    [
        (ANIMALS, "dog", [1]),
        (ANIMALS, 0, [0]),
        (ANIMALS, ["2", 0, "dog"], [2, 0, 1]),
        (ANIMALS, np.array([2, 1]), [2, 1]),
        (ANIMALS, jnp.array(1), [1]),
        (LOOKS, "glasses", [[0, 1, 0]]),
        (LOOKS, ["glasses", 2], [[0, 1, 1]]),
        (LOOKS, np.array([True, False, True]), [[1, 0, 1]]),
        (LOOKS, np.array([[1.0, 0, 1], [0, 0, 0]]), [[1, 0, 1], [0, 0, 0]]),
        (SAID, "a red three", [[11, 0, 1]]),
        (SAID, ["a", "bc"], [[1, 0, 1], [2, 0, 1]]),
        (embeddings(2), [0.5, 1.0], [[0.5, 1.0]]),
        (embeddings(2), np.ones((3, 2)), np.ones((3, 2))),
        (ANIMALS, None, None),
        (None, None, None),
    ],
)
def test_what_one_value_asks_for(conditioning, condition, rows):
    asked_for = rows_of(conditioning, condition)
    if rows is None:
        assert asked_for is None
    else:
        np.testing.assert_array_equal(asked_for, rows)
        assert (asked_for.dtype.kind == "f") == (conditioning.key == "embedding")


@pytest.mark.parametrize(
    ("conditioning", "condition", "message"),
    [
        (None, "dog", "condition must be None: the model takes none, got 'dog'"),
        (ANIMALS, [], "condition must not be empty"),
        (ANIMALS, np.array([0, 3]), r"label must be of 0..2, or of cat, dog, 2, got '3'"),
        (ANIMALS, np.array([0.5]), r"of 'label', numbers \[rows\], got float64\[1\]"),
        (LOOKS, np.array([[1, 2, 0]]), "of attributes 0 or 1"),
        (LOOKS, np.array([1, 0]), r"'attributes', numbers \[rows, 3\], got int64\[2\]"),
        (embeddings(2), "dog", r"'embedding', numbers \[rows, 2\], got <U3\[\]"),
    ],
)
def test_bad_values(conditioning, condition, message):
    with pytest.raises(ValueError, match=message):
        rows_of(conditioning, condition)
