"""The convolutions: Flax's layers and gradients, in loops and over devices too.

The rules reserve some forms for more work than a quick test has, so here they run from the first
multiplication on; `test_rules` alone sees the rules as they are.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from jaxgen.models.conv import forms
from jaxgen.models.conv.layers import Conv, ConvTranspose, conv_general_dilated
from jaxgen.training.strategies import make_strategy

NUMBERS = ("NHWC", "HWIO", "NHWC")
WORK = forms._MUCH_WORK


@pytest.fixture(autouse=True)
def work_at_once(monkeypatch):
    monkeypatch.setattr(forms, "_MUCH_WORK", 0)


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
    ((2, 2, 2, 20), 24, (3, 3), {}),  # a kernel larger than its input
    ((2, 8, 2, 20), 24, (5, 4), {"strides": 2, "padding": ((2, 2), (1, 2))}),
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


def test_in_shard_map():
    x, w = arrays((16, 8, 8, 40), (3, 3, 40, 40))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(ours(x, w))))
    over, whole = PartitionSpec("data"), PartitionSpec()
    split = jax.shard_map(
        gradient, mesh=mesh, in_specs=(over, whole), out_specs=over, check_vma=False
    )
    close(jax.jit(split)(x, w), jax.jit(gradient)(x, w))


@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (0, 2)])
def test_under_vmap(axes):
    shapes = [list(shape) for shape in SHAPES[0]]
    for shape, axis in zip(shapes, axes, strict=True):
        if axis is not None:
            shape.insert(axis, 3)
    x, w = arrays(*shapes)

    def gradient(conv):
        def loss(x, w):
            return jnp.mean(jnp.sin(conv(x, w)))

        return jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), axes)

    close(jax.jit(gradient(ours))(x, w), jax.jit(gradient(theirs))(x, w))
    close(jax.vmap(ours, axes)(x, w), jax.vmap(theirs, axes)(x, w))


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


def by_definition(x, w, strides, padding, spacing, dilation):
    """The sum over taps, for what the library misreads on a CPU (negative padding) or aborts at."""
    x = lax.pad(
        x,
        0.0,
        [(0, 0, 0), *((*p, e - 1) for p, e in zip(padding, spacing, strict=True)), (0, 0, 0)],
    )
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape, dilation, strict=False)]
    starts = [n - k + 1 for n, k in zip(x.shape[1:], reach, strict=False)]
    y = 0.0
    for i, j in itertools.product(*map(range, w.shape[:2])):
        a, b = i * dilation[0], j * dilation[1]
        seen = x[:, a : a + starts[0] : strides[0], b : b + starts[1] : strides[1]]
        y = y + jnp.einsum("bhwc,cd->bhwd", seen, w[i, j])
    return y


@pytest.mark.parametrize(("channels", "work"), [(3, 0), (40, 0), (40, WORK)])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "spacing", "dilation"),
    [
        ((3, 3), (1, 1), ((-1, 2), (4, -1)), (1, 1), (1, 1)),
        ((3, 2), (2, 3), ((-1, 0), (0, -2)), (1, 1), (1, 2)),
        ((4, 3), (2, 2), ((0, 1), (1, 2)), (1, 1), (1, 1)),
        ((3, 3), (1, 1), ((-1, 1), (2, -1)), (2, 3), (1, 2)),
        ((4, 3), (2, 3), ((1, 1), (2, 0)), (3, 2), (1, 2)),
        ((1, 3), (1, 1), ((0, 0), (1, 1)), (1, 1), (1, 1)),
    ],
)
def test_every_window(channels, work, kernel, strides, padding, spacing, dilation, monkeypatch):
    """Value and gradients, the batch in one piece and in several."""
    monkeypatch.setattr(forms, "_MUCH_WORK", work)
    x, w = arrays((4, 8, 7, channels), (*kernel, channels, 36))
    window = (strides, padding, spacing, dilation)

    def loss(conv):
        return jax.value_and_grad(lambda x, w: jnp.mean(jnp.sin(conv(x, w))), argnums=(0, 1))

    def fast(x, w):
        return conv_general_dilated(x, w, *window, NUMBERS)

    expected = jax.jit(loss(lambda x, w: by_definition(x, w, *window)))(x, w)
    close(jax.jit(loss(fast))(x, w), expected)
    monkeypatch.setattr(forms, "_CACHED", 2 * 8 * 7 * 3 * (channels + 36))
    close(jax.jit(loss(fast))(x, w), expected)


def test_nothing_to_see():
    """Where the window reaches over the input's end there is no output, and no gradient."""
    x, w = arrays((2, 2, 5, 3), (3, 3, 3, 4))
    y, gradient = jax.vjp(
        lambda x, w: conv_general_dilated(x, w, (1, 1), "VALID", None, None, NUMBERS), x, w
    )
    assert y.shape == (2, 0, 3, 4)
    assert all(not g.any() for g in gradient(y))


def lowered(platform, x_shape, w_shape):
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (x_shape, w_shape))
    gradient = jax.grad(lambda x, w: jnp.sum(ours(x, w)), argnums=(0, 1))
    return jax.jit(gradient).trace(x, w).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_the_library(platform):
    text = lowered(platform, *SHAPES[0])
    assert text.count("stablehlo.convolution") == 2
    assert "stablehlo.dot_general" not in text
    assert "inlineable" not in text


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "products", "convolutions"),
    [
        ((128, 8, 8, 64), (3, 3, 64, 64), 12, 0),  # Winograd: six products each
        ((64, 8, 8, 64), (3, 3, 64, 64), 0, 2),  # too little work
        ((64, 8, 8, 24), (3, 3, 24, 999), 1, 1),  # too few channels
        ((64, 1, 64, 64), (1, 1, 64, 64), 2, 0),
        ((64, 2, 2, 64), (3, 3, 64, 64), 1, 1),  # a kernel larger than its input
        ((192, 9, 5, 64), (3, 3, 64, 64), 1, 1),  # a width that wastes most of every second tile
    ],
)
def test_rules(x_shape, w_shape, products, convolutions, monkeypatch):
    monkeypatch.setattr(forms, "_MUCH_WORK", WORK)
    text = lowered("cpu", x_shape, w_shape)
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("stablehlo.dot_general") == products


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_forward_mode(strides):
    """Along both arguments, and the gradient of what it gives."""
    x, w, dx, dw = arrays(*SHAPES[0], *SHAPES[0])

    def tangent(conv, x, w):
        return jax.jvp(lambda x, w: jnp.sin(conv(x, w, strides)), (x, w), (dx, dw))

    def slope(conv, x, w):
        return jax.grad(lambda x, w: jnp.sum(tangent(conv, x, w)[1]), argnums=(0, 1))(x, w)

    for derivative in (tangent, slope):
        a, b = (jax.jit(lambda x, w, c=c, d=derivative: d(c, x, w))(x, w) for c in (ours, theirs))
        close(a, b)


def test_derivatives_stay_in_fast_forms():
    """What forward mode computes on a CPU are the convolution's own forms."""
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((128, 8, 8, 64), (3, 3, 64, 64)))
    push = jax.jit(lambda x, w: jax.jvp(lambda x: ours(x, w), (x,), (x,)))
    text = push.trace(x, w).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in text
    assert text.count("stablehlo.dot_general") == 6  # Winograd's, once for both calls


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
