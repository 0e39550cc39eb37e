"""Ancestral sampling, one position after another: with a cache, and without.

A network that gives each position's distribution from those before it is sampled by drawing the
positions in order. `ancestral` needs the work of one position at a time, from a cache that the
network keeps, and `ancestral_by_row` that of a row now and then; `naive_ancestral` runs the whole
network at each position. With one key all of them draw the same values. A value may be a number or
a pixel.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxgen.distributions.elementwise import categorical_sample, likeliest
from jaxgen.distributions.logistic import mixture_of_logistics_sample

Cache = Any
Step = Callable[[Cache, Array, Array], tuple[Array, Cache]]
Draw = Callable[[Array, Array], Array]
Values = Shaped[Array, "batch positions *value"]
Given = Shaped[Array, "..."]
Known = Bool[Array, "..."]


def ancestral(
    step: Step,
    cache: Cache,
    start: Shaped[Array, "batch *value"],
    key: Key[Array, ""],
    num_steps: int,
    draw: Draw,
    *,
    first: Int[Array, ""] | int = 0,
    given: Given | None = None,
    known: Known | None = None,
) -> tuple[Values, Cache]:
    """Draws `num_steps` positions in order, in one compiled loop.

    Position t's randomness is `fold_in(key, t)`, so that a sequence drawn in parts, each from the
    cache and last value of the part before it, is the one drawn at once.

    Args:
        step: The network's work `(cache, previous, t) -> (params, cache)`: it takes in the value
            [B, ...] of position t - 1, and returns the parameters [B, ...] of position t's
            distribution.
        cache: Cache of the network before the position `first`.
        start: Value before the position `first`: the last one drawn, or whatever the network takes
            for the position before the first.
        key: PRNG key of all draws.
        num_steps: Number of positions to draw, at least 1.
        draw: Function `(key, params) -> values` [B, ...], of the shape and dtype of `start`.
        first: Number t of the first position to draw.
        given: Values `[batch, num_steps, ...]` to keep where `known` says so, or None.
        known: Mask `[batch, num_steps]`, true where `given` is taken in place of a draw, or None.

    Returns:
        The values `[batch, num_steps, ...]` and the cache after them, in which the last value is
        not yet taken in.

    Raises:
        ValueError: No steps, or `given` and `known` of wrong shapes or one without the other.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    check_completion(given, known, (start.shape[0], num_steps, *start.shape[1:]))

    def body(carry: tuple[Cache, Array], i: Array) -> tuple[tuple[Cache, Array], Array]:
        cache, previous = carry
        t = first + i
        params, cache = step(cache, previous, t)
        value = draw(jax.random.fold_in(key, t), params)
        if given is not None and known is not None:
            value = _where(known[:, i], given[:, i], value)
        return (cache, value), value

    (cache, _), values = jax.lax.scan(body, (cache, start), jnp.arange(num_steps))
    return jnp.moveaxis(values, 0, 1), cache


def ancestral_by_row(
    begin_row: Callable[[Cache, Array, Array], tuple[Step, Cache]],
    cache: Cache,
    blank: Shaped[Array, "batch rows columns *value"],
    key: Key[Array, ""],
    draw: Draw,
    *,
    given: Given | None = None,
    known: Known | None = None,
) -> Shaped[Array, "batch rows columns *value"]:
    """Draws images in raster order, by networks that do part of their work a row at a time.

    The same values as by `ancestral`, with position t = row * columns + column.

    Args:
        begin_row: The network's work of a row, `(cache, values of the row above
            [batch, columns, ...], row) -> (step, cache)`; `step` as in `ancestral`, for the
            positions of that row.
        cache: Cache of the network before the first row.
        blank: Any values of the wanted shape and dtype; they stand above the first row and before
            the first position.
        key: PRNG key of all draws.
        draw: Function `(key, params) -> values` [B, ...].
        given: Values of `blank`'s shape to keep where `known` says so, or None.
        known: Mask of the positions' shape, true where `given` is taken instead of a draw, or None.

    Returns:
        The values, of `blank`'s shape.

    Raises:
        ValueError: `given` and `known` of wrong shapes, or one without the other.
    """
    check_completion(given, known, blank.shape, positions=2)
    rows, columns = blank.shape[1:3]

    def body(carry: tuple[Cache, Array], row: Array) -> tuple[tuple[Cache, Array], Array]:
        cache, above = carry
        step, cache = begin_row(cache, above, row)
        values, cache = ancestral(
            step,
            cache,
            above[:, -1],
            key,
            columns,
            draw,
            first=row * columns,
            given=None if given is None else given[:, row],
            known=None if known is None else known[:, row],
        )
        return (cache, values), values

    _, values = jax.lax.scan(body, (cache, blank[:, 0]), jnp.arange(rows))
    return jnp.moveaxis(values, 0, 1)


