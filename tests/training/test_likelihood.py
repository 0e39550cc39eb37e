import math

import pytest

from jaxgen.core import Bound
from jaxgen.training.likelihood import likelihood

FOUND = {
    "nats": 32 * math.log(2),
    "standard_error": 0.5,
    "num_examples": 7,
    "data": "set, split test",
}


def test_bits_are_of_8_bit_data_alone():
    found = likelihood(Bound("exact", 16, True, "uniform"), **FOUND)
    assert found.bits_per_dim == pytest.approx(2)
    assert (found.bound, found.dequantization, found.given) == ("exact", "uniform", None)
    assert (found.num_examples, found.data, found.standard_error) == (7, "set, split test", 0.5)
    other = likelihood(Bound("IWAE-9", 16, False, given="label"), **FOUND)
    assert other.bits_per_dim is None
    assert (other.bound, other.dequantization, other.given) == ("IWAE-9", "none", "label")


def test_no_examples():
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        likelihood(Bound("exact", 16, True), **{**FOUND, "num_examples": 0})
