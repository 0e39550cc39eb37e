"""Pictures of what a family with an encoder does with examples: rebuild them, walk about them.

Each function makes a `Picture` for `Experiment.pictures`, which is given held-out examples. Of a
conditional family `condition_key` names the batch's entry that both networks are told.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.core import Batch, Family
from jaxgen.sampling.latent import interpolate
from jaxgen.training import pictures
from jaxgen.training.experiment import Picture


def reconstructions(family: Family, *, condition_key: str | None = None) -> Picture:
    """Rows of examples, each above the row of what the family makes of them; at least one pair."""

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        encode, decode = _networks(family, params, model_state, key)
        pairs = max(1, rows // 2)
        chosen = jax.tree.map(lambda v: v[: pairs * columns], dict(batch))
        x = chosen["image"]
        rebuilt = decode(encode(chosen), _told(chosen, condition_key))
        both = jnp.stack([v.reshape(pairs, columns, *x.shape[1:]) for v in (x, rebuilt)], axis=1)
        return both.reshape(-1, *x.shape[1:])

    return draw


def between_examples(
    family: Family, *, path: str = "spherical", condition_key: str | None = None
) -> Picture:
    """Each row goes from one example's latent to the next one's, under the first one's condition.

    Args:
        family: one of continuous latents.
        path: "linear" or "spherical".
        condition_key: see the module.
    """

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        encode, decode = _networks(family, params, model_state, key)
        chosen = jax.tree.map(lambda v: v[:rows], dict(batch))
        start = encode(chosen)
        ways = interpolate(start, jnp.roll(start, -1, axis=0), columns, path)
        return decode(_by_row(ways), _repeated(_told(chosen, condition_key), columns))

    return draw


def traversal(
    family: Family, latent_dim: int, *, limit: float = 3.0, condition_key: str | None = None
) -> Picture:
    """One row a latent of the first example, set to values from -limit to limit, the others kept.

    The rows are the latents whose means vary most over the batch, most varied first: as many as
    asked for, or all where there are fewer.

    Args:
        family: one of continuous latents.
        latent_dim: their width.
        limit: in standard deviations of the prior.
        condition_key: see the module.

    Raises:
        ValueError: if `limit` is not positive.
    """
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        encode, decode = _networks(family, params, model_state, key)
        latents = encode(batch)
        chosen = jnp.argsort(-jnp.var(latents, axis=0))[:rows]
        moved = jax.nn.one_hot(chosen, latent_dim)[:, None]  # [rows, 1, D]
        values = jnp.linspace(-limit, limit, columns)[None, :, None]
        z = latents[0].reshape(1, 1, -1) * (1 - moved) + values * moved
        z = z.reshape(-1, latent_dim)
        told = _told(batch, condition_key)
        return decode(z, _repeated(None if told is None else told[:1], z.shape[0]))

    return draw


def attribute_direction(
    family: Family,
    without: Callable[[], Batch],
    having: Callable[[], Batch],
    *,
    strength: float = 1.5,
    condition_key: str | None = None,
) -> Picture:
    """Each row moves an example without an attribute towards having it (latent arithmetic).

    The direction is the difference of the mean latents of the two groups; along the columns t goes
    from 0, the reconstruction, over 1, the whole difference, to `strength`. The rows are the first
    examples of `without`.

    Args:
        family: one of continuous latents.
        without: makes the prepared batch of examples without the attribute, when it is drawn.
        having: the same of those with it.
        strength: how far to go, in differences.
        condition_key: see the module.
    """

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        encode, decode = _networks(family, params, model_state, key)
        group = without()
        start, end = encode(group), encode(having())
        direction = end.mean(axis=0) - start.mean(axis=0)
        t = jnp.linspace(0.0, strength, columns).reshape(-1, 1, 1)
        ways = start[None, :rows] + t * direction.reshape(1, 1, -1)
        told = _told(group, condition_key)
        return decode(_by_row(ways), _repeated(None if told is None else told[:rows], columns))

    return draw


def latent_plane(family: Family, *, condition: Any = None) -> Picture:
    """The whole latent space of a two-dimensional model: a grid of the prior's quantiles.

    Kingma & Welling 2014, figure 4: on both axes equal steps of probability (each image stands for
    its share of the prior, n images for 1 / n each), the first latent from left to right and the
    second from bottom to top.

    Args:
        family: one of two Gaussian latents.
        condition: one condition for the whole picture, of a conditional family.
    """

    def draw(params, model_state, batch, key, rows: int, columns: int) -> Array:
        _, decode = _networks(family, params, model_state, key)
        across, up = (
            jax.scipy.special.ndtri((np.arange(n, dtype=np.float32) + 0.5) / n)
            for n in (columns, rows)
        )
        z = jnp.stack([jnp.tile(across, rows), jnp.repeat(up[::-1], columns)], axis=1)
        told = None if condition is None else jnp.asarray(condition)[None]
        return decode(z, _repeated(told, z.shape[0]))

    return draw


def _networks(family: Family, params, model_state, key):
    """`encode(batch)` and `decode(latents, condition)`."""
    encoder = family.encode
    assert encoder is not None
    key_encode, key_decode = jax.random.split(key)

    def encode(batch):
        return encoder(params, model_state, batch, key_encode)

    def decode(latents, condition):
        return pictures.decode(family, params, model_state, latents, key_decode, condition)

    return encode, decode


def _told(batch, condition_key: str | None) -> Array | None:
    return None if condition_key is None else batch[condition_key]


def _repeated(condition, times: int) -> Array | None:
    return None if condition is None else jnp.repeat(condition, times, axis=0)


def _by_row(ways: Array) -> Array:
    """[columns, rows, D] -> [rows * columns, D], row by row."""
    return ways.swapaxes(0, 1).reshape(-1, ways.shape[-1])
