"""Convolutions in one with a doubling or a halving, beside Flax's convolution and either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.models.conv.layers import Conv
from jaxgen.models.conv.resampled import UpsampledConv, conv_of_upsampled, downsampled_conv


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


CASES = [
    ((2, 6, 4, 3), (3, 3), {}),
    ((2, 2, 2, 3), (3, 3), {}),  # the kernel is larger
    ((2, 4, 6, 20), (3, 3), {"padding": "VALID"}),
    ((2, 4, 6, 4), (5, 2), {"padding": ((3, 1), (0, 3))}),
    ((2, 4, 4, 4), (1, 1), {"use_bias": False}),
    ((2, 4, 4, 4), (3, 3), {"feature_group_count": 2}),
    ((3, 2, 6, 4), (3,), {}),  # sequences, with one more axis of examples
    ((2, 2, 2, 2, 4), (3, 3, 3), {}),
]


def check(ours, flax, theirs, shape):
    """Values, both gradients, and a directional derivative of the gradient."""
    x = normal(0, shape)
    params = ours.init(jax.random.key(0), x)
    expected = jax.eval_shape(flax.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)

    def outcome(apply):
        def loss(params, x):
            y = apply(params, x)
            return jnp.sum(jnp.sin(y)), y

        grad = jax.grad(loss, (0, 1), has_aux=True)
        twice = jax.jvp(lambda x: grad(params, x)[0], (x,), (jnp.cos(x),))[1]
        return grad(params, x), twice

    got, want = jax.jit(lambda: outcome(ours.apply))(), jax.jit(lambda: outcome(theirs))()
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("shape", "kernel", "options"), CASES)
def test_a_convolution_of_the_doubled(shape, kernel, options):
    """Also of an odd size, and of one element."""
    flax = nn.Conv(6, kernel, **options)
    axes = range(len(shape) - 1 - len(kernel), len(shape) - 1)

    def theirs(params, x):
        for axis in axes:
            x = jnp.repeat(x, 2, axis)
        return flax.apply(params, x)

    for less in (0, 1):
        smaller = tuple(n - less if axis in axes else n for axis, n in enumerate(shape))
        check(UpsampledConv(6, kernel, **options), flax, theirs, smaller)


@pytest.mark.parametrize(("shape", "kernel", "options"), CASES)
def test_a_convolution_halved(shape, kernel, options):
    """The means of its pairs."""
    flax = nn.Conv(6, kernel, **options)
    axes = range(len(shape) - 1 - len(kernel), len(shape) - 1)

    def theirs(params, x):
        y = flax.apply(params, x)
        for axis in axes:
            y = y.reshape(*y.shape[:axis], -1, 2, *y.shape[axis + 1 :]).mean(axis + 1)
        return y

    ours = Conv(6, kernel, conv_general_dilated=downsampled_conv, **options)
    check(ours, flax, theirs, shape)


def test_the_image_is_never_doubled():
    """No array of the doubled image's many channels is computed."""
    layer = UpsampledConv(2, (3, 3))
    x = normal(0, (2, 4, 4, 32))
    params = layer.init(jax.random.key(0), x)
    assert "[2,8,8,32]" not in str(jax.make_jaxpr(layer.apply)(params, x)).replace(" ", "")


def test_in_half_precision():
    """The kernel's sums are rounded once: within a few parts in a thousand."""
    layer = UpsampledConv(16, (3, 3), dtype=jnp.bfloat16)
    x = normal(0, (4, 8, 8, 32))
    params = layer.init(jax.random.key(0), x)
    got, exact = layer.apply(params, x), layer.clone(dtype=jnp.float32).apply(params, x)
    assert got.dtype == jnp.bfloat16
    error = jnp.sqrt(jnp.mean(jnp.square(got - exact)) / jnp.mean(jnp.square(exact)))
    assert error < 5e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": 2}, "strides must be 1 where images are doubled, got 2"),
        ({"strides": (1, 2)}, r"strides must be 1 where images are doubled, got \(1, 2\)"),
        ({"input_dilation": 2}, "input_dilation must be 1"),
        ({"kernel_dilation": (2, 2)}, "kernel_dilation must be 1"),
        ({"padding": "CIRCULAR"}, "padding must be of zeros around doubled images, got CIRCULAR"),
    ],
)
def test_what_it_refuses(options, message):
    """Before anything is computed."""
    with pytest.raises(ValueError, match=message):
        UpsampledConv(4, (3, 3), **options)


@pytest.mark.parametrize("function", [conv_of_upsampled, downsampled_conv])
@pytest.mark.parametrize("name", ["window_strides", "lhs_dilation", "rhs_dilation"])
def test_the_functions_refuse_steps(function, name):
    """By the library's names."""
    arguments = {"window_strides": (1, 1), "padding": "SAME", name: (1, 2)}
    with pytest.raises(ValueError, match=rf"{name} must be 1 .* got \(1, 2\)"):
        function(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), **arguments)


@pytest.mark.parametrize(("size", "padding"), [(5, "SAME"), (4, "VALID"), (2, "VALID")])
def test_only_even_images_are_halved(size, padding):
    """Of what the convolution gives."""
    x, w = jnp.ones((1, size, 4, 1)), jnp.ones((3 if size != 4 else 2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"lhs must give an even shape, to be halved, got \("):
        downsampled_conv(x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
