"""Held-out metrics: means, the standard error, and what a likelihood must name."""

from types import SimpleNamespace

import numpy as np
import pytest
import toys

from jaxgen.core import Aux, Bound, Family, State
from jaxgen.data.sources import digits
from jaxgen.training.evaluation import held_out_likelihood, make_evaluate
from jaxgen.training.strategies import make_strategy

STATE = State(np.int32(0), {}, {}, {}, {})


def brightness(params, model_state, batch, key, *, train):
    return batch["image"].mean(axis=(1, 2, 3)), Aux({}, model_state)


def experiment(bound, num_evaluated=None):
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))
    family = Family(None, (), brightness, None, bound=bound)
    return made._replace(family=family, num_evaluated=num_evaluated)


@pytest.mark.parametrize("num_evaluated", [None, 100])
def test_likelihood(num_evaluated):
    """The mean, and its error from the spread, of so many examples, padding left out."""
    made = experiment(Bound("exact", 64, True), num_evaluated)
    metrics = make_evaluate(made, make_strategy("jit"), 0)(STATE)
    image = digits("test").arrays["image"][:num_evaluated]
    expected = (image / 127.5 - 1).mean(axis=(1, 2, 3))
    found = held_out_likelihood(made, metrics)
    assert found.num_examples == len(expected)
    np.testing.assert_allclose(found.nats, expected.mean(), rtol=1e-5)
    error = expected.std(ddof=1) / len(expected) ** 0.5
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-3)
    assert found.data == digits("test").protocol


def test_of_one_example_there_is_no_error():
    made = experiment(Bound("exact", 64, True), 1)
    metrics = make_evaluate(made, make_strategy("jit"), 0)(STATE)
    assert held_out_likelihood(made, metrics).standard_error is None


def test_no_likelihood():
    made = experiment(None)
    metrics = make_evaluate(made, make_strategy("jit"), 0)(STATE)
    assert set(metrics) == {"loss"}
    assert held_out_likelihood(made, metrics) is None
