"""The shared layers against explicit formulas in NumPy and against Flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxgen.models.blocks.layers import (
    Downsample,
    Dropout,
    GroupNorm,
    SelfAttention,
    Upsample,
    default_groups,
    fourier_features,
    timestep_embedding,
)


def randomized(module, *args):
    """Parameters of the module's shapes, all random: zero or one would hide mistakes."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(module, *args):
    """The output and the parameters at initialization, compiled: op by op takes far longer."""
    return jax.jit(module.init_with_output)(jax.random.key(0), *args)


class TestTimestepEmbedding:
    def test_equals_the_formula_in_double_precision(self):
        t = np.array([0, 1, 17, 999])
        i = np.arange(16)
        angles = t[:, None] * 10_000.0 ** (-i / 15)
        expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        actual = timestep_embedding(jnp.asarray(t), 32)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, atol=1e-4)

    def test_without_the_endpoint(self):
        angles = np.array([0, 3, 700])[:, None] * 10_000.0 ** (-np.arange(4) / 4)
        expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        actual = timestep_embedding(jnp.array([0, 3, 700]), 8, endpoint=False)
        np.testing.assert_allclose(actual, expected, atol=1e-4)

    def test_floats_equal_integers(self):
        t = jnp.array([3, 500])
        np.testing.assert_array_equal(
            timestep_embedding(t, 8), timestep_embedding(t.astype(jnp.float32), 8)
        )

    @pytest.mark.parametrize("features", [0, 2, 7])
    def test_refuses_widths_it_cannot_halve(self, features):
        with pytest.raises(ValueError, match=f"even and at least 4, got {features}"):
            timestep_embedding(jnp.zeros(2), features)


class TestFourierFeatures:
    def test_is_sines_and_cosines_of_normal_frequencies(self):
        t = jnp.array([0.0, 1e-5, -1e-5])
        features = np.asarray(fourier_features(t, 4096), np.float64)
        assert features.shape == (3, 8192)
        np.testing.assert_array_equal(features[0], np.repeat([0.0, 1.0], 4096))
        frequencies = features[1, :4096] / (2 * np.pi * 1e-5)  # sin(a) = a, where a is small
        assert abs(frequencies.mean()) < 1
        assert abs(frequencies.std() - 16) < 0.6
        np.testing.assert_allclose((features**2)[:, :4096] + (features**2)[:, 4096:], 1, atol=1e-6)
        np.testing.assert_array_equal(features[2, :4096], -features[1, :4096])

    def test_refuses_no_channels(self):
        with pytest.raises(ValueError, match="channels must be positive, got 0"):
            fourier_features(jnp.zeros(2), 0)


