"""Causal convolutions: against a sum written out, causal to the bit, their caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.blocks.causal_conv import CausalConv1D

KEY = jax.random.key(0)
CASES = [(1, 1), (2, 1), (2, 4), (3, 2), (4, 3)]  # kernel_size, dilation


def make(kernel_size, dilation, time=20, **options):
    layer = CausalConv1D(5, kernel_size, dilation, **options)
    x = jax.random.normal(KEY, (3, time, 4))
    variables = layer.init(jax.random.key(1), x)
    return layer, jax.tree.map(lambda p: p + 0.1, variables), x


@pytest.mark.parametrize(("kernel_size", "dilation"), CASES)
def test_1d_is_the_sum(kernel_size, dilation):
    layer, variables, x = make(kernel_size, dilation)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    expected = np.tile(bias, (3, 20, 1))
    for t in range(20):
        for i in range(kernel_size):
            before = t - (kernel_size - 1 - i) * dilation
            if before >= 0:
                expected[:, t] += np.asarray(x)[:, before] @ kernel[i]
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "dilation"), CASES)
def test_1d_cache_is_the_whole(kernel_size, dilation):
    """Far beyond the buffer's length, in one compiled loop."""
    layer, variables, x = make(kernel_size, dilation)

    def turn(cache, now):
        y, cache = layer.apply(variables, cache, *now, method="step")
        return cache, y

    cache = layer.init_cache(3, 4)
    assert cache.shape == ((kernel_size - 1) * dilation + 1, 3, 4)
    _, y = jax.jit(lambda c: jax.lax.scan(turn, c, (x.swapaxes(0, 1), jnp.arange(20))))(cache)
    np.testing.assert_allclose(y.swapaxes(0, 1), layer.apply(variables, x), atol=1e-5)


def test_1d_cache_is_updated_in_place():
    """A step costs its position's work: no copy of the buffer is in the compiled loop's body."""
    layer = CausalConv1D(4, 2, dilation=999)
    variables = layer.init(KEY, jnp.zeros((1, 4, 4)))

    def turn(carry, t):
        cache, x = carry
        y, cache = layer.apply(variables, cache, x, t, method="step")
        return (cache, y), y

    def run(x):
        return jax.lax.scan(turn, (layer.init_cache(1, 4), x), jnp.arange(50))[1]

    program = jax.jit(run).lower(jnp.ones((1, 4))).compile().as_text()
    computations = program.split("\n\n")
    bodies = [c for c in computations if "dynamic-update-slice" in c and "ENTRY" not in c]
    assert bodies
    assert not any("f32[1000,1,4]{2,1,0} copy(" in body for body in bodies)


def test_1d_is_causal_to_the_bit():
    """In shapes for which the library would use Winograd's form, which is not."""
    layer = CausalConv1D(32, 3)
    x = jax.random.normal(KEY, (32, 4096, 32))
    variables = layer.init(KEY, x[:1, :8])
    run = jax.jit(lambda x: layer.apply(variables, x)[:, :101])
    np.testing.assert_array_equal(run(x), run(x.at[:, 101:].set(1e6)))


def test_1d_options():
    layer, variables, x = make(2, 3, use_bias=False, dtype=jnp.bfloat16)
    assert list(variables["params"]) == ["kernel"]
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert layer.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"features": 1, "kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"features": 1, "dilation": -1}, "dilation must be at least 1, got -1"),
    ],
)
def test_1d_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CausalConv1D(**options)


def test_1d_bad_cache():
    layer, variables, x = make(2, 4)
    with pytest.raises(ValueError, match="cache must hold 5 positions, got 4"):
        layer.apply(variables, jnp.zeros((4, 3, 4)), x[:, 0], 0, method="step")
