"""Pictures of families of denoisers: the way from noise, guidance, and examples that are edited.

They are pictures as in `jaxgen.training.pictures`, which names them and says what each needs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.conditioning import base as conditions
from jaxgen.core import Batch, Denoising, Family, Variables
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.levels import Levels
from jaxgen.noise.process import expand
from jaxgen.sampling import editing
from jaxgen.sampling.solvers import solve

Picture = Callable[[Variables, Batch, Any, int, int], Array]
_LEAST, _MOST = 0.1, 10.0  # noise-to-signal ratios from which examples are drawn again
_VARIED = 1.0  # the ratio of variations


def way_from_noise(family: Family) -> Picture:
    """Samples on their way from noise, each above the data that the denoiser expects of it then.

    Noisy images are shown at unit variance, `x / sqrt(alpha^2 + sigma^2)`. There is at least one
    pair of rows; in a conditional family samples are encoded the examples' conditions.

    Args:
        family: Family with `denoising`.
    """
    parts = _parts(family)

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        pairs = max(1, rows // 2)
        encoded = _encoded(family, variables, batch, pairs)
        key_start, key_steps = jax.random.split(key)
        start = parts.process.prior_std * standard_normal(key_start, (pairs, *parts.shape))
        denoise, levels = parts.denoiser(variables), parts.levels(parts.num_steps)
        args = (denoise, levels, parts.solver, key_steps, start, columns)
        x, level = editing.strip(*args, condition=encoded)
        flat = jax.tree.map(lambda v: jnp.repeat(v, pairs), level)
        each = jax.tree.map(lambda v: jnp.tile(v, (columns, *(1,) * (v.ndim - 1))), encoded)
        expected = denoise(x.reshape(-1, *parts.shape), flat, each).x0.reshape(x.shape)
        expected = jnp.where(expand(level.sigma, x.ndim) > 0, expected, x)
        shown = x / expand(jnp.sqrt(jnp.square(level.alpha) + jnp.square(level.sigma)), x.ndim)
        both = jnp.stack([shown, expected])  # [2, columns, pairs, ...]
        return jnp.moveaxis(both, 2, 0).reshape(-1, *parts.shape)

    return draw


def image_to_image(family: Family) -> Picture:
    """Each row: an example, and what becomes of it when it is noised ever more and denoised again.

    The ratio of noise to signal goes from 0.1 to 10, evenly in its logarithm.

    Args:
        family: Family with `denoising`.
    """
    parts = _parts(family)

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        x = batch["image"][:rows]
        encoded = _encoded(family, variables, batch, rows)
        levels = parts.levels(parts.num_steps)

        def redrawn(ratio: Array) -> Array:
            args = (parts.denoiser(variables), levels, parts.solver, key, x)
            return editing.image_to_image(*args, _steps_to(levels, ratio), condition=encoded)

        redone = jax.lax.map(redrawn, jnp.asarray(ratios(columns)))
        drawn = jnp.concatenate([x[None], redone])[:columns]
        return drawn.swapaxes(0, 1).reshape(-1, *parts.shape)

    return draw


def ratios(columns: int) -> Float[np.ndarray, "ratios"]:
    """The ratios of noise to signal of `image_to_image`, after the column of examples.

    Args:
        columns: Number of columns of the picture.
    """
    return np.geomspace(_LEAST, _MOST, max(columns - 1, 1), dtype=np.float32)


def variations(family: Family) -> Picture:
    """Each row: an example, and others that its noised form, half signal and half noise, leads to.

    Args:
        family: Family with `denoising`.
    """
    parts = _parts(family)

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        x, num = batch["image"][:rows], max(columns - 1, 1)
        encoded = conditions.repeat(_encoded(family, variables, batch, rows), num)
        levels = parts.levels(parts.num_steps)
        done = _steps_to(levels, jnp.float32(_VARIED))
        args = (parts.denoiser(variables), levels, parts.solver, key, jnp.repeat(x, num, axis=0))
        drawn = editing.image_to_image(*args, done, condition=encoded)
        both = jnp.concatenate([x[:, None], drawn.reshape(rows, num, *parts.shape)], axis=1)
        return both[:, :columns].reshape(-1, *parts.shape)

    return draw


def guidance(family: Family) -> Picture:
    """One row a condition, one scale of guidance a column: 0, which is without a condition, 1, 2...

    All are drawn from the same noise. The rows are the conditioning's sweep, whatever number of
    rows is given.

    Args:
        family: Conditional family with a sweep and `denoising`.
    """
    parts = _parts(family)
    assert family.conditioning is not None
    sweep = np.asarray(family.conditioning.sweep)

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        many = len(sweep)
        encoded = parts.encode_condition(variables, jnp.repeat(jnp.asarray(sweep), columns, axis=0))
        scales = jnp.tile(jnp.arange(columns, dtype=jnp.float32), many)
        key_start, key_steps = jax.random.split(key)
        start = parts.process.prior_std * standard_normal(key_start, (1, *parts.shape))
        start = jnp.broadcast_to(start, (many * columns, *parts.shape))
        denoise = parts.denoiser(variables, scale=scales)
        levels = parts.levels(parts.num_steps)
        return solve(denoise, levels, parts.solver, key_steps, start, condition=encoded)

    return draw


def _parts(family: Family) -> Denoising:
    assert family.denoising is not None
    return family.denoising


def _encoded(family: Family, variables: Variables, batch: Batch, num: int) -> Any:
    """What the denoiser is told of the first examples."""
    condition = conditions.condition_of(family.conditioning, batch)
    return _parts(family).encode_condition(
        variables, None if condition is None else condition[:num]
    )


def _steps_to(levels: Levels, ratio: Float[Array, ""]) -> Int[Array, ""]:
    """The number of steps after which noise is at most so much of the signal; not all of them."""
    visited = jnp.arange(len(levels.level.alpha)) < levels.num_steps
    above = levels.level.sigma > ratio * levels.level.alpha
    return jnp.minimum(jnp.sum(visited & above), levels.num_steps - 1)
