"""Latents: drawing them, cutting their tails, and the paths between two of them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice
from jaxgen.core import LatentSpace, PyTree
from jaxgen.distributions.elementwise import standard_normal

PATHS = ("linear", "spherical")


def normal_latents(
    key: Key[Array, ""], num: int, width: int, truncation: float | None = None
) -> Float[Array, "num width"]:
    """Draws `N(0, I)`, or each number of it from the interval `(-truncation, truncation)`.

    The truncation trick (Brock et al. 2019, section 3.1) redraws what falls outside: fewer unusual
    samples, less variety.

    Args:
        key: PRNG key.
        num: The number of latents.
        width: The numbers in a latent.
        truncation: The threshold, positive; None for no truncation.

    Raises:
        ValueError: a count below 1, or a truncation that is not positive.
    """
    if num < 1 or width < 1:
        raise ValueError(f"num and width must be at least 1, got {num} and {width}")
    if truncation is None:
        return standard_normal(key, (num, width))
    if not truncation > 0:
        raise ValueError(f"truncation must be positive or None, got {truncation}")
    flat = jax.random.truncated_normal(key, -truncation, truncation, (num * width,))
    return flat.reshape(num, width)


def interpolate(
    start: Float[Array, "..."],
    end: Float[Array, "..."],
    num: int,
    path: str = "spherical",
) -> Float[Array, "..."]:
    r"""The latents on the way from one to another, both ends included.

    Linear: $(1 - t) a + t b$. Spherical (Shoemake 1985; White 2016):
    $\frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b$ with
    $\omega$ the angle between a and b, which keeps to the shell where Gaussian latents lie. Between
    parallel latents, where that is 0/0, it is linear.

    Args:
        start: The latent a, `[..., width]`.
        end: The latent b, of the shape of a.
        num: The latents on the way, at least 2.
        path: The path, "linear" or "spherical".

    Returns:
        `[num, ..., width]`, t from 0 to 1 along the first axis.

    Raises:
        ValueError: fewer than 2, shapes that differ, or an unknown path.

    Examples:
        >>> interpolate(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), 3)[1]
        Array([0.707..., 0.707...], dtype=float32)
    """
    check_choice("path", path, PATHS)
    if num < 2:
        raise ValueError(f"num must be at least 2, got {num}")
    if start.shape != end.shape:
        raise ValueError(f"start and end must have one shape, got {start.shape} and {end.shape}")
    t = jnp.linspace(0.0, 1.0, num).reshape(num, *(1,) * start.ndim)
    a, b = start[None], end[None]
    linear = (1 - t) * a + t * b
    if path == "linear":
        return linear
    norms = jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True)
    cosine = jnp.sum(a * b, axis=-1, keepdims=True) / jnp.maximum(norms, 1e-12)
    omega = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(omega)
    parallel = sine < 1e-4
    safe = jnp.where(parallel, 1.0, sine)
    spherical = (jnp.sin((1 - t) * omega) * a + jnp.sin(t * omega) * b) / safe
    return jnp.where(parallel, linear, spherical)


def normal_space(width: int, truncation: float | None = None) -> LatentSpace:
    """The space of latents f32[B, width] under `N(0, I)`, whose paths are spherical.

    Args:
        width: The numbers in a latent.
        truncation: The threshold of `normal_latents`, or None.
    """
    return LatentSpace(
        interpolate, lambda key, num: normal_latents(key, num, width, truncation), width
    )


def normal_hierarchy(shapes: Mapping[int, tuple[int, ...]]) -> LatentSpace:
    """The space of several arrays of latents under `N(0, I)`, a tree f32[B, *shape] by key.

    The path of each array is spherical, of all its numbers as one vector.

    Args:
        shapes: The shape of each array of one example's latents.

    Examples:
        >>> space = normal_hierarchy({1: (1, 16), 4: (4, 4, 16)})
        >>> jax.tree.map(jnp.shape, space.draw(jax.random.key(0), 2))
        {1: (2, 1, 16), 4: (2, 4, 4, 16)}
    """

    def draw(key: Key[Array, ""], num: int) -> dict[int, Array]:
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}")
        keys = jax.random.split(key, len(shapes))
        return {
            name: standard_normal(each, (num, *shape))
            for each, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def between(start: Array, end: Array, num: int) -> Array:
        flat_start, flat_end = (z.reshape(len(z), -1) for z in (start, end))
        return interpolate(flat_start, flat_end, num).reshape(num, *start.shape)

    def way(start: PyTree, end: PyTree, num: int) -> PyTree:
        return jax.tree.map(lambda a, b: between(a, b, num), start, end)

    return LatentSpace(way, draw)
