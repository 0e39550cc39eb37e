"""Editing on the way between data and noise, by any denoiser, levels and solver.

    strip(...)             what a solver has along the way from noise to data
    image_to_image(...)    noised examples, denoised again: variations, drawings made into images
    inpainting(...)        a solver that keeps what is known of examples
    invert(...)            the noise that a deterministic solver turns into examples
    interpolate(...)       from one example to another through their noise

What is told to the denoiser is its `condition`, as in `jaxgen.sampling.solvers.solve`; guidance is
a part of the denoiser. Call these under `jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgen.checks import check_same_shape
from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.levels import Levels, remaining, reverse
from jaxgen.noise.parametrization import Denoise
from jaxgen.noise.process import Level, expand, q_sample
from jaxgen.sampling import latent
from jaxgen.sampling.solvers import Solver, Step, check_falling, solve, solve_with_state


def strip(
    denoise: Denoise,
    levels: Levels,
    solver: Solver,
    key: Key[Array, ""],
    x: Float[Array, "batch *dims"],
    num: int,
    *,
    condition: Any = None,
) -> tuple[Float[Array, "num batch *dims"], Level]:
    """What a solver has at evenly spaced steps, from its start to its result.

    Args:
        denoise: The denoiser.
        levels: The levels to visit.
        solver: The solver.
        key: The PRNG key of the steps' noise.
        x: The start, at the first level.
        num: The number of moments, both ends included, at least 2.
        condition: What the denoiser is told.

    Returns:
        The values `[num, B, ...]`, and their levels, arrays `[num]`.

    Raises:
        ValueError: if `num` is below 2, and what `solve` raises.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, got {num}")
    moments = jnp.round(jnp.arange(num) * (levels.num_steps / (num - 1))).astype(jnp.int32)

    def init(x: Array) -> PyTree:
        return solver.init(x), jnp.zeros((num, *x.shape), x.dtype)

    def step(ask: Any, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        inner, seen = state
        seen = jnp.where(expand(moments == step.done, seen.ndim), x, seen)
        x, inner = solver.step(ask, step, x, inner, key)
        return x, (inner, seen)

    recording = Solver(init, step)
    last, (_, seen) = solve_with_state(denoise, levels, recording, key, x, condition=condition)
    level = jax.tree.map(lambda values: jnp.asarray(values)[moments], levels.level)
    return seen.at[-1].set(last), level


def image_to_image(
    denoise: Denoise,
    levels: Levels,
    solver: Solver,
    key: Key[Array, ""],
    x0: Float[Array, "batch *dims"],
    done: int | Int[Array, ""],
    *,
    condition: Any = None,
) -> Float[Array, "batch *dims"]:
    """Examples noised to the level after `done` steps and denoised again.

    SDEdit (Meng et al. 2022). The later the start, the more is kept of them. With several keys
    these are an example's variations; of a drawing it makes an image like the data.

    Args:
        denoise: The denoiser.
        levels: The levels of the whole way, from noise to data.
        solver: The solver.
        key: The PRNG key of the noise.
        x0: The examples.
        done: The number of steps that are left out; 0 keeps next to nothing. It may be traced.
        condition: What the denoiser is told.

    Raises:
        ValueError: if the steps are out of range, or the levels rise; and what `solve` raises.
    """
    if levels.posterior is None:
        raise ValueError("levels must fall for image_to_image, got reversed ones")
    rest = remaining(levels, done)
    key_start, key_steps = jax.random.split(key)
    level = jax.tree.map(lambda v: jnp.full(x0.shape[:1], v[0]), rest.level)
    noisy = q_sample(x0, standard_normal(key_start, x0.shape), level)
    return solve(denoise, rest, solver, key_steps, noisy, condition=condition)


def inpainting(
    solver: Solver,
    given: Float[Array, "batch *dims"],
    known: Bool[Array, "*known_dims"],
    *,
    repeats: int = 1,
) -> Solver:
    """A solver that puts what is known of examples in its place after each step, noised alike.

    Unknown parts are drawn to suit them (Song et al. 2021, SDE, appendix I.2). With `repeats` each
    step but the last is taken so many times, with the process's own noise to go back before each:
    unknown and known parts agree better (Lugmayr et al. 2022, RePaint, algorithm 1, whose jumps are
    of one step; their images are made with jumps of ten).

    Args:
        solver: The solver of the steps.
        given: The examples; what is not known of them does not matter.
        known: Whether a number of an example is known.
        repeats: The number of times that each step is taken, at least 1.

    Raises:
        ValueError: if the shapes differ, or `repeats` is below 1.
    """
    check_same_shape(given=given, known=known)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")

    def step(ask: Any, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "inpainting")
        posterior = step.posterior
        assert posterior is not None

        def once(i: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            key_step, key_known, key_back = jax.random.split(jax.random.fold_in(key, i), 3)
            ratio, width = step.start.alpha / step.end.alpha, jnp.sqrt(posterior.added)
            back = expand(ratio, x.ndim) * carry[0]
            back = back + expand(width, x.ndim) * standard_normal(key_back, x.shape)
            start = jnp.where(i == 0, x, back)
            end, after = solver.step(ask, step, start, state, key_step)
            noisy = q_sample(given, standard_normal(key_known, x.shape), step.end)
            return jnp.where(known, noisy, end), after

        times = jnp.where(step.left == 1, 1, repeats)
        return jax.lax.fori_loop(0, times, once, (x, state))

    return Solver(solver.init, step)


def invert(
    denoise: Denoise,
    levels: Levels,
    solver: Solver,
    x0: Float[Array, "batch *dims"],
    *,
    condition: Any = None,
) -> Float[Array, "batch *dims"]:
    """The noise from which a deterministic solver draws examples, up to the error of its steps.

    The probability-flow ODE solved backwards (Song et al. 2021, DDIM, section 4.3), by the same
    solver on the same levels.

    Args:
        denoise: The denoiser, not clipped.
        levels: The levels from noise to data.
        solver: A solver that follows rising levels, such as `ddim()` or `heun()`.
        x0: The examples.
        condition: What the denoiser is told.

    Raises:
        ValueError: if the solver leads to data alone, and what `solve` raises.
    """
    return solve(denoise, reverse(levels), solver, jax.random.key(0), x0, condition=condition)


def interpolate(
    denoise: Denoise,
    levels: Levels,
    solver: Solver,
    start: Float[Array, "batch *dims"],
    end: Float[Array, "*end_dims"],
    num: int,
    *,
    condition: Any = None,
) -> Float[Array, "num batch *dims"]:
    """From examples to others: inverted, mixed on the sphere, and drawn again (DDIM, section 5.3).

    Args:
        denoise: The denoiser, not clipped.
        levels: The levels from noise to data.
        solver: A solver that follows rising levels, such as `ddim()` or `heun()`.
        start: The examples at one end.
        end: The examples at the other.
        num: The number of moments, both ends included, at least 2.
        condition: What the denoiser is told, along the whole way.

    Raises:
        ValueError: if the shapes differ, `num` is below 2, and what `solve` raises.
    """
    check_same_shape(start=start, end=end)
    ends = [invert(denoise, levels, solver, x, condition=condition) for x in (start, end)]
    way = between(ends[0], ends[1], num)
    tiled = jax.tree.map(lambda v: jnp.tile(v, (num, *(1,) * (v.ndim - 1))), condition)
    flat = way.reshape(-1, *start.shape[1:])
    drawn = solve(denoise, levels, solver, jax.random.key(0), flat, condition=tiled)
    return drawn.reshape(way.shape)


def between(
    start: Float[Array, "batch *dims"], end: Float[Array, "batch *dims"], num: int
) -> Float[Array, "num batch *dims"]:
    """Noise on the sphere between two: `jaxgen.sampling.latent.interpolate` of whole examples.

    Args:
        start: The noise at one end.
        end: The noise at the other.
        num: The number of moments, both ends included, at least 2.
    """
    a, b = (x.reshape(len(x), -1) for x in (start, end))
    flat = latent.interpolate(a, b, num)
    return flat.reshape(num, *start.shape)
