"""Operations counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments.benchmarks.flops import count_flops
from jaxgen.models.conv.layers import Conv, ConvTranspose


def test_products():
    """2 m n k; a scan counts each turn, a loop of unknown length one."""
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert count_flops(jnp.dot, a, b) == 2 * 3 * 4 * 5
    assert count_flops(lambda a, b: jnp.einsum("ij,jk->ki", a, b), a, b) == 2 * 3 * 4 * 5
    square = jnp.ones((4, 4))
    scan = lambda x: lax.scan(lambda c, _: (c @ x, None), x, None, length=7)[0]  # noqa: E731
    assert count_flops(scan, square) == 7 * 2 * 4**3
    loop = lambda x, n: lax.fori_loop(0, n, lambda _, c: c @ x, x)  # noqa: E731
    assert count_flops(loop, square, 9) == 2 * 4**3
    batched = jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))
    assert count_flops(jnp.matmul, *batched) == 6 * 2 * 3 * 4 * 5


def test_the_costlier_branch():
    """A turn that is not always taken counts as taken."""
    x = jnp.ones((4, 4))
    cond = lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)  # noqa: E731
    assert count_flops(cond, x) == 2 * 4**3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layer", [Conv, ConvTranspose])
def test_convolutions(layer, stride):
    """Forward, and each gradient as much again, in the form that accelerators take."""
    net = layer(5, (4, 4), strides=(stride, stride), use_bias=False)
    x = jnp.ones((2, 8, 8, 3))
    params = net.init(jax.random.key(0), x)
    small = 8 // stride if layer is Conv else 8  # positions of the smaller side
    forward = 2 * 2 * small**2 * 16 * 3 * 5
    assert count_flops(net.apply, params, x) == forward
    both = jax.grad(lambda p, x: net.apply(p, x).sum(), (0, 1))
    assert count_flops(both, params, x) == 3 * forward


def test_grouped_convolution():
    """Each group has its own channels only."""
    net = Conv(6, (3, 3), feature_group_count=3, use_bias=False)
    x = jnp.ones((1, 8, 8, 6))
    params = net.init(jax.random.key(0), x)
    assert count_flops(net.apply, params, x) == 2 * 64 * 9 * 2 * 6
