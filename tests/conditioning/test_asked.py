"""Conditions by name: which rows they are, and what is said of unknown ones."""

import numpy as np
import pytest

from jaxgen.conditioning.asked import asked
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
