"""Pictures of what a family with a decoder has learned: paths between latents, sweeps.

Each function makes a `Picture` for `Experiment.pictures`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.core import Family
from jaxgen.sampling.latent import interpolate, normal_latents
from jaxgen.training.experiment import Picture


def interpolation(
    family: Family, latent_dim: int, *, path: str = "spherical", sweep: Any = None
) -> Picture:
    """Each row goes from one random latent to another; of a conditional family, within a condition.

    Args:
        family: one with `decode`, of Gaussian latents.
        latent_dim: their width.
        path: "linear" or "spherical".
        sweep: conditions that the rows take in turn, or None for an unconditional family.
    """

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        key_start, key_end, key_decode = jax.random.split(key, 3)
        start, end = (normal_latents(k, rows, latent_dim) for k in (key_start, key_end))
        latents = interpolate(start, end, columns, path).swapaxes(0, 1).reshape(-1, latent_dim)
        condition = None
        if sweep is not None:
            order = np.repeat(np.arange(rows) % len(sweep), columns)
            condition = jnp.asarray(sweep)[order]
        return decode(family, params, model_state, latents, key_decode, condition)

    return draw


def by_row(sweep: Any) -> Callable[[int], Array]:
    """`num -> conditions` of `num` samples, as many in turn of each: one row a condition."""
    return lambda num: jnp.asarray(sweep)[jnp.arange(num) * len(sweep) // num]


def condition_sweep(family: Family, latent_dim: int, sweep: Any) -> Picture:
    """One row a condition, one latent a column: what the condition changes and what it leaves.

    Args:
        family: one with `decode`, of Gaussian latents.
        latent_dim: their width.
        sweep: the conditions, first axis by row; the number of rows asked for does not matter.
    """

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        key_latents, key_decode = jax.random.split(key)
        latents = normal_latents(key_latents, columns, latent_dim)
        conditions = jnp.asarray(sweep)
        many = len(conditions)
        return decode(
            family,
            params,
            model_state,
            jnp.tile(latents, (many, 1)),
            key_decode,
            jnp.repeat(conditions, columns, axis=0),
        )

    return draw


def completions(family: Family, condition_key: str | None = None) -> Picture:
    """Each row: a held-out example, its upper half, and the family's completions of it.

    Args:
        family: one whose `sample` takes `given` and `known`.
        condition_key: the batch's entry that the family is told, or None.
    """

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        x = batch["image"][:rows]
        known = jnp.arange(x.shape[1]) < x.shape[1] // 2
        half = jnp.where(known[None, :, None, None], x, -1.0)
        num = max(columns - 2, 1)
        given = jnp.repeat(x, num, axis=0)
        told = None
        if condition_key is not None:
            told = jnp.repeat(batch[condition_key][:rows], num, axis=0)
        completed = family.sample(
            params,
            model_state,
            key,
            given.shape[0],
            condition=told,
            given=given,
            known=jnp.broadcast_to(known[None, :, None], given.shape[:3]),
        ).reshape(rows, num, *x.shape[1:])
        drawn = jnp.concatenate([x[:, None], half[:, None], completed], axis=1)
        return drawn[:, :columns].reshape(-1, *x.shape[1:])

    return draw


def decode(family: Family, params, model_state, latents, key, condition) -> Array:
    """`family.decode`, told the condition where there is one."""
    assert family.decode is not None
    options = {} if condition is None else {"condition": condition}
    return family.decode(params, model_state, latents, key, **options)
