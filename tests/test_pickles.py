"""Arrays from pickles, built of what these say, and nothing run."""

import io
import pickle

import numpy as np
import pytest

from jaxgen import pickles


def loaded(value, protocol=3):
    return pickles.load(io.BytesIO(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(order, protocol):
    array = np.asarray(np.arange(6).reshape(2, 3), np.float32, order=order)
    tree = loaded({"a": {"b": array}, "c": [array[0], 7]}, protocol)
    np.testing.assert_array_equal(pickles.array_of(tree["a"]["b"], "f4"), array, strict=True)
    np.testing.assert_array_equal(pickles.array_of(tree["c"][0], "f4"), array[0], strict=True)
    assert tree["c"][1] == 7


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "no array where one should be, but list"),
        (np.dtype("f4"), "no array where one should be"),
        (np.zeros(2), "an array of f8, not of f4"),
        (np.zeros(2, ">f4"), "f4 in big-endian order"),
        (np.array([None]), "an array of O8, not of f4"),
    ],
)
def test_what_is_no_such_array(value, message):
    with pytest.raises(ValueError, match=message):
        pickles.array_of(loaded(value), "f4")


def test_a_shape_that_the_bytes_do_not_fill():
    array = loaded(np.zeros(3, np.float32))
    array.state = (array.state[0], (4,), *array.state[2:])
    with pytest.raises(ValueError, match="reshape"):
        pickles.array_of(array, "f4")


def test_nothing_else_is_read():
    with pytest.raises(pickle.UnpicklingError, match=r"it refers to builtins\.print"):
        loaded(print)
    with pytest.raises(pickle.UnpicklingError, match=r"it refers to numpy.*\._frombuffer"):
        pickles.load(io.BytesIO(pickle.dumps(np.zeros(2), protocol=5)))
