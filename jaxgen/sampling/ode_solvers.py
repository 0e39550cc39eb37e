"""Solvers of higher order for the probability-flow ODE: Heun, DPM-Solver++, UniPC.

All are `jaxgen.sampling.solvers.Solver` values for `solve`. The ODE of any process is `dx = x0
dalpha + eps dsigma`; DPM-Solver++ and UniPC take it in terms of `lambda = log(alpha / sigma)`,
where its linear part is solved exactly.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import Level, Process, expand, time_of
from jaxgen.sampling.solvers import Solver, Step, check_falling, data_and_noise

Ask = Callable[[Array, Level], Denoised]


class Churn(NamedTuple):
    """Fresh noise before each step of `heun` (Karras et al. 2022, EDM, algorithm 2).

    Attributes:
        process: The process, to find the noisier level.
        amount: The paper's S_churn: of N steps each raises the noise by the factor
            `1 + min(amount / N, sqrt(2) - 1)`.
        low: The least noise-to-signal ratio at which noise is added, S_min.
        high: The greatest one, S_max.
        noise: The deviation of the fresh noise, S_noise.
    """

    process: Process
    amount: float
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0


def heun(churn: Churn | None = None) -> Solver:
    """Heun's method, of order 2 (Karras et al. 2022, EDM, algorithms 1 and 2).

        x' = x + d_alpha x0(x) + d_sigma eps(x)
        x <- x + d_alpha (x0(x) + x0(x')) / 2 + d_sigma (eps(x) + eps(x')) / 2

    Two evaluations a step, and one for the step to clean data, which is Euler's: 2 N - 1 in all.

    Args:
        churn: Fresh noise before each step, or None for the ODE.

    Raises:
        ValueError: if a number of `churn` is negative, or its range is empty.
    """
    if churn is not None:
        wrong = churn.amount < 0 or churn.noise < 0 or not 0 <= churn.low <= churn.high
        if wrong:
            raise ValueError(
                f"churn needs amount and noise at least 0 and 0 <= low <= high, got {churn[1:]}"
            )

    def step(denoise: Ask, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        if churn is not None:
            x, start = _churned(churn, step, x, key)
            step = step._replace(start=start)
        x0, eps = data_and_noise(denoise, x, step)
        d_alpha = expand(step.end.alpha - step.start.alpha, x.ndim)
        d_sigma = expand(step.end.sigma - step.start.sigma, x.ndim)
        euler = x + d_alpha * x0 + d_sigma * eps

        def corrected() -> Array:
            there = denoise(euler, step.end).x0
            sigma = expand(step.end.sigma, x.ndim)
            noise = (euler - expand(step.end.alpha, x.ndim) * there) / sigma
            return x + 0.5 * (d_alpha * (x0 + there) + d_sigma * (eps + noise))

        # The levels are those of the whole batch, so it skips the evaluation together.
        return lax.cond(step.end.sigma[0] > 0, corrected, lambda: euler), state

    return Solver(lambda x: (), step)


def _churned(churn: Churn, step: Step, x: Array, key: Key[Array, ""]) -> tuple[Array, Level]:
    """x with fresh noise, and its level."""
    start = step.start
    ratio = start.sigma / start.alpha
    num_steps = step.done + step.left
    gamma = jnp.minimum(churn.amount / num_steps, math.sqrt(2) - 1)
    gamma = jnp.where((churn.low <= ratio) & (ratio <= churn.high), gamma, 0.0)
    raised = churn.process.at(time_of(churn.process, -2 * jnp.log(ratio * (1 + gamma))))
    raised = jax.tree.map(lambda new, old: jnp.where(gamma > 0, new, old), raised, start)
    higher = raised.sigma / raised.alpha
    added = jnp.sqrt(jnp.maximum(jnp.square(higher) - jnp.square(ratio), 0.0))
    fresh = churn.noise * expand(added, x.ndim) * standard_normal(key, x.shape)
    return expand(raised.alpha, x.ndim) * (x / expand(start.alpha, x.ndim) + fresh), raised


def dpm_solver(order: int = 2) -> Solver:
    """DPM-Solver++ of several steps (Lu et al. 2022, algorithm 2), one evaluation a step.

        h = lambda_s - lambda_t,    D = x0 + h / (2 h_before) (x0 - x0_before)
        x <- (sigma_s / sigma_t) x + alpha_s (1 - e^-h) D

    from level t to s. The first step and the step to clean data, where h is infinite, are of order
    1, which is DDIM.

    Args:
        order: The order, 1 or 2.

    Raises:
        ValueError: if the order is another.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")

    def step(denoise: Ask, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "DPM-Solver++")
        x0 = denoise(x, step.start).x0
        width = half_log_snr(step.end) - half_log_snr(step.start)
        estimate = x0
        if order == 2:
            estimate = extrapolated(x0, width, state)
        share = expand(step.end.sigma / step.start.sigma, x.ndim)
        # alpha_s (1 - e^-h), which is finite for any h
        gain = expand(step.end.alpha, x.ndim) - share * expand(step.start.alpha, x.ndim)
        return share * x + gain * estimate, (x0, width)

    return Solver(lambda x: (jnp.zeros_like(x), jnp.zeros(x.shape[:1])), step)


def extrapolated(
    x0: Float[Array, "batch *dims"],
    width: Float[Array, " batch"],
    before: tuple[Float[Array, "batch *dims"], Float[Array, " batch"]],
) -> Float[Array, "batch *dims"]:
    """The data expected in the middle of a step, on the line through two estimates.

    Args:
        x0: The estimate at its start.
        width: Its width h in lambda.
        before: The estimate one step before, and that step's width: 0 where there was none.
    """
    usable = (before[1] != 0) & jnp.isfinite(before[1]) & jnp.isfinite(width)
    share = jnp.where(usable, width / jnp.where(usable, 2 * before[1], 1.0), 0.0)
    return x0 + expand(share, x0.ndim) * (x0 - before[0])


