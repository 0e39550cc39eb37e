"""The pictures that can be drawn of a family, which follow from the functions it has.

A picture is `(variables, batch, key, rows, columns) -> images in model space`, row by row and
`columns` a row, of a family of images; `batch` holds `rows * columns` held-out examples.

    name               needs                          shows
    interpolation      latents with a prior, decode   paths between random latents
    conditions         these or sample, and a sweep   one row a condition, one latent a column
    between_conditions these, and a sweep             one latent a row, from condition to condition
    latent_plane       these, and two latents         the whole latent space
    reconstructions    encode, decode                 examples above their reconstructions
    codes              these, of a map of codes       and above which code is where, as colours
    between_examples   latents, encode, decode        paths between examples
    traversal          latents of one vector          one latent varied a row
    completions        complete                       lower halves drawn anew
    denoising          denoising                      samples on their way from noise
    image_to_image     denoising                      examples noised ever more, denoised again
    variations         denoising                      examples that are like others
    guidance           denoising, and a sweep         one row a condition, scales of guidance
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.conditioning.base import between, condition_of
from jaxgen.core import Batch, Family, PyTree, Variables
from jaxgen.training import code_pictures, denoising_pictures
from jaxgen.training.denoising_pictures import Picture

LIMIT = 3.0
"""Standard deviations of the prior that a traversal goes to."""


def of(family: Family) -> Mapping[str, Picture]:
    """The pictures that a family of images has the functions for, by name."""
    pictures: dict[str, Picture] = {}
    sweep = None if family.conditioning is None else family.conditioning.sweep
    # Without a sweep there are conditions of which only the data have values.
    known = family.conditioning is None or sweep is not None
    if family.latents is not None and family.decode is not None:
        if family.latents.draw is not None and known:
            pictures["interpolation"] = interpolation(family)
            if sweep is not None:
                pictures["conditions"] = condition_sweep(family)
                pictures["between_conditions"] = between_conditions(family)
            elif family.latents.width == 2:
                pictures["latent_plane"] = latent_plane(family)
        if family.encode is not None:
            pictures["between_examples"] = between_examples(family)
            if family.latents.width is not None:
                pictures["traversal"] = traversal(family)
    if family.encode is not None and family.decode is not None:
        pictures["reconstructions"] = reconstructions(family)
        if family.num_codes is not None:
            pictures["codes"] = code_pictures.code_maps(family)
    if family.sample is not None and sweep is not None and "conditions" not in pictures:
        pictures["conditions"] = sampled_conditions(family)
    if family.complete is not None:
        pictures["completions"] = completions(family)
    if family.denoising is not None:
        pictures["denoising"] = denoising_pictures.way_from_noise(family)
        pictures["image_to_image"] = denoising_pictures.image_to_image(family)
        pictures["variations"] = denoising_pictures.variations(family)
        if sweep is not None:
            pictures["guidance"] = denoising_pictures.guidance(family)
    return pictures


def in_turn(family: Family, num: int, rows: np.ndarray | None = None) -> np.ndarray | None:
    """Conditions of `num` samples: those of the sweep, each for an equal number of samples.

    None for an unconditional family.

    Args:
        family: Family to sample.
        num: Number of samples.
        rows: Conditions in the place of the sweep's, [rows, *shape], or None.

    Raises:
        ValueError: If the family's conditions have no sweep.
    """
    if family.conditioning is None:
        return None
    sweep = family.conditioning.sweep if rows is None else rows
    if sweep is None:
        raise ValueError(
            f"the model is conditioned on {family.conditioning.key!r}, of which there is no sweep: "
            "call its sample function with conditions of your own"
        )
    return np.asarray(sweep)[np.arange(num) * len(sweep) // num]


def interpolation(family: Family) -> Picture:
    """Each row goes from one random latent to another, in a conditional family under one condition.

    Args:
        family: Family with `latents` that can be drawn, and `decode`.
    """
    latents, draw_latents = family.latents, _prior(family)
    assert latents is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_start, key_end, key_decode = jax.random.split(key, 3)
        start, end = (draw_latents(k, rows) for k in (key_start, key_end))
        path = _by_row(latents.interpolate(start, end, columns))
        condition = None
        if family.conditioning is not None:
            sweep = np.asarray(family.conditioning.sweep)
            condition = jnp.asarray(sweep[np.repeat(np.arange(rows) % len(sweep), columns)])
        return _decode(family, variables, path, key_decode, condition)

    return draw


def condition_sweep(family: Family) -> Picture:
    """One row a condition, one latent a column: what the condition changes and what it leaves.

    The rows are the conditioning's sweep, whatever number of rows is given.

    Args:
        family: Conditional family with a sweep, `latents` that can be drawn, and `decode`.
    """
    draw_latents, conditioning = _prior(family), family.conditioning
    assert conditioning is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_latents, key_decode = jax.random.split(key)
        drawn = draw_latents(key_latents, columns)
        conditions = jnp.asarray(conditioning.sweep)
        many = len(conditions)
        repeated = jax.tree.map(lambda x: jnp.tile(x, (many, *(1,) * (x.ndim - 1))), drawn)
        condition = jnp.repeat(conditions, columns, axis=0)
        return _decode(family, variables, repeated, key_decode, condition)

    return draw


def sampled_conditions(family: Family) -> Picture:
    """One row a condition, one seed a column, of a family whose latents cannot be drawn.

    Each row has the same draws: of a sweep of texts, the rows are sentences and the columns seeds.
    The rows are the conditioning's sweep, whatever number of rows is given.

    Args:
        family: Conditional family with a sweep, and `sample`.
    """
    sample, conditioning = family.sample, family.conditioning
    assert sample is not None
    assert conditioning is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        def row(condition: Array) -> Array:
            given = jnp.repeat(condition[None], columns, axis=0)
            return sample(variables, key, columns, condition=given)

        drawn = jax.lax.map(row, jnp.asarray(conditioning.sweep))
        return drawn.reshape(-1, *drawn.shape[2:])

    return draw


def between_conditions(family: Family) -> Picture:
    """Each row keeps a latent, and goes from one condition to the next one of the sweep.

    What goes is what the network is told (`conditioning.base.between`): half a red hair and half a
    blue one.

    Args:
        family: Conditional family with a sweep, `latents` that can be drawn, and `decode`.
    """
    draw_latents, conditioning = _prior(family), family.conditioning
    assert conditioning is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_latents, key_decode = jax.random.split(key)
        drawn = draw_latents(key_latents, rows)
        many = len(np.asarray(conditioning.sweep))
        start, end = (
            conditioning.encode(variables, jnp.asarray(conditioning.sweep)[places % many])
            for places in (np.arange(rows), np.arange(1, rows + 1))
        )
        path = _by_row(between(start, end, columns))
        repeated = jax.tree.map(lambda z: jnp.repeat(z, columns, axis=0), drawn)
        return _decode(family, variables, repeated, key_decode, path)

    return draw


def latent_plane(family: Family) -> Picture:
    """The whole latent space of a two-dimensional model: a grid of the prior's quantiles.

    Kingma & Welling 2014, figure 4: on both axes equal steps of probability (each image stands for
    its share of the prior, n images for 1 / n each), the first latent from left to right and the
    second from bottom to top.

    Args:
        family: Unconditional family of two Gaussian latents.
    """

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        across, up = (
            jax.scipy.special.ndtri((np.arange(n, dtype=np.float32) + 0.5) / n)
            for n in (columns, rows)
        )
        z = jnp.stack([jnp.tile(across, rows), jnp.repeat(up[::-1], columns)], axis=1)
        return _decode(family, variables, z, key, None)

    return draw


def reconstructions(family: Family) -> Picture:
    """Rows of examples, each above the row of their reconstructions; at least one pair of rows.

    Args:
        family: Family with `encode` and `decode`.
    """

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_encode, key_decode = jax.random.split(key)
        pairs = max(1, rows // 2)
        chosen = jax.tree.map(lambda v: v[: pairs * columns], dict(batch))
        x, latents = chosen["image"], _encode(family, variables, chosen, key_encode)
        condition = condition_of(family.conditioning, chosen)
        rebuilt = _decode(family, variables, latents, key_decode, condition)
        both = jnp.stack([v.reshape(pairs, columns, *x.shape[1:]) for v in (x, rebuilt)], axis=1)
        return both.reshape(-1, *x.shape[1:])

    return draw


def between_examples(family: Family) -> Picture:
    """Each row goes from one example's latent to the next one's, under the first one's condition.

    Args:
        family: Family with `latents`, `encode` and `decode`.
    """
    latents = family.latents
    assert latents is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_encode, key_decode = jax.random.split(key)
        chosen = jax.tree.map(lambda v: v[:rows], dict(batch))
        start = _encode(family, variables, chosen, key_encode)
        end = jax.tree.map(lambda z: jnp.roll(z, -1, axis=0), start)
        path = _by_row(latents.interpolate(start, end, columns))
        condition = _repeated(condition_of(family.conditioning, chosen), columns)
        return _decode(family, variables, path, key_decode, condition)

    return draw


def traversal(family: Family, *, limit: float = LIMIT) -> Picture:
    """One row a latent of the first example, set to values from -limit to limit, the others kept.

    The rows are the latents whose means vary most over the batch, most varied first: as many as
    there are rows, or all where there are fewer.

    Args:
        family: Family whose latents are one vector, with `encode` and `decode`.
        limit: Greatest value of a latent, in standard deviations of the prior.

    Raises:
        ValueError: If `limit` is not positive.
    """
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    width = None if family.latents is None else family.latents.width
    assert width is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_encode, key_decode = jax.random.split(key)
        latents = _encode(family, variables, batch, key_encode)
        chosen = jnp.argsort(-jnp.var(latents, axis=0))[:rows]
        moved = jax.nn.one_hot(chosen, width)[:, None]  # [rows, 1, D]
        values = jnp.linspace(-limit, limit, columns)[None, :, None]
        z = latents[0].reshape(1, 1, -1) * (1 - moved) + values * moved
        z = z.reshape(-1, width)
        condition = condition_of(family.conditioning, batch)
        first = None if condition is None else condition[:1]
        return _decode(family, variables, z, key_decode, _repeated(first, z.shape[0]))

    return draw


def attribute_direction(
    family: Family,
    without: Callable[[], Batch],
    having: Callable[[], Batch],
    *,
    strength: float = 1.5,
) -> Picture:
    """Each row moves an example without an attribute towards having it (latent arithmetic).

    The direction is the difference of the mean latents of the two groups; along the columns t goes
    from 0, the reconstruction, over 1, the whole difference, to `strength`. The rows are the first
    examples of `without`.

    Args:
        family: Family whose latents are one vector, with `encode` and `decode`.
        without: Function that returns a prepared batch of examples without the attribute; it is
            called when the picture is drawn.
        having: Function that returns a prepared batch of examples with the attribute.
        strength: Greatest multiple of the difference that is added.
    """

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_encode, key_decode = jax.random.split(key)
        group = without()
        start, end = (_encode(family, variables, g, key_encode) for g in (group, having()))
        direction = end.mean(axis=0) - start.mean(axis=0)
        t = jnp.linspace(0.0, strength, columns).reshape(-1, 1, 1)
        path = _by_row(start[None, :rows] + t * direction.reshape(1, 1, -1))
        condition = condition_of(family.conditioning, group)
        first = None if condition is None else condition[:rows]
        return _decode(family, variables, path, key_decode, _repeated(first, columns))

    return draw


def completions(family: Family) -> Picture:
    """Each row: a held-out example, its upper half, and the family's completions of it.

    Args:
        family: Family with `complete`.
    """
    complete = family.complete
    assert complete is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        x = batch["image"][:rows]
        known = jnp.arange(x.shape[1]) < x.shape[1] // 2
        half = jnp.where(known[None, :, None, None], x, -1.0)
        num = max(columns - 2, 1)
        given = jnp.repeat(x, num, axis=0)
        condition = condition_of(family.conditioning, batch)
        completed = complete(
            variables,
            key,
            given,
            jnp.broadcast_to(known[None, :, None], given.shape[:3]),
            condition=_repeated(None if condition is None else condition[:rows], num),
        ).reshape(rows, num, *x.shape[1:])
        drawn = jnp.concatenate([x[:, None], half[:, None], completed], axis=1)
        return drawn[:, :columns].reshape(-1, *x.shape[1:])

    return draw


def _prior(family: Family) -> Callable[[Any, int], PyTree]:
    draw = None if family.latents is None else family.latents.draw
    assert draw is not None
    return draw


def _encode(family: Family, variables: Variables, batch: Batch, key) -> PyTree:
    assert family.encode is not None
    return family.encode(variables, batch, key)


def _decode(family: Family, variables: Variables, latents: PyTree, key, condition) -> Array:
    assert family.decode is not None
    return family.decode(variables, latents, key, condition=condition)


def _repeated(condition: Array | None, times: int) -> Array | None:
    return None if condition is None else jnp.repeat(condition, times, axis=0)


def _by_row(path: PyTree) -> PyTree:
    """[columns, rows, ...] -> [rows * columns, ...], row by row."""
    return jax.tree.map(lambda z: z.swapaxes(0, 1).reshape(-1, *z.shape[2:]), path)