class TestGroupNorm:
    @pytest.mark.parametrize(
        ("channels", "groups"),
        [(1, 1), (4, 1), (6, 1), (8, 2), (32, 8), (64, 16), (96, 24), (128, 32), (144, 24)]
        + [(256, 32), (384, 32), (512, 32), (131, 1)],
    )
    def test_default_groups(self, channels, groups):
        assert default_groups(channels) == groups

    def test_default_groups_refuses_no_channels(self):
        with pytest.raises(ValueError, match="positive, got 0"):
            default_groups(0)

    @pytest.mark.parametrize(
        ("shape", "groups"),
        [((3, 4, 5, 12), 3), ((2, 7, 12), 1), ((2, 12), 2), ((2, 3, 2, 12), 12)],
    )
    def test_equals_flax_in_values_and_gradients(self, shape, groups):
        x = 2.0 * normal(2, shape) + 1.0
        cotangent = normal(3, shape)
        ours, theirs = GroupNorm(groups), nn.GroupNorm(groups)
        params = randomized(ours, x)
        assert jax.tree.structure(params) == jax.tree.structure(randomized(theirs, x))

        def outcome(module):
            dot = lambda p, x: jnp.vdot(module.apply(p, x), cotangent)  # noqa: E731
            return jax.jit(jax.value_and_grad(dot, (0, 1)))(params, x)

        for a, b in zip(
            jax.tree.leaves(outcome(ours)), jax.tree.leaves(outcome(theirs)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)

    @pytest.mark.parametrize("mean", [1e2, 1e4])
    def test_exact_under_a_large_mean(self, mean):
        x = (mean + np.random.default_rng(0).normal(size=(2, 16, 16, 8))).astype(np.float32)
        y, _ = run(GroupNorm(2), jnp.asarray(x))
        groups = x.astype(np.float64).reshape(2, 256, 2, 4)
        expected = groups - groups.mean((1, 3), keepdims=True)
        expected /= np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
        # The float32 mean itself is known to half a unit in its last place.
        np.testing.assert_allclose(y.reshape(groups.shape), expected, atol=1e-5 + 1e-7 * mean)

    def test_statistics_are_float32_in_bfloat16(self):
        x = (5.0 + normal(0, (1, 64, 64, 8))).astype(jnp.bfloat16)
        y, params = run(GroupNorm(2, dtype=jnp.bfloat16), x)
        expected, _ = run(GroupNorm(2), x.astype(jnp.float32))
        assert y.dtype == jnp.bfloat16
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0, rtol=2**-8)

    @pytest.mark.parametrize("groups", [0, 5])
    def test_refuses_groups_that_do_not_divide(self, groups):
        with pytest.raises(ValueError, match=f"divide the 12 channels, got {groups}"):
            GroupNorm(groups).init(jax.random.key(0), jnp.zeros((2, 3, 12)))


class TestDropout:
    @staticmethod
    def drop(x, rate, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        return jax.jit(lambda x: Dropout(rate, False).apply({}, x, rngs=rngs))(x)

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("channels", [64, 63])
    def test_drops_at_its_rate_and_keeps_the_mean(self, rate, channels):
        y = np.asarray(self.drop(jnp.ones((50, 20, channels)), rate))
        dropped = np.mean(y == 0)
        assert abs(dropped - rate) < 4 * np.sqrt(rate * (1 - rate) / y.size)
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=2e-4)
        # No element hangs on its neighbour in the same word, or on another row's.
        alike = np.corrcoef((y == 0).reshape(-1, channels).T) - np.eye(channels)
        assert np.abs(alike).max() < 0.2

    def test_its_gradient_has_the_same_mask(self):
        x, rngs = normal(2, (4, 5, 6)), {"dropout": jax.random.key(1)}
        drop = lambda x: Dropout(0.5, False).apply({}, x, rngs=rngs)  # noqa: E731
        y, gradient = jax.jit(lambda x: (drop(x), jax.grad(lambda x: drop(x).sum())(x)))(x)
        np.testing.assert_allclose(y, gradient * x, rtol=1e-6)
        assert 0 < np.count_nonzero(gradient) < x.size

    def test_keys_decide(self):
        x = jnp.ones((8, 8))
        np.testing.assert_array_equal(self.drop(x, 0.5), self.drop(x, 0.5))
        assert np.any(np.asarray(self.drop(x, 0.5)) != np.asarray(self.drop(x, 0.5, seed=1)))

    @pytest.mark.parametrize(("rate", "deterministic"), [(0.0, False), (0.5, True)])
    def test_needs_no_key_where_it_drops_nothing(self, rate, deterministic):
        x = normal(2, (3, 4))
        np.testing.assert_array_equal(Dropout(rate, deterministic).apply({}, x), x)

    @pytest.mark.parametrize("value", [1.0, 0.7])
    def test_keeps_the_mean_in_bfloat16(self, value):
        """1 / 0.9 is no number of bfloat16, whose nearest would lose 0.17 % of the mean."""
        x = jnp.full((2000, 500), value, jnp.bfloat16)
        y = self.drop(x, 0.1)
        np.testing.assert_allclose(np.mean(y, dtype=np.float64), float(x[0, 0]), rtol=1e-3)
        np.testing.assert_allclose(np.max(y), float(x[0, 0]) / 0.9, rtol=1e-4)

    @pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9])
    def test_stays_finite_at_extreme_rates(self, rate):
        assert np.all(np.isfinite(self.drop(jnp.ones((8, 8), jnp.bfloat16), rate)))

    @pytest.mark.parametrize("rate", [-0.1, 1.0])
    def test_refuses_rates_outside_the_unit_interval(self, rate):
        with pytest.raises(ValueError, match=rf"\[0, 1\), got {rate}"):
            Dropout(rate, False).apply({}, jnp.ones((2, 2)))