def naive_ancestral(
    forward: Callable[[Array], Array],
    blank: Values,
    key: Key[Array, ""],
    draw: Draw,
    *,
    given: Given | None = None,
    known: Known | None = None,
) -> Values:
    """Draws every position by a whole forward pass each: what `ancestral` is checked against.

    Args:
        forward: The network: values `[batch, positions, ...]` to parameters
            `[batch, positions, ...]`, those of a position by the values before it alone.
        blank: Any values of the wanted shape and dtype; overwritten in order.
        key: PRNG key of all draws.
        draw: Function `(key, params of one position) -> values` [B, ...].
        given: Values of `blank`'s shape to keep where `known` says so, or None.
        known: Mask of the positions' shape, true where `given` is taken instead of a draw, or None.

    Returns:
        The values, of `blank`'s shape.

    Raises:
        ValueError: `given` and `known` of wrong shapes, or one without the other.
    """
    check_completion(given, known, blank.shape)

    def body(t: Array, values: Array) -> Array:
        value = draw(jax.random.fold_in(key, t), forward(values)[:, t])
        if given is not None and known is not None:
            value = _where(known[:, t], given[:, t], value)
        return values.at[:, t].set(value)

    return jax.lax.fori_loop(0, blank.shape[1], body, blank)


def check_completion(given: Any, known: Any, shape: tuple[int, ...], positions: int = 1) -> None:
    """Checks what a completion is given, or that it is given nothing.

    Args:
        given: Values to keep, or None.
        known: Mask of the positions that are kept, or None.
        shape: Shape of the values, `(batch, *positions, *value)`.
        positions: Number of axes of positions.

    Raises:
        ValueError: `given` without `shape`, `known` without that of the batch and the positions,
            or one without the other.
    """
    if (given is None) != (known is None):
        raise ValueError("given and known must be given together, or neither")
    if given is None:
        return
    if tuple(given.shape) != tuple(shape):
        raise ValueError(f"given must have the shape {tuple(shape)}, got {tuple(given.shape)}")
    wanted = tuple(shape[: 1 + positions])
    if tuple(known.shape) != wanted:
        raise ValueError(f"known must have the shape {wanted}, got {tuple(known.shape)}")


def draw_categorical(temperature: float = 1.0) -> Draw:
    """Draws classes by logits divided by a temperature: below 1 the likely become likelier.

    Args:
        temperature: Divisor of the logits, at least 0; at 0 the likeliest class is taken.

    Returns:
        A function `(key, logits [..., V]) -> i32[...]`, `NO_CLASS` where a logit is NaN.

    Raises:
        ValueError: A temperature that is negative or not finite.
    """
    _check_temperature(temperature)
    if temperature == 0:
        return lambda key, logits: likeliest(logits)

    def draw(key: Key[Array, ""], logits: Float[Array, "..."]) -> Array:
        return categorical_sample(key, logits.astype(jnp.float32) / temperature)

    return draw


def draw_mixture_of_logistics(temperature: float = 1.0, num_bins: int = 256) -> Draw:
    """Draws pixels by PixelCNN++'s mixtures: logits divided, and scales multiplied, by T.

    Args:
        temperature: Temperature T, positive and finite.
        num_bins: Number of values that a channel can take.

    Returns:
        A function `(key, params [..., rows, M]) -> pixels [..., C]` of bin centres in [-1, 1].

    Raises:
        ValueError: A temperature that is not positive, or not finite.
    """
    _check_temperature(temperature)
    if temperature == 0:
        raise ValueError("temperature must be positive for a mixture of logistics, got 0")

    def draw(key: Key[Array, ""], params: Float[Array, "..."]) -> Array:
        return mixture_of_logistics_sample(key, params.astype(jnp.float32), num_bins, temperature)

    return draw


def _where(known: Array, given: Array, drawn: Array) -> Array:
    return jnp.where(known.reshape(known.shape + (1,) * (drawn.ndim - 1)), given, drawn)


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
