"""The spline against another derivation of it, at its edges, and far outside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.bijectors.splines import Spline, neural_spline_flow

SPLINE = Spline(num_bins=5, bound=2.0)
RAW = 1.5 * np.random.default_rng(0).normal(size=(SPLINE.num_params, 1)).astype(np.float32)


@partial(jax.jit, static_argnames=("reverse", "spline"))
def bend(x, raw=RAW, *, reverse=False, spline=SPLINE):
    """One spline at many points."""
    x = x[:, None]
    y, log_slope = spline(x, jnp.broadcast_to(raw, (len(x), *raw.shape)), reverse=reverse)
    return y[:, 0], log_slope[:, 0]


def knots(raw):
    """Knots and derivatives by NumPy in double precision, from the paper's section 3.1."""
    raw, k = raw[:, 0].astype(np.float64), SPLINE.num_bins

    def edges(values):
        share = np.exp(values) / np.exp(values).sum()
        share = 1e-3 + (1 - 1e-3 * k) * share
        return np.concatenate([[0], np.cumsum(share)]) * 4 - 2

    inner = 1e-3 + np.log1p(np.exp(raw[2 * k :] + np.log(np.expm1(1 - 1e-3))))
    return edges(raw[:k]), edges(raw[k : 2 * k]), np.concatenate([[1], inner, [1]])


def test_knots_and_derivatives():
    """It goes through the knots, and has there the derivatives that it is to have."""
    x, y, derivatives = knots(RAW)
    bent, log_slope = bend(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(bent, y, atol=1e-5)
    np.testing.assert_allclose(np.exp(log_slope), derivatives, rtol=1e-3)
    back, log_slope = bend(jnp.asarray(y, jnp.float32), reverse=True)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(np.exp(-log_slope), derivatives, rtol=1e-3)


def test_middle_of_a_bin():
    """Eq. 4 at theta = 1/2, by hand: y = y_k + h (s + d0) / (2 s + d0 + d1)."""
    x, y, d = knots(RAW)
    h, w = np.diff(y), np.diff(x)
    s = h / w
    expected = y[:-1] + h * (s + d[:-1]) / (2 * s + d[:-1] + d[1:])
    bent, _ = bend(jnp.asarray(x[:-1] + w / 2, jnp.float32))
    np.testing.assert_allclose(bent, expected, atol=1e-5)


def test_slope_is_the_derivative_and_positive():
    x = jnp.concatenate([jnp.linspace(-2.5, 2.5, 301), jnp.asarray(knots(RAW)[0], jnp.float32)])
    slope = jax.jit(jax.vmap(jax.grad(lambda v: bend(v[None])[0][0])))(x)
    assert (slope > 0).all()
    np.testing.assert_allclose(np.log(slope), bend(x)[1], atol=1e-3)
    assert (np.diff(bend(x[:301])[0]) > 0).all()


def test_identity_outside_and_at_zero():
    outside = jnp.array([-1e6, -2.0001, 2.0001, 1e6])
    y, log_slope = bend(outside)
    np.testing.assert_array_equal(y, outside)
    np.testing.assert_array_equal(log_slope, 0)
    x = jnp.linspace(-3, 3, 50)
    y, log_slope = bend(x, np.zeros_like(RAW))
    np.testing.assert_allclose(y, x, atol=1e-6)
    np.testing.assert_allclose(log_slope, 0, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e6])
def test_extreme_parameters(size):
    """Needle-thin bins, steep and flat knots, arguments on knots: finite, there and back."""
    raw = jnp.asarray(RAW * size / np.abs(RAW).max())
    points = np.concatenate([np.linspace(-2, 2, 41), [-2.0, 2.0, 0.0, -1e6, 1e6, 1e30]])
    x = jnp.asarray(points, jnp.float32)

    @jax.jit
    def run(x, raw):
        def total(x, raw):
            y, log_slope = bend(x, raw)
            back, log_slope_back = bend(jax.lax.stop_gradient(y), raw, reverse=True)
            scalar = jnp.sum(y) + jnp.sum(log_slope) + jnp.sum(back) + jnp.sum(log_slope_back)
            return scalar, (y, back)

        return jax.grad(total, argnums=(0, 1), has_aux=True)(x, raw)

    (dx, draw), (y, back) = run(x, raw)
    assert np.isfinite(dx).all()
    assert np.isfinite(draw).all()
    assert np.isfinite(y).all()
    # Where the spline is nearly flat the way back magnifies rounding; its image is right still.
    np.testing.assert_allclose(bend(back, raw)[0], y, atol=2e-3 if size > 1 else 2e-5)
    if size == 1:
        np.testing.assert_allclose(back, x, atol=1e-5)


def test_inverse_beside_steep_knots():
    """Bins far flatter than the knots beside them, where the textbook root loses all its digits."""
    two = Spline(num_bins=2)
    rng = np.random.default_rng(4)
    raw = np.zeros((2000, two.num_params, 1), np.float32)
    raw[:, 2:, 0] = rng.uniform(-7, 7, (2000, 3))  # heights and the inner knot's derivative
    raw[:, 4, 0] *= 100
    y = jnp.asarray(rng.uniform(-3, 3, (2000, 1)), jnp.float32)
    x, log_slope = jax.jit(partial(two, reverse=True))(y, raw)
    assert np.isfinite(log_slope).all()
    with jax.enable_x64(True):
        exact, exact_log_slope = partial(two, reverse=True)(
            jnp.asarray(y, jnp.float64), jnp.asarray(raw, jnp.float64)
        )
        np.testing.assert_allclose(two(exact, jnp.asarray(raw, jnp.float64))[0], y, atol=1e-6)
    np.testing.assert_allclose(x, exact, atol=1e-3)
    np.testing.assert_allclose(log_slope, exact_log_slope, atol=0.2)


def test_float64():
    with jax.enable_x64(True):
        x = jnp.linspace(-2.5, 2.5, 101)
        raw = jnp.asarray(RAW, jnp.float64)
        y, log_slope = bend(x, raw)
        back, log_slope_back = bend(y, raw, reverse=True)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(back, x, atol=1e-12)
        np.testing.assert_allclose(log_slope, -log_slope_back, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 0}, "num_bins must be at least 1, got 0"),
        ({"bound": -1.0}, "bound must be positive"),
        ({"num_bins": 1000}, r"least_bin must lie in \[1e-5, 1 / num_bins\)"),
        ({"least_derivative": 1.0}, r"least_derivative must lie in \(0, 1\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Spline(**options)


def test_bad_flow():
    with pytest.raises(ValueError, match="num must be at least 1"):
        neural_spline_flow(0).init(jax.random.key(0), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="needs 2 channels or more"):
        neural_spline_flow(1).init(jax.random.key(0), jnp.zeros((2, 1)))
