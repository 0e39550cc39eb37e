"""Solvers of the reverse process, and the loop that runs them from noise to data.

A `Solver` takes one step from a noise level to the next; `solve` runs it over all `Levels` as one
compiled loop. Which network predicts what, guidance and clipping are in the denoiser; which levels
are visited is in `Levels`; so any of them changes without the others:

    @jax.jit
    def sample(params, key, num_steps):
        network = lambda x, time, condition: model.apply(params, x, time, condition)
        levels = levels_of(chain, num_steps, leading)
        key_start, key = jax.random.split(key)
        x = chain.prior_std * jax.random.normal(key_start, (16, 32, 32, 3))
        return solve(clip_x0(denoiser(network, EPS)), levels, ddim(), key, x)

Methods of higher order for the ODE are in `jaxgen.sampling.ode_solvers`, those of the reverse SDE
in `jaxgen.sampling.sde_solvers`, the adaptive one in `jaxgen.sampling.probability_flow`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.chain import (
    Variance,
    large_variance,
    learned_variance,
    posterior_mean,
    small_variance,
)
from jaxgen.noise.levels import Levels, Posterior
from jaxgen.noise.parametrization import Denoise, Denoised, to_eps
from jaxgen.noise.process import Level, expand

_MOST_NOISE = 4  # times the variance of a level's noise: what a step to it brings at most


class Step(NamedTuple):
    """One interval between noise levels, for B examples alike.

    Attributes:
        start: The level of what the solver has, [B].
        end: The level that it is to reach, [B].
        posterior: The posterior of the interval, [B]; None where levels rise.
        complete: Whether it is of a sampler that visits all levels of a discrete chain.
        done: The number of steps before it.
        left: The number of steps from it on, itself among them.
    """

    start: Level
    end: Level
    posterior: Posterior | None
    complete: bool | Bool[Array, ""]
    done: Int[Array, ""]
    left: Int[Array, ""]


class Solver(NamedTuple):
    """A way of taking steps.

    Attributes:
        init: `x -> state` before the first step: the history of a method of several steps.
        step: `(denoise, step, x, state, key) -> (x, state)`, where `denoise(x, level) -> Denoised`
            has its condition already.
    """

    init: Callable[[Float[Array, "batch *dims"]], PyTree]
    step: Callable[
        [Callable[[Array, Level], Denoised], Step, Array, PyTree, Key[Array, ""]],
        tuple[Array, PyTree],
    ]


def solve(
    denoise: Denoise,
    levels: Levels,
    solver: Solver,
    key: Key[Array, ""],
    x: Float[Array, "batch *dims"],
    *,
    condition: Any = None,
) -> Float[Array, "batch *dims"]:
    """Runs a solver over all levels, as one `lax.fori_loop`; call it under `jit`.

    Args:
        denoise: The denoiser, see `jaxgen.noise.parametrization`.
        levels: The levels to visit; reversed ones lead from data to noise.
        solver: The solver.
        key: The PRNG key of the steps' noise.
        x: The start, at the first level, [B, ..., C]: noise of the process's `prior_std`.
        condition: What the denoiser is told, a tree of arrays whose first axis is the batch.

    Returns:
        What the solver has at the last level, of the shape of `x`.

    Raises:
        ValueError: if `x` or the condition has the wrong shape, and what the solver raises.

    Examples:
        >>> from jaxgen.noise.levels import levels_at
        >>> from jaxgen.noise.parametrization import X0, denoiser
        >>> from jaxgen.noise.process import rectified
        >>> from jaxgen.noise.times import uniform_times
        >>> always_two = denoiser(lambda x, time, condition: jnp.full_like(x, 2.0), X0)
        >>> levels, x = levels_at(rectified(), uniform_times(4)), jnp.ones((3, 1))
        >>> solve(always_two, levels, ddim(), jax.random.key(0), x)[:, 0]
        Array([2., 2., 2.], dtype=float32)
    """
    return solve_with_state(denoise, levels, solver, key, x, condition=condition)[0]


def solve_with_state(
    denoise: Denoise,
    levels: Levels,
    solver: Solver,
    key: Key[Array, ""],
    x: Float[Array, "batch *dims"],
    *,
    condition: Any = None,
) -> tuple[Float[Array, "batch *dims"], PyTree]:
    """`solve`, with the solver's state after its last step: its history, or what it kept.

    Arguments and errors are those of `solve`.
    """
    if x.ndim < 2 or min(x.shape) < 1:
        raise ValueError(f"x must be [batch, ..., channels] of positive sizes, got {x.shape}")
    for leaf in jax.tree.leaves(condition):
        if jnp.shape(leaf)[:1] != x.shape[:1]:
            raise ValueError(
                f"condition must have the batch's {x.shape[0]} examples on its first axis, got an "
                f"array of shape {jnp.shape(leaf)}"
            )

    def at(tree: PyTree, index: Array) -> PyTree:
        return jax.tree.map(lambda v: jnp.full(x.shape[:1], jnp.asarray(v)[index]), tree)

    def body(i: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        step = Step(
            start=at(levels.level, i),
            end=at(levels.level, i + 1),
            posterior=at(levels.posterior, i),
            complete=levels.complete,
            done=i,
            left=levels.num_steps - i,
        )
        # By the number of steps to go, so that the last steps draw alike however many there are.
        step_key = jax.random.fold_in(key, levels.num_steps - 1 - i)
        return solver.step(lambda x, level: denoise(x, level, condition), step, *carry, step_key)

    return jax.lax.fori_loop(0, levels.num_steps, body, (x, solver.init(x)))


def ancestral(variance: Variance | None = None) -> Solver:
    """Draws from the reverse chain, `x_s ~ N(mean, e^log_variance)` (Ho et al. 2020, alg. 2).

    The mean is the posterior's at the data that the denoiser expects; the last step, to clean data,
    is the mean.

    The default variance is the learned one where the network has it, and else the large one, with
    which the paper's samples are drawn by all steps. Where steps are fewer it is the small one at
    those that would bring more than four times as much noise as the level that they lead to has: a
    long step to a level that is almost clean, such as t = 0, whose noise no later step takes away
    again. (From one of evenly spaced levels to the next it is three times near the data, and less
    elsewhere.) With an exact denoiser of N(0, 0.1^2) data and the linear chain of 1000 steps the
    samples' deviation is 0.047 by 10 trailing steps and 0.103 by 50 (0.043 and 0.103 by linspace
    ones); with the large variance throughout it is 0.354 and 0.129 by linspace ones, and with the
    small one 0.027 and 0.068.

    Args:
        variance: The variance of the steps, see `jaxgen.noise.chain`; None for the default.
    """

    def step(denoise, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "ancestral sampling")
        assert step.posterior is not None
        denoised = denoise(x, step.start)
        mean = posterior_mean(step.posterior, denoised.x0, x)
        if variance is None:
            log_variance = _default_variance(step, step.posterior, denoised)
        else:
            log_variance = variance(step.posterior, denoised)
        std = jnp.where(expand(step.end.sigma, x.ndim) > 0, jnp.exp(0.5 * log_variance), 0.0)
        return mean + std * standard_normal(key, x.shape), state

    return Solver(_no_state, step)


def _default_variance(
    step: Step, posterior: Posterior, denoised: Denoised
) -> Float[Array, "batch *dims"]:
    """The log-variance of a step of `ancestral` by default."""
    if denoised.extra is not None:
        return learned_variance(posterior, denoised)
    suits = step.complete | (posterior.added <= _MOST_NOISE * jnp.square(step.end.sigma))
    large, small = large_variance(posterior, denoised), small_variance(posterior, denoised)
    return jnp.where(expand(suits, denoised.x0.ndim), large, small)


def ddim(eta: float | int | Float[Array, ""] = 0.0) -> Solver:
    """DDIM (Song et al. 2021, eq. 12 and 16), deterministic or with noise.

        x <- alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d noise
        d^2 = eta^2 (sigma_s^2 / sigma_t^2) added

    from level t to s, where x0 is what the denoiser expects, eps what leads from it to x, and
    `added` the variance that the process adds from s to t (see `Posterior`). With eta = 1 on all
    levels of a chain this is `ancestral(small_variance)`; with eta = 0 it is Euler's method for the
    probability-flow ODE in `sigma / alpha`, and on reversed levels it inverts itself, up to the
    error of its steps (section 4.3). A step from clean data asks at the level that it leads to.

    Args:
        eta: The share of the noise, from 0, deterministic, to 1. A traced value is not checked.

    Raises:
        ValueError: if eta is out of range.
    """
    fixed = isinstance(eta, float | int)
    if fixed and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")

    def step(denoise, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        start, end = step.start, step.end
        x0, eps = data_and_noise(denoise, x, step)
        signal, noise = expand(end.alpha, x.ndim) * x0, expand(end.sigma, x.ndim)
        if fixed and eta == 0:  # spares the draw
            return signal + noise * eps, state
        if step.posterior is None:
            raise ValueError("levels must fall for DDIM with noise, got reversed ones and eta > 0")
        share = expand(jnp.square(eta) * step.posterior.added / jnp.square(start.sigma), x.ndim)
        kept = noise * jnp.sqrt(jnp.maximum(1 - share, 0.0))  # rounding may pass 1 by an ulp
        fresh = standard_normal(key, x.shape)
        return signal + kept * eps + noise * jnp.sqrt(share) * fresh, state

    return Solver(_no_state, step)


def euler() -> Solver:
    """Euler's method for the probability-flow ODE, `x <- x + d_alpha x0 + d_sigma eps`.

    The ODE of any process is `dx = x0 dalpha + eps dsigma`, with the data x0 that the denoiser
    expects and the noise eps that leads from them to x (Song et al. 2021, SDE, eq. 13; Lipman et
    al. 2023); its Euler step is `ddim` without noise, `alpha_s x0 + sigma_s eps`.
    """
    return ddim()


def data_and_noise(
    denoise: Callable[[Array, Level], Denoised], x: Float[Array, "batch *dims"], step: Step
) -> tuple[Float[Array, "batch *dims"], Float[Array, "batch *dims"]]:
    """The data that a denoiser expects of x at the start of a step, and the noise in x.

    Clean data, where a step starts from them, are what they are; the noise is asked for at the
    level that the step leads to.

    Args:
        denoise: The denoiser, which has its condition.
        x: What the solver has.
        step: The step.
    """
    clean = step.start.sigma == 0
    asked = jax.tree.map(lambda there, here: jnp.where(clean, there, here), step.end, step.start)
    x0 = denoise(x, asked).x0
    eps = to_eps(x0, x, asked)
    return jnp.where(expand(clean, x.ndim), x, x0), eps


def check_falling(step: Step, name: str) -> None:
    """Refuses levels that rise, for a solver that leads to data alone.

    Args:
        step: A step of it.
        name: Name of the solver.

    Raises:
        ValueError: if they rise.
    """
    if step.posterior is None:
        raise ValueError(f"levels must fall for {name}, got reversed ones")


def _no_state(x: Float[Array, "batch *dims"]) -> PyTree:
    return ()
