"""The probability-flow ODE to a tolerance: densities, inversion, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.log_snr import log_snr_linear
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import edm, rectified, sub_vp, trigonometric, ve, vp
from jaxgen.sampling.probability_flow import Tolerance, decode, encode, log_density
from tests.sampling import mixture

PROCESSES = {
    "vp": (vp(log_snr_linear), Tolerance()),
    "sub-vp": (sub_vp(), Tolerance()),
    "edm": (edm(), Tolerance(first=1e-3)),
    "ve": (ve(0.001, 50.0), Tolerance(first=0.0)),
    "straight": (rectified(), Tolerance(first=1e-4, last=1 - 1e-5)),
    "quarter circle": (trigonometric(), Tolerance(first=1e-4)),
}


def gaussian(std):
    """The denoiser of N(0, std^2) data, independent dimensions."""

    def denoise(x, level, condition=None):
        ones = (1,) * (x.ndim - 1)
        a, s = level.alpha.reshape(-1, *ones), level.sigma.reshape(-1, *ones)
        return Denoised(a * std**2 / (a**2 * std**2 + s**2) * x)

    return denoise


@pytest.mark.parametrize("name", PROCESSES)
def test_the_density_of_gaussian_data(name):
    """Exact to 1e-4 nats a dimension: the probe of random signs is exact where dimensions are
    independent and alike. The start is the law of the data at the last level, which is `prior_std`
    but for the data's own share of it."""
    process, tolerance = PROCESSES[name]
    std = 1.0 if process.prior_std == 1 else 0.5  # VP: N(0, 1) data are N(0, 1) at all levels
    if name in ("sub-vp", "straight"):
        std = 0.5
    x = std * jax.random.normal(jax.random.key(0), (3, 4, 2))
    log_p, solution = jax.jit(
        lambda x: log_density(gaussian(std), process, x, jax.random.key(1), tolerance=tolerance)
    )(x)
    want = -0.5 * np.square(x / std) - np.log(std) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_p / 8, want.reshape(3, -1).mean(1), atol=1e-4)
    assert 7 <= solution.num_evaluations < 400


@pytest.mark.parametrize("name", ["vp", "edm", "straight"])
def test_the_density_of_a_mixture(name):
    process, tolerance = PROCESSES[name]
    x = jnp.linspace(-1, 1, 21)[:, None]
    log_p, _ = jax.jit(
        lambda x: log_density(mixture.denoise, process, x, jax.random.key(1), tolerance=tolerance)
    )(x)
    # exp: where there is next to nothing, a small error of the ODE is a large one of the log
    np.testing.assert_allclose(np.exp(log_p), np.exp(mixture.log_density(x)[:, 0]), atol=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_decoding_undoes_encoding(name):
    process, tolerance = PROCESSES[name]
    x = mixture.quantile(process, tolerance.first, np.linspace(0.05, 0.95, 19))[:, None]
    up = jax.jit(lambda x: encode(mixture.denoise, process, x, tolerance=tolerance))(jnp.float32(x))
    assert 0.7 * process.prior_std < np.std(up.x) < 1.1 * process.prior_std
    down = jax.jit(lambda x: decode(mixture.denoise, process, x, tolerance=tolerance))(up.x)
    # Between the two modes the ODE pulls apart, and so do its errors.
    np.testing.assert_allclose(down.x, x, atol=6e-3)
    assert np.abs(down.x - x).mean() < 1e-3


def test_a_looser_tolerance_asks_less():
    process = PROCESSES["vp"][0]
    x = jax.random.normal(jax.random.key(0), (5, 1))
    counts = [
        int(decode(mixture.denoise, process, x, tolerance=Tolerance(t, t)).num_evaluations)
        for t in (1e-2, 1e-5)
    ]
    assert counts[0] < 0.7 * counts[1]


def test_too_many_steps_are_no_success():
    process = PROCESSES["edm"][0]
    x = 80 * jax.random.normal(jax.random.key(0), (5, 1))
    solution = decode(mixture.denoise, process, x, tolerance=Tolerance(first=1e-3, max_steps=4))
    assert np.isnan(solution.x).all()


def test_the_condition_reaches_the_denoiser():
    def denoise(x, level, condition):
        return gaussian(0.5)(x - condition, level)

    process = PROCESSES["edm"][0]
    x = jnp.zeros((2, 1))
    means = jnp.array([[1.0], [-2.0]])
    solution = decode(denoise, process, x, condition=0 * means, tolerance=Tolerance(first=1e-3))
    other = decode(denoise, process, x, condition=means, tolerance=Tolerance(first=1e-3))
    assert np.abs(other.x - solution.x).min() > 0.5


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (Tolerance(first=0.0), "first must be a time at which noise is left, got 0"),
        (Tolerance(first=2.0), "0 <= first < last <= 1 must hold of the times, got 2 and 1"),
        (Tolerance(last=1.5), "got 1e-05 and 1.5"),
        (Tolerance(relative=0.0), "tolerances must be positive, got 0.0 and 1e-05"),
        (Tolerance(max_steps=0), "max_steps must be at least 1, got 0"),
    ],
)
def test_bad_tolerances(tolerance, message):
    with pytest.raises(ValueError, match=message):
        decode(mixture.denoise, rectified(), jnp.zeros((2, 1)), tolerance=tolerance)
