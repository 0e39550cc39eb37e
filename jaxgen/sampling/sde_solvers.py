"""Solvers of the reverse SDE: Euler-Maruyama, reverse diffusion, Langevin corrections, DPM-Solver.

All are `jaxgen.sampling.solvers.Solver` values for `solve`. They add fresh noise at every step but
the last, whose mean is the sample, as in the authors' code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.process import Process, expand, sde
from jaxgen.sampling.ode_solvers import Ask, extrapolated, half_log_snr
from jaxgen.sampling.solvers import Solver, Step, check_falling, data_and_noise


def euler_maruyama(process: Process) -> Solver:
    """Euler-Maruyama for the reverse SDE (Song et al. 2021, SDE, appendix D.4).

        x <- x - (f x - g^2 score) dt + g sqrt(dt) noise,    score = -eps / sigma

    with f and g of `jaxgen.noise.process.sde` at the start of the step. It cannot start where
    nothing of the data is left, where f is infinite.

    Args:
        process: The process of the levels.
    """

    def step(denoise: Ask, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "Euler-Maruyama")
        _, eps = data_and_noise(denoise, x, step)
        drift, spread = sde(process, step.start.time)
        width = step.start.time - step.end.time
        pull = expand(spread / step.start.sigma * width, x.ndim)
        mean = x - expand(drift * width, x.ndim) * x - pull * eps
        return _with_noise(step, mean, jnp.sqrt(spread * width), key), state

    return Solver(lambda x: (), step)


def reverse_diffusion() -> Solver:
    """The reverse of the forward process's own steps (Song et al. 2021, SDE, algorithms 2 and 3).

        x <- (2 - a) x + added score + sqrt(added) noise,    a = alpha_t / alpha_s

    from level t to s, where `added` is the variance that the process adds from s to t.
    """

    def step(denoise: Ask, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "reverse diffusion")
        assert step.posterior is not None
        _, eps = data_and_noise(denoise, x, step)
        added, ratio = step.posterior.added, step.start.alpha / step.end.alpha
        mean = expand(2 - ratio, x.ndim) * x - expand(added / step.start.sigma, x.ndim) * eps
        return _with_noise(step, mean, jnp.sqrt(added), key), state

    return Solver(lambda x: (), step)


def predictor_corrector(
    predictor: Solver, *, snr: float = 0.16, num_corrections: int = 1
) -> Solver:
    """Langevin steps at each level before a predictor's step to the next one.

        x <- x + e score + sqrt(2 e) noise,    e = 2 a^2 (snr |noise| / |score|)^2

    the norms averaged over the batch, `a = alpha_t / alpha_s` of the predictor's step (Song et al.
    2021, SDE, algorithms 4 and 5; their authors' code corrects first).

    Args:
        predictor: The solver of the steps, such as `reverse_diffusion()`.
        snr: The signal-to-noise ratio of the corrections, positive.
        num_corrections: The number of Langevin steps at each level, at least 1.

    Raises:
        ValueError: if a number is out of range.
    """
    if not snr > 0:
        raise ValueError(f"snr must be positive, got {snr}")
    if num_corrections < 1:
        raise ValueError(f"num_corrections must be at least 1, got {num_corrections}")

    def step(denoise: Ask, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "Langevin corrections")
        ratio = jnp.square(step.start.alpha / step.end.alpha)

        def correct(i: Array, x: Array) -> Array:
            _, eps = data_and_noise(denoise, x, step)
            score = -eps / expand(step.start.sigma, x.ndim)
            noise = standard_normal(jax.random.fold_in(key, i), x.shape)
            size = 2 * ratio * jnp.square(snr * _mean_norm(noise) / _mean_norm(score))
            return x + expand(size, x.ndim) * score + expand(jnp.sqrt(2 * size), x.ndim) * noise

        x = jax.lax.fori_loop(0, num_corrections, correct, x)
        return predictor.step(denoise, step, x, state, jax.random.fold_in(key, num_corrections))

    return Solver(predictor.init, step)


def dpm_solver_sde() -> Solver:
    """DPM-Solver++ of several steps for the reverse SDE, of order 2 (Lu et al. 2022, appendix D).

        x <- (sigma_s / sigma_t) e^-h x + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) noise

    with h and D of `jaxgen.sampling.ode_solvers.dpm_solver`.
    """

    def step(denoise: Ask, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "DPM-Solver++")
        x0 = denoise(x, step.start).x0
        width = half_log_snr(step.end) - half_log_snr(step.start)
        estimate = extrapolated(x0, width, state)
        kept = jnp.exp(-width)
        gone = -jnp.expm1(-2 * width)
        share = expand(step.end.sigma / step.start.sigma * kept, x.ndim)
        mean = share * x + expand(step.end.alpha * gone, x.ndim) * estimate
        return _with_noise(step, mean, step.end.sigma * jnp.sqrt(gone), key), (x0, width)

    return Solver(lambda x: (jnp.zeros_like(x), jnp.zeros(x.shape[:1])), step)


def _with_noise(step: Step, mean: Array, std: Float[Array, " batch"], key: Key[Array, ""]) -> Array:
    std = jnp.where(step.left == 1, 0.0, std)
    return mean + expand(std, mean.ndim) * standard_normal(key, mean.shape)


def _mean_norm(values: Array) -> Float[Array, ""]:
    flat = values.reshape(values.shape[0], -1)
    return jnp.linalg.norm(flat, axis=-1).mean()