def half_log_snr(level: Level) -> Float[Array, "*levels"]:
    """`lambda = log(alpha / sigma)`: infinite for clean data, minus infinity for noise alone."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


class _History(NamedTuple):
    """What UniPC remembers.

    Attributes:
        x: What the last step started from.
        level: The level there.
        x0: The data that were expected there and before, the newest first.
        lam: Lambda there and before.
    """

    x: Array
    level: Level
    x0: tuple[Array, ...]
    lam: tuple[Array, ...]


def unipc(order: int = 3, *, variant: str = "bh2") -> Solver:
    """UniPC of several steps (Zhao et al. 2023, algorithms 5 and 6), one evaluation a step.

    Each evaluation first corrects the step that led to it, then predicts the next one, both by a
    polynomial in lambda through the last estimates of the data. The order rises from 1 over the
    first steps and falls to 1 over the last ones; what the last step leads to is not corrected.

    Args:
        order: The order of the predictor; the corrector's is one higher.
        variant: The function B of the paper, `bh1` (h) or `bh2` (e^h - 1).

    Raises:
        ValueError: if an argument is not one of those.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")

    def init(x: Array) -> _History:
        zeros, ones = jnp.zeros_like(x), jnp.ones(x.shape[:1])
        return _History(zeros, Level(ones, ones, ones), (zeros,) * order, (0 * ones,) * order)

    def step(denoise: Ask, step: Step, x: Array, state: _History, key: Key[Array, ""]):
        check_falling(step, "UniPC")
        x0, lam = denoise(x, step.start).x0, half_log_snr(step.start)

        def correct(p: int) -> Callable[[], Array]:
            return lambda: _unified(state, step.start, p, variant, x0)

        led_here = jnp.minimum(jnp.minimum(step.done, order), step.left + 1)
        corrections = [correct(p) for p in range(1, order + 1)]
        x = lax.switch(led_here, [lambda: x, *corrections])
        level = jax.tree.map(lambda v: v.astype(jnp.float32), step.start)
        state = _History(x, level, (x0, *state.x0[:-1]), (lam, *state.lam[:-1]))

        def predict(p: int) -> Callable[[], Array]:
            return lambda: _unified(state, step.end, p, variant, None)

        now = jnp.minimum(jnp.minimum(step.done + 1, order), step.left)
        return lax.switch(now - 1, [predict(p) for p in range(1, order + 1)]), state

    return Solver(init, step)


def _unified(
    history: _History, end: Level, order: int, variant: str, x0_end: Array | None
) -> Array:
    """A step of an order from the newest of the history to a level; corrected where x0 is known."""
    x, newest, ndim = history.x, history.x0[0], history.x.ndim
    share = expand(end.sigma / history.level.sigma, ndim)
    gain = expand(end.alpha, ndim) - share * expand(history.level.alpha, ndim)
    linear = share * x + gain * newest
    width = half_log_snr(end) - history.lam[0]
    # Through a level of data or of noise alone there is no polynomial: order 1.
    usable = jnp.isfinite(width) & jnp.isfinite(history.lam[order - 1])
    width = jnp.where(usable, width, 1.0)
    rates = [
        jnp.where(usable, (history.lam[k] - history.lam[0]) / width, -float(k))
        for k in range(1, order)
    ]
    slopes = [
        (history.x0[k] - newest) / expand(rate, ndim) for k, rate in enumerate(rates, start=1)
    ]
    if x0_end is not None:
        rates, slopes = [*rates, jnp.ones_like(width)], [*slopes, x0_end - newest]
    if not rates:
        return linear
    weights = _weights(rates, -width, variant)
    total = sum(expand(w, ndim) * slope for w, slope in zip(weights, slopes, strict=True))
    return linear - jnp.where(expand(usable, ndim), expand(end.alpha, ndim) * total, 0.0)


def _weights(rates: list[Array], z: Array, variant: str) -> list[Array]:
    """The solution w of `sum_k rates_k^(i - 1) w_k = i! z phi_(i+1)(z)`, i = 1, 2, ..."""
    if len(rates) == 1:  # the paper's choice: half of B, whatever the rate
        return [0.5 * (z if variant == "bh1" else jnp.expm1(z))]
    wanted = [math.factorial(i) * z * _phi(i + 1, z) for i in range(1, len(rates) + 1)]
    # The matrix is Vandermonde's: w_k is Lagrange's polynomial of the k-th rate, its powers wanted.
    weights = []
    for k, rate in enumerate(rates):
        polynomial = [jnp.ones_like(z)]  # its coefficients, the constant first
        for other in rates[:k] + rates[k + 1 :]:
            scaled = [c / (rate - other) for c in polynomial]
            raised, kept = [jnp.zeros_like(z), *scaled], [-other * c for c in scaled]
            polynomial = [a + b for a, b in zip(raised, [*kept, jnp.zeros_like(z)], strict=True)]
        weights.append(sum((c * b for c, b in zip(polynomial, wanted, strict=True)), 0 * z))
    return weights


def _phi(k: int, z: Array) -> Array:
    """`phi_k(z) = sum_j z^j / (j + k)!`, by its recurrence where that loses no digits."""
    series, term = jnp.zeros_like(z), jnp.ones_like(z) / math.factorial(k)
    for j in range(14):
        series, term = series + term, term * z / (j + 1 + k)
    far = jnp.where(jnp.abs(z) < 1, 1.0, z)
    value = jnp.exp(far)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / far
    return jnp.where(jnp.abs(z) < 1, series, value)
