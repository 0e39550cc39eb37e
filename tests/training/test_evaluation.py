"""Held-out metrics: means, the standard error, and what a likelihood must name."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxgen.conditioning.labels import labels
from jaxgen.core import Bound, Family, State, Variables
from jaxgen.data.sources import digits
from jaxgen.distributions.elementwise import NO_CLASS
from jaxgen.training.averages import constant
from jaxgen.training.evaluation import (
    held_out_likelihood,
    make_evaluate,
    make_picture,
    make_sample,
    sample_program,
    variables_of,
)
from jaxgen.training.experiment import VECTORS
from jaxgen.training.strategies import make_strategy

VARIABLES = Variables({})


def brightness(variables, batch, key):
    return batch["image"].mean(axis=(1, 2, 3)), {}


def experiment(bound, num_evaluated=None):
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))
    family = Family(None, {}, (), brightness, bound=bound)
    return made._replace(family=family, num_evaluated=num_evaluated)


@pytest.mark.parametrize("num_evaluated", [None, 100])
def test_likelihood(num_evaluated):
    """The mean, and its error from the spread, of so many examples, padding left out."""
    made = experiment(Bound("exact", 64, True), num_evaluated)
    metrics = make_evaluate(made, make_strategy("jit"), 0)(VARIABLES)
    image = digits("test").arrays["image"][:num_evaluated]
    expected = (image / 127.5 - 1).mean(axis=(1, 2, 3))
    found = held_out_likelihood(made, metrics)
    assert found.num_examples == len(expected)
    np.testing.assert_allclose(found.nats, expected.mean(), rtol=1e-5)
    error = expected.std(ddof=1) / len(expected) ** 0.5
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-3)
    assert found.data == digits("test").protocol


def test_the_error_where_the_mean_is_large():
    """The spread is measured about the mean: squares of 10,000 would leave nothing of it."""
    made = experiment(Bound("exact", 64, True))

    def far(variables, batch, key):
        return brightness(variables, batch, key)[0] + 1e4, {}

    made = made._replace(family=made.family._replace(evaluate=far))
    metrics = make_evaluate(made, make_strategy("jit"), 0)(VARIABLES)
    values = (digits("test").arrays["image"] / 127.5 - 1).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["standard_error"], values.std(ddof=1) / 297**0.5, rtol=1e-2)


def test_what_is_not_finite_stays_so():
    """No NaN becomes a standard error of 0."""
    made = experiment(Bound("exact", 64, True))
    nothing = lambda variables, batch, key: (batch["image"].sum((1, 2, 3)) * np.nan, {})  # noqa: E731
    made = made._replace(family=made.family._replace(evaluate=nothing))
    metrics = make_evaluate(made, make_strategy("jit"), 0)(VARIABLES)
    assert np.isnan(metrics["loss"])
    assert np.isnan(metrics["standard_error"])


def test_of_one_example_there_is_no_error():
    made = experiment(Bound("exact", 64, True), 1)
    metrics = make_evaluate(made, make_strategy("jit"), 0)(VARIABLES)
    assert held_out_likelihood(made, metrics).standard_error is None


def test_no_likelihood():
    made = experiment(None)
    metrics = make_evaluate(made, make_strategy("jit"), 0)(VARIABLES)
    assert set(metrics) == {"loss"}
    assert held_out_likelihood(made, metrics) is None


def test_more_samples_than_a_machine_holds():
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))
    sample = make_sample(made, make_strategy("jit"))
    with pytest.raises(ValueError, match="the number of samples, 1000000000000000, would take"):
        sample(VARIABLES, jax.random.key(0), 10**15)


def test_samples_are_spread_over_the_devices():
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))
    strategy = make_strategy("jit")
    variables = made.family.init(jax.random.key(0), {"image": jax.numpy.zeros((1, 8, 8, 1))})
    samples, _ = sample_program(made, strategy)(variables, jax.random.key(0), 16, None)
    assert samples.sharding.is_equivalent_to(strategy.batched, samples.ndim)


def test_conditions_in_turn_or_as_asked_for():
    """Each for an equal number of consecutive samples, also where batches end elsewhere."""
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))

    def shown(variables, key, num, *, condition=None):
        return condition.astype(jnp.float32)[:, None]

    family = made.family._replace(sample=shown, conditioning=labels(3))
    made, key = made._replace(family=family, medium=VECTORS), jax.random.key(0)
    sample = make_sample(made, make_strategy("jit"), batch_size=8)
    np.testing.assert_array_equal(sample(VARIABLES, key, 18)[:, 0], np.repeat([0, 1, 2], 6))
    rows = np.array([2, 0], np.int32)
    np.testing.assert_array_equal(sample(VARIABLES, key, 10, rows)[:, 0], np.repeat([2, 0], 5))


def test_samples_that_are_not_finite_are_no_bytes():
    """How many of them; those that only fill the last batch do not count."""
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))

    def odd(variables, key, num, *, condition=None):
        bad = jnp.where(jnp.arange(num) % 8 == 7, jnp.nan, 0.5)
        return jnp.tile(bad[:, None, None, None], (1, 8, 8, 1))

    made = made._replace(family=made.family._replace(sample=odd))
    sample = make_sample(made, make_strategy("jit"), batch_size=16)
    assert sample(VARIABLES, jax.random.key(0), 7).shape == (7, 8, 8, 1)
    with pytest.raises(FloatingPointError, match="2 of 20 samples are not finite"):
        sample(VARIABLES, jax.random.key(0), 20)
    classes = lambda *args, condition=None: jnp.full((16, 5), NO_CLASS)  # noqa: E731
    made = made._replace(family=made.family._replace(sample=classes), medium=VECTORS)
    with pytest.raises(FloatingPointError, match="16 of 16 samples are not finite"):
        make_sample(made, make_strategy("jit"))(VARIABLES, jax.random.key(0), 16)


def test_pictures_that_are_not_finite_are_no_bytes():
    made = toys.experiment(SimpleNamespace(batch_size=16, seed=0))

    def odd(variables, batch, key, rows, columns):
        return batch["image"].at[0, 0, 0].set(jnp.inf)

    draw = make_picture(made._replace(pictures={"odd": odd}), "odd")
    with pytest.raises(FloatingPointError, match="1 of 6 images of the picture 'odd' are not"):
        draw(VARIABLES, jax.random.key(0), 2, 3)


def test_variables_of_an_average():
    """The averaged networks in the place of the trained ones, by name, the first by default."""
    kept = {"fast": {"a": 5, "b": 6}, "slow": {"a": 4}}
    state = State(np.int32(0), {"a": 1, "b": 2}, {"s": 3}, {}, kept)
    both = {"slow": constant(0.9, of=("a",)), "fast": constant(0.5)}
    assert variables_of(state, both) == Variables({"a": 4, "b": 2}, {"s": 3}, {})
    last = variables_of(state, both, {"f": 7}, "fast")
    assert last == Variables({"a": 5, "b": 6}, {"s": 3}, {"f": 7})
    assert variables_of(state, {}) == Variables({"a": 1, "b": 2}, {"s": 3}, {})
    raw = variables_of(state, both, {"f": 7}, "raw")
    assert raw == Variables({"a": 1, "b": 2}, {"s": 3}, {"f": 7})
    with pytest.raises(
        ValueError, match=r"average must be one of \['fast', 'slow', 'raw'\], got 'ema'"
    ):
        variables_of(state, both, name="ema")
