"""Halving and doubling against direct convolutions in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.blocks.resample import (
    BINOMIAL,
    BOX,
    downsample,
    pixel_shuffle,
    smooth,
    upsample,
)

FILTERS = [BOX, BINOMIAL, (1, 2, 5, 5, 2, 1)]
SHAPE = (2, 6, 10, 3)


def images(shape=SHAPE):
    return np.random.default_rng(1).normal(size=shape)


def direct(x, taps, before, after):
    """The 2-d filter at every place of the image within zeros, by the definition."""
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    x = np.pad(x, [(0, 0), (before, after), (before, after), (0, 0)])
    size = len(taps)
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        kernel[i, j] * x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)
    )


@pytest.mark.parametrize("taps", FILTERS)
class TestAgainstTheDefinition:
    def check(self, function, expected):
        x = images()
        with jax.enable_x64():
            y = jax.jit(function)(jnp.asarray(x))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)
        for dtype in (jnp.float32, jnp.bfloat16):
            assert jax.eval_shape(function, jnp.asarray(x, dtype)).dtype == dtype

    def test_downsample(self, taps):
        reach = len(taps) // 2 - 1
        expected = direct(images(), taps, reach, reach)[:, ::2, ::2]
        self.check(partial(downsample, taps=taps), expected)

    def test_upsample(self, taps):
        x = images()
        spaced = np.zeros((2, 12, 20, 3))
        spaced[:, ::2, ::2] = x
        half = len(taps) // 2
        self.check(partial(upsample, taps=taps), 4 * direct(spaced, taps, half, half - 1))

    def test_smooth(self, taps):
        self.check(
            partial(smooth, taps=taps, reach=len(taps)),
            direct(images(), taps, len(taps), len(taps)),
        )


@pytest.mark.parametrize("taps", [BINOMIAL])
def test_doubling_is_the_transpose_of_halving_in_both_modes(taps):
    x, y = jnp.asarray(images(), jnp.float32), jnp.asarray(images((2, 12, 20, 3)), jnp.float32)
    halve, double = partial(downsample, taps=taps), partial(upsample, taps=taps)

    @jax.jit
    def both(x, y):
        _, pull = jax.vjp(halve, y)
        return 4 * pull(x)[0], *jax.jvp(double, (x,), (x,))

    for value in both(x, y):
        np.testing.assert_allclose(value, jax.jit(double)(x), rtol=0, atol=1e-5)


def test_a_constant_stays_away_from_the_border():
    double = jax.jit(lambda x: upsample(x, BINOMIAL))
    np.testing.assert_allclose(double(jnp.full((1, 6, 6, 1), 3.0))[:, 1:-1, 1:-1], 3, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5, 4, 1), (1, 4, 7, 1)])
@pytest.mark.parametrize("taps", [BOX, BINOMIAL])
def test_refuses_to_halve_odd_images(shape, taps):
    with pytest.raises(ValueError, match=f"must be even to be halved, got {shape[1]}x{shape[2]}"):
        downsample(jnp.zeros(shape), taps)


@pytest.mark.parametrize("taps", [(), (1,), (1, 2, 1), (1, 2), (1, -1, -1, 1)])
@pytest.mark.parametrize("function", [downsample, upsample, partial(smooth, reach=1)])
def test_refuses_other_filters(function, taps):
    with pytest.raises(ValueError, match="taps must be an even number of symmetric taps"):
        function(jnp.zeros((1, 4, 4, 1)), taps)


def test_pixel_shuffle():
    """Channels to pixels by the definition, PyTorch's order; one factor after another."""
    x = jnp.arange(2 * 3 * 2 * 18.0).reshape(2, 3, 2, 18)
    y = pixel_shuffle(x, 3)
    assert y.shape == (2, 9, 6, 2)
    for i, j, c, a, b in ((0, 0, 0, 0, 0), (2, 1, 1, 2, 0), (1, 0, 1, 0, 1)):
        np.testing.assert_array_equal(y[:, 3 * i + a, 3 * j + b, c], x[:, i, j, 9 * c + 3 * a + b])
    torch = pytest.importorskip("torch")
    expected = torch.nn.PixelShuffle(3)(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(y, expected.numpy().transpose(0, 2, 3, 1))
    assert pixel_shuffle(x, 1).shape == x.shape
    for factor in (0, 2):
        with pytest.raises(ValueError, match=f"the 18 channels, got {factor}"):
            pixel_shuffle(x, factor)
