"""The spline flow of residual networks: invertible, its dropout, its parameters, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.models.bijectors.residual import FirstHalf, ResidualMLP, residual_spline_flow
from jaxgen.models.bijectors.splines import Spline

KEY = jax.random.key(0)


def spread(variables, size=0.1):
    """Parameters moved away from where they start."""
    keys = iter(jax.random.split(KEY, 100))
    moved = jax.tree.map(
        lambda p: p + size * jax.random.normal(next(keys), p.shape), variables["params"]
    )
    return {**variables, "params": moved}


@pytest.fixture(scope="module")
def flow():
    """(flow of five variables with dropout, its variables, data)"""
    flow = residual_spline_flow(2, 16, 2, dropout=0.5)
    x = jax.random.normal(KEY, (16, 5))
    return flow, spread(jax.jit(flow.init)(KEY, x)), x


def test_there_and_back(flow):
    flow, variables, x = flow

    @jax.jit
    def run(variables, x):
        y, log_det = flow.apply(variables, x)
        back, log_back = flow.apply(variables, y, method="inverse")
        jacobian = jax.vmap(jax.jacrev(lambda row: flow.apply(variables, row[None])[0][0]))(x)
        return back, log_det, log_back, jnp.linalg.slogdet(jacobian)[1]

    back, log_det, log_back, exact = run(variables, x)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(log_back, -log_det, atol=1e-4)
    np.testing.assert_allclose(log_det, exact, atol=1e-4)


def test_dropout_where_there_is_an_rng(flow):
    """One draw a key, and another in each step."""
    flow, variables, x = flow
    run = jax.jit(lambda key: flow.apply(variables, x, rngs={"dropout": key})[0])
    dropped = run(jax.random.key(1))
    np.testing.assert_array_equal(dropped, run(jax.random.key(1)))
    assert np.any(np.asarray(dropped) != run(jax.random.key(2)))
    assert np.any(np.asarray(dropped) != jax.jit(flow.apply)(variables, x)[0])


def test_the_network():
    """Nearly linear at the start, 0 at the output; told of its condition; counted."""
    x, told = jnp.ones((2, 3)), Condition(jnp.eye(2))
    network = ResidualMLP(4, width=8, num_blocks=2)
    variables = network.init(KEY, x)
    assert sum(p.size for p in jax.tree.leaves(variables)) == 4 * 8 + 4 * 9 * 8 + 9 * 4
    np.testing.assert_array_equal(network.apply(variables, x), np.zeros((2, 4)))
    for i in range(2):
        assert np.abs(variables["params"][f"dense_{i}_1"]["kernel"]).max() < 1e-3
    variables = spread(network.init(KEY, x, told))
    first, second = network.apply(variables, x, told)
    assert np.any(first != second)


def test_the_first_half():
    """Odd widths have the smaller half first; the rest is untouched."""
    x = jax.random.normal(KEY, (4, 5))
    module = FirstHalf(Spline(4))
    variables = spread(module.init(KEY, x), 1.0)
    y, log_det = module.apply(variables, x)
    assert np.all(y[:, :2] != x[:, :2])
    np.testing.assert_array_equal(y[:, 2:], x[:, 2:])
    back, log_back = module.apply(variables, y, reverse=True)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(log_back, -log_det, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"num_blocks": -1}, "num_blocks at least 0, got 256 and -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        residual_spline_flow(**options)
