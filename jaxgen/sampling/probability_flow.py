"""The probability-flow ODE solved to a tolerance: encoding, decoding and likelihoods.

`dx/dt = alpha' x0 + sigma' eps`, with the data x0 that a denoiser expects and the noise eps in x,
has the marginals of the process (Song et al. 2021, SDE, section 4.3). The solver is diffrax's
Dormand-Prince of order 5 with adaptive steps. Call these under `jit`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen.noise.parametrization import Denoise, to_eps
from jaxgen.noise.process import Process, expand, slope


class Tolerance(NamedTuple):
    """When a step of the solver is short enough, and which times it runs between.

    Attributes:
        relative: The relative error of a step.
        absolute: The absolute error of a step.
        first: The time next to the data, where some noise is left.
        last: The time of noise; None for the process's last.
        max_steps: The greatest number of steps, tried ones included.
    """

    relative: float = 1e-5
    absolute: float = 1e-5
    first: float = 1e-5
    last: float | None = None
    max_steps: int = 4096


_DEFAULT = Tolerance()


class Solution(NamedTuple):
    """What the ODE leads to.

    Attributes:
        x: The values at the other end; NaN where the solver needed more steps than allowed.
        num_evaluations: The number of evaluations of the denoiser for the whole batch.
    """

    x: Float[Array, "batch *dims"]
    num_evaluations: Int[Array, ""]


def encode(
    denoise: Denoise,
    process: Process,
    x: Float[Array, "batch *dims"],
    *,
    condition: Any = None,
    tolerance: Tolerance = _DEFAULT,
) -> Solution:
    """Data to noise along the ODE.

    Args:
        denoise: The denoiser, see `jaxgen.noise.parametrization`; not clipped, for the ODE to have
            an inverse.
        process: The process.
        x: Data.
        condition: What the denoiser is told.
        tolerance: The tolerances and times.

    Raises:
        ValueError: if a tolerance is out of range.
    """
    low, high = _times(process, tolerance)
    velocity = _velocity(denoise, process, condition)
    return Solution(*_integrate(velocity, x, low, high, tolerance))


def decode(
    denoise: Denoise,
    process: Process,
    x: Float[Array, "batch *dims"],
    *,
    condition: Any = None,
    tolerance: Tolerance = _DEFAULT,
) -> Solution:
    """Noise to data along the ODE: a sampler with as many evaluations as the tolerance asks for.

    Args:
        denoise: The denoiser.
        process: The process.
        x: Noise of the process's `prior_std`.
        condition: What the denoiser is told.
        tolerance: The tolerances and times.

    Raises:
        ValueError: if a tolerance is out of range.
    """
    low, high = _times(process, tolerance)
    velocity = _velocity(denoise, process, condition)
    return Solution(*_integrate(velocity, x, high, low, tolerance))


def encode_with_log_det(
    denoise: Denoise,
    process: Process,
    x: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    *,
    condition: Any = None,
    tolerance: Tolerance = _DEFAULT,
) -> tuple[Solution, Float[Array, " batch"]]:
    r"""Data to noise, and how the way there changes volumes: the ODE as a normalizing flow.

    $$\log\left|\det \frac{dx_T}{dx}\right| = \int \nabla \cdot v(x_t, t)\, dt$$

    (Song et al. 2021, SDE, eq. 39-40.) The divergence is `probe^T J probe` for a probe of random
    signs that stays the same along the way: an adaptive solver sees no noise, and the mean over
    probes is exact.

    Args:
        denoise: The denoiser, not clipped.
        process: The process.
        x: Continuous data.
        key: The PRNG key of the probes.
        condition: What the denoiser is told.
        tolerance: The tolerances and times.

    Returns:
        The encoded data, and the log-determinants in nats, f32[B].

    Raises:
        ValueError: if a tolerance is out of range.
    """
    low, high = _times(process, tolerance)
    velocity = _velocity(denoise, process, condition)
    probe = jax.random.rademacher(key, x.shape, jnp.float32)

    def both(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        value, pullback = jax.vjp(lambda x: velocity(t, x), state[0])
        (turned,) = pullback(probe)
        return value, (probe * turned).reshape(len(x), -1).sum(-1)

    start = (x.astype(jnp.float32), jnp.zeros(x.shape[:1]))
    (end, log_det), count = _integrate(both, start, low, high, tolerance)
    return Solution(end, count), log_det


def log_density(
    denoise: Denoise,
    process: Process,
    x: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    *,
    condition: Any = None,
    tolerance: Tolerance = _DEFAULT,
) -> tuple[Float[Array, " batch"], Solution]:
    r"""The log-density of continuous data under the ODE, with one Hutchinson probe an example.

    $$\log p(x) = \log N(x_T; 0, \sigma_T^2) + \int \nabla \cdot v(x_t, t)\, dt$$

    (Song et al. 2021, SDE, eq. 39.) `jaxgen.families.score` makes a bound of 8-bit data of it.

    Args:
        denoise: The denoiser, not clipped.
        process: The process.
        x: Continuous data.
        key: The PRNG key of the probes, see `encode_with_log_det`.
        condition: What the denoiser is told.
        tolerance: The tolerances and times; the density is that of the data noised to `first`.

    Returns:
        The log-densities in nats, f32[B], and the encoded data.

    Raises:
        ValueError: if a tolerance is out of range.
    """
    solution, log_det = encode_with_log_det(
        denoise, process, x, key, condition=condition, tolerance=tolerance
    )
    std = process.prior_std
    squares = jnp.square(solution.x / std).reshape(len(x), -1).sum(-1)
    width = math.log(2 * math.pi) + 2 * math.log(std)
    return -0.5 * (squares + math.prod(x.shape[1:]) * width) + log_det, solution


def _velocity(
    denoise: Denoise, process: Process, condition: Any
) -> Callable[[Array, Array], Array]:
    def velocity(t: Array, x: Array) -> Array:
        times = jnp.full(x.shape[:1], t, jnp.float32)
        level, (alpha_rate, sigma_rate) = process.at(times), slope(process, times)
        x0 = denoise(x, level, condition).x0
        eps = to_eps(x0, x, level)
        return expand(alpha_rate, x.ndim) * x0 + expand(sigma_rate, x.ndim) * eps

    return velocity


def _integrate(
    velocity: Callable[[Array, Any], Any],
    state: Any,
    start: float,
    end: float,
    tolerance: Tolerance,
) -> tuple[Any, Array]:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: velocity(jnp.asarray(t), y)),
        diffrax.Dopri5(),
        start,
        end,
        None,
        state,
        stepsize_controller=diffrax.PIDController(tolerance.relative, tolerance.absolute),
        max_steps=tolerance.max_steps,
        throw=False,  # a result of NaN instead: no call of the host from a compiled program
    )
    good = solution.result == diffrax.RESULTS.successful
    ends = jax.tree.map(lambda v: jnp.where(good, v[-1], jnp.nan), solution.ys)
    # first same as last: six evaluations a step, and one for the first
    return ends, 6 * solution.stats["num_steps"] + 1


def _times(process: Process, tolerance: Tolerance) -> tuple[float, float]:
    """The range of times, after the tolerance is checked."""
    last = process.last_time if tolerance.last is None else tolerance.last
    if not 0 <= tolerance.first < last <= process.last_time:
        raise ValueError(
            f"0 <= first < last <= {process.last_time:g} must hold of the times, got "
            f"{tolerance.first:g} and {last:g}"
        )
    if not (tolerance.relative > 0 and tolerance.absolute > 0):
        raise ValueError(
            f"tolerances must be positive, got {tolerance.relative} and {tolerance.absolute}"
        )
    if tolerance.max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {tolerance.max_steps}")
    with jax.ensure_compile_time_eval():
        if not process.at(jnp.float32(tolerance.first)).sigma > 0:
            raise ValueError(
                f"first must be a time at which noise is left, got {tolerance.first:g}"
            )
    return tolerance.first, last
