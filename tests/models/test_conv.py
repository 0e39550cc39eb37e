"""The convolution room: Flax's layers and gradients, in loops and over devices too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from jaxgen.models.conv import Conv, ConvTranspose, conv_general_dilated
from jaxgen.training.strategies import make_strategy

NUMBERS = ("NHWC", "HWIO", "NHWC")


def close(a, b, tolerance=3e-5):
    def compare(x, y):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        scale = max(float(jnp.max(jnp.abs(y))), 1e-6) if y.size else 1.0
        np.testing.assert_allclose(x / scale, y / scale, rtol=0, atol=tolerance)

    jax.tree.map(compare, a, b)


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s) / s[0] for k, s in zip(keys, shapes, strict=True)]


def value_and_gradients(layer):
    """f(params, x) -> a loss, and its gradients for both."""

    def loss(params, x):
        return jnp.mean(jnp.sin(layer.apply(params, x)))

    return jax.value_and_grad(loss, argnums=(0, 1))


def check(ours, flax, shape):
    """Same parameters, same value, same gradients."""
    (x,) = arrays(shape)
    params = flax.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), params)
    close(jax.jit(ours.apply)(params, x), jax.jit(flax.apply)(params, x))
    a, b = (jax.jit(value_and_gradients(layer))(params, x) for layer in (ours, flax))
    close(a, b)


CONVOLUTIONS = [
    # shape, features, kernel, options
    ((2, 7, 8, 3), 16, (3, 3), {}),  # few channels in: patches
    ((2, 8, 8, 32), 3, (3, 3), {}),  # few channels out
    ((2, 8, 8, 40), 40, (3, 3), {}),  # Winograd
    ((2, 9, 7, 40), 64, (3, 3), {"padding": "VALID"}),
    ((2, 8, 8, 20), 24, (1, 1), {}),  # a product of matrices
    ((2, 8, 8, 20), 24, (1, 1), {"strides": 2, "use_bias": False}),
    ((2, 8, 8, 20), 24, (3, 3), {"strides": 2, "padding": ((0, 1), (0, 1))}),
    ((2, 7, 9, 20), 24, (3, 3), {"strides": (2, 1), "padding": "SAME"}),
    ((2, 9, 9, 20), 24, (4, 2), {"padding": ((1, 2), (0, 3))}),
    ((2, 9, 9, 20), 24, (3, 3), {"kernel_dilation": 2}),
    ((2, 9, 9, 20), 24, (3, 3), {"kernel_dilation": (2, 3), "strides": 2}),
    ((2, 8, 8, 20), 24, (3, 3), {"padding": "CIRCULAR"}),
    ((2, 8, 8, 6), 6, (3, 3), {"feature_group_count": 6}),  # depthwise
    ((2, 8, 8, 6), 12, (3, 3), {"feature_group_count": 6}),
    ((2, 8, 8, 6), 12, (3, 3), {"feature_group_count": 2, "strides": 2}),
    ((2, 30, 40), 40, (2,), {"kernel_dilation": 4, "padding": "CAUSAL"}),
    ((2, 30, 40), 40, (3,), {}),
    ((1, 4, 5, 6, 3), 4, (2, 3, 2), {}),
    ((3, 2, 8, 8, 3), 4, (3, 3), {}),  # two batch dimensions
]


@pytest.mark.parametrize(("shape", "features", "kernel", "options"), CONVOLUTIONS)
def test_conv_is_flax_conv(shape, features, kernel, options):
    check(Conv(features, kernel, **options), nn.Conv(features, kernel, **options), shape)


@pytest.mark.parametrize(
    ("shape", "features", "kernel", "options"),
    [
        ((2, 5, 6, 12), 8, (4, 4), {"strides": (2, 2)}),  # sub-pixel
        ((2, 5, 6, 40), 3, (4, 4), {"strides": (2, 2)}),
        ((2, 5, 6, 12), 8, (4, 4), {"strides": (2, 2), "padding": "VALID"}),
        ((2, 5, 6, 12), 8, (3, 3), {"strides": (2, 3), "use_bias": False}),
        ((2, 5, 6, 12), 8, (3, 3), {}),
        ((2, 5, 6, 12), 8, (2, 2), {"strides": (3, 3)}),
        ((2, 5, 6, 12), 8, (3, 3), {"strides": (2, 2), "transpose_kernel": True}),
        ((2, 5, 6, 12), 8, (3, 3), {"strides": (2, 2), "padding": ((1, 2), (2, 2))}),
        ((2, 6, 6, 12), 8, (4, 4), {"strides": (2, 2), "padding": "CIRCULAR"}),
        ((2, 9, 12), 8, (5,), {"strides": (2,)}),
    ],
)
def test_conv_transpose_is_flax_conv_transpose(shape, features, kernel, options):
    ours, flax = (c(features, kernel, **options) for c in (ConvTranspose, nn.ConvTranspose))
    check(ours, flax, shape)


SHAPES = [((4, 8, 8, 40), (3, 3, 40, 40)), ((4, 8, 8, 3), (3, 3, 3, 12))]


def ours(x, w, strides=(1, 1)):
    return conv_general_dilated(x, w, strides, "SAME", dimension_numbers=NUMBERS)


def theirs(x, w, strides=(1, 1)):
    return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=NUMBERS)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("x_shape", "w_shape"), SHAPES)
def test_second_derivatives(x_shape, w_shape, strides):
    """The gradient of a gradient penalty, as WGAN-GP takes it."""
    x, w = arrays(x_shape, w_shape)

    def penalty(conv, x, w):
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, w, strides))))(x)
        return jnp.mean(jnp.square(jnp.sqrt(jnp.sum(slope**2, axis=(1, 2, 3))) - 1))

    a, b = (
        jax.jit(jax.grad(lambda x, w, conv=conv: penalty(conv, x, w), argnums=(0, 1)))(x, w)
        for conv in (ours, theirs)
    )
    close(a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_inside_a_loop(dtype):
    """Training steps in a `fori_loop` of traced length equal the same steps outside."""
    x, w = (a.astype(dtype) for a in arrays(*SHAPES[0]))

    def step(w):
        return w - 0.5 * jax.grad(lambda w: jnp.sum(jnp.sin(ours(x, w)).astype(jnp.float32)))(w)

    looped = jax.jit(lambda w, n: lax.fori_loop(0, n, lambda _, w: step(w), w))(w, 3)
    one = jax.jit(step)
    assert looped.dtype == dtype
    close(looped.astype(jnp.float32), one(one(one(w))).astype(jnp.float32), 1e-5)


def test_bfloat16_is_as_near_as_the_library():
    x, w = arrays(*SHAPES[0])
    exact = theirs(x, w)
    rounded = ours(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    close(rounded.astype(jnp.float32), exact, 2e-2)


@pytest.mark.parametrize("fsdp", [1, 8])
def test_over_eight_devices(fsdp):
    """Batch and kernel sharded under jit, and pmap: the gradients of one device."""
    x, w = arrays((16, 8, 8, 40), (3, 3, 40, 40))
    gradient = jax.grad(lambda x, w: jnp.mean(jnp.sin(ours(x, w))), argnums=(0, 1))
    expected = jax.jit(gradient)(x, w)
    strategy = make_strategy("jit", fsdp=fsdp)
    placed = strategy.put_global({"x": np.asarray(x)})["x"]
    kernel = jax.device_put(w, strategy.shardings(w))
    assert (kernel.sharding.spec == PartitionSpec()) == (fsdp == 1)
    close(jax.jit(gradient)(placed, kernel), expected)
    split = jax.pmap(gradient, in_axes=(0, None))(x.reshape(8, 2, *x.shape[1:]), w)
    close(jnp.mean(split[1], axis=0), expected[1])


def test_under_vmap():
    x, w = arrays((3, *SHAPES[0][0]), SHAPES[0][1])
    close(jax.vmap(ours, (0, None))(x, w), jax.vmap(theirs, (0, None))(x, w))


def test_masked_taps_leak_nothing():
    """A causal layer's output does not change, not by one bit, with what its mask hides."""
    mask = jnp.ones((3, 3, 40, 40)).at[2].set(0).at[1, 1:].set(0)
    layer = Conv(40, (3, 3), mask=mask)
    (x,) = arrays((1, 8, 8, 40))
    params = layer.init(jax.random.key(0), x)
    changed = x.at[0, 4:].add(100.0)
    a, b = jax.jit(layer.apply)(params, x), jax.jit(layer.apply)(params, changed)
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert not np.array_equal(a[:, 5], b[:, 5])


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Conv(0, (3, 3)), (1, 8, 8, 3), "features must be positive, got 0"),
        (Conv(4, (0, 3)), (1, 8, 8, 3), "kernel_size must be positive"),
        (Conv(4, (3, 3)), (8, 3), "inputs for a kernel_size"),
        (Conv(4, (3, 3), feature_group_count=2), (1, 8, 8, 3), "feature_group_count must divide"),
        (ConvTranspose(4, (3, 3), padding="ROUND"), (1, 8, 8, 3), "padding must be"),
        (ConvTranspose(4, (3, 3), mask=jnp.ones((3, 3))), (1, 8, 8, 3), "mask must have"),
    ],
)
def test_bad_layers(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    ("w_shape", "options", "message"),
    [
        ((3, 3, 2, 4), {}, "takes 2 channels for each of 1 groups, but lhs"),
        ((3, 3, 1, 4), {"feature_group_count": 3}, "feature_group_count must divide"),
        ((3, 3, 3, 4), {"window_strides": (1,)}, "window_strides must be 2 positive"),
        ((3, 3, 3, 4), {"padding": [(1, 1)]}, "padding must be a name or 2"),
    ],
)
def test_bad_calls(w_shape, options, message):
    call = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NUMBERS, **options}
    with pytest.raises(ValueError, match=message):
        conv_general_dilated(jnp.zeros((1, 8, 8, 3)), jnp.zeros(w_shape), **call)
