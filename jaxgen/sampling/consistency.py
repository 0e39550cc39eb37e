"""The sampler of consistency models: to the data in one step, then from less noise again."""

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.process import expand
from jaxgen.sampling.solvers import Solver, Step, check_falling


def restarts(sigma_min: float = 0.002) -> Solver:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1), one evaluation a step.

        x <- x0 + sqrt(sigma_s^2 - sigma_min^2) noise

    from level t to s, where x0 is what the model says of x; the step to clean data is x0 itself.
    The levels are of a process whose data keep their factor 1, EDM's.

    Args:
        sigma_min: Level whose points the model says.

    Raises:
        ValueError: if it is negative.
    """
    if not sigma_min >= 0:
        raise ValueError(f"sigma_min must be at least 0, got {sigma_min}")

    def step(denoise, step: Step, x: Array, state: PyTree, key: Key[Array, ""]):
        check_falling(step, "consistency sampling")
        added = jnp.sqrt(jnp.maximum(jnp.square(step.end.sigma) - sigma_min**2, 0.0))
        noise = standard_normal(key, x.shape)
        return denoise(x, step.start).x0 + expand(added, x.ndim) * noise, state

    return Solver(lambda x: (), step)