class TestSelfAttention:
    @pytest.mark.parametrize("heads", [1, 2, 4])
    def test_equals_the_formula(self, heads):
        x = normal(2, (2, 3, 5, 8))
        module = SelfAttention(heads)
        params = randomized(module, x)
        p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
        normed = np.asarray(jax.jit(GroupNorm().apply)({"params": params["params"]["norm"]}, x))
        normed = normed.reshape(2, 15, 8)

        def linear(name, y):
            return y @ p[name]["kernel"] + p[name]["bias"]

        q, k, v = (linear(name, normed) for name in ("query", "key", "value"))
        width = 8 // heads
        out = np.zeros_like(q)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(width)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[..., part] = weights @ v[..., part]
        expected = x + linear("out", out).reshape(x.shape)
        np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-5)

    def test_starts_as_the_identity_but_learns(self):
        x = normal(2, (2, 4, 4, 8))
        y, params = run(SelfAttention(), x)
        np.testing.assert_allclose(y, x, atol=1e-4)
        square = lambda p: jnp.sum(SelfAttention().apply(p, x) ** 2)  # noqa: E731
        grads = jax.jit(jax.grad(square))(params)["params"]
        assert all(np.any(np.asarray(grads[name]["kernel"])) for name in ("query", "value", "out"))

    def test_bfloat16_is_near_float32(self):
        x = normal(2, (2, 4, 4, 8))
        params = randomized(SelfAttention(), x)
        y = jax.jit(SelfAttention(dtype=jnp.bfloat16).apply)(params, x.astype(jnp.bfloat16))
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            y.astype(jnp.float32), jax.jit(SelfAttention().apply)(params, x), atol=0.1
        )

    @pytest.mark.parametrize("heads", [0, 3])
    def test_refuses_heads_that_do_not_divide(self, heads):
        with pytest.raises(ValueError, match=f"divide the 8 channels, got {heads}"):
            SelfAttention(heads).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


def reference_conv(x, params, strides, padding):
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, params["kernel"], strides, padding, dimension_numbers=dims)
    return y + params["bias"][None, None, None]


class TestResampling:
    @pytest.mark.parametrize("size", [(3, 5), (1, 1), (16, 16)])
    def test_upsample_is_nearest_neighbour_then_convolution(self, size):
        x = normal(2, (2, *size, 3))
        params = randomized(Upsample(), x)
        cotangent = normal(3, (2, 2 * size[0], 2 * size[1], 3))

        def expected(p, x):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            return reference_conv(x, p["params"]["conv"], (1, 1), "SAME")

        def outcome(f):
            dot = lambda p, x: (jnp.vdot(f(p, x), cotangent), f(p, x))  # noqa: E731
            return jax.jit(jax.grad(dot, (0, 1), has_aux=True))(params, x)

        got, want = outcome(Upsample().apply), outcome(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def test_downsample_pads_below_and_right(self):
        x = normal(2, (2, 6, 4, 3))
        params = randomized(Downsample(), x)
        expected = reference_conv(x, params["params"]["conv"], (2, 2), ((0, 1), (0, 1)))
        assert expected.shape == (2, 3, 2, 3)
        np.testing.assert_allclose(jax.jit(Downsample().apply)(params, x), expected, atol=1e-5)

    def test_downsample_refuses_odd_images(self):
        with pytest.raises(ValueError, match="even, got 5x4"):
            Downsample().init(jax.random.key(0), jnp.zeros((1, 5, 4, 2)))
