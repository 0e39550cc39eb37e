"""Palettes: a few colours for all pixels of a set, so that an image is one code a pixel.

ImageGPT (Chen et al. 2020, section 3.1) has 512 colours, found by k-means over the pixels, in the
place of 256^3: its sequences are a third as long, its likelihood is of the codes, not of the bytes.
A palette is a function of (examples, seed), and a run keeps its own (`content_of`, `read`).
"""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.spatial import cKDTree

from jaxgen.data.arrays import read_npy
from jaxgen.data.sources import Source

Colours = Float[np.ndarray, "colours channels"]
Images = Float[Array, "batch height width _"]
Values = Float[Array, "batch height width 1"]

_MOST_PIXELS = 2**22  # of the examples that are read
_POINTS = 2**17  # of these, which k-means sees


def find(source: Source, num_colours: int, seed: int, *, rounds: int = 50) -> Colours:
    """The colours that k-means gives on pixels of a set, from the darkest to the brightest.

    Args:
        source: Examples with an `image`; of a large set some, drawn by the seed, are read.
        num_colours: Number K of colours, from 2 to the number of different ones in the set.
        seed: Seed of what is drawn.
        rounds: Greatest number of Lloyd's rounds.

    Returns:
        f32[K, C], colours in [-1, 1].

    Raises:
        ValueError: Fewer different colours than are asked for, or fewer than 2 asked for.
    """
    if num_colours < 2:
        raise ValueError(f"num_colours must be at least 2, got {num_colours}")
    rng = np.random.default_rng(seed)
    height, width, channels = source.spec["image"][0]
    num = min(len(source), max(64, _MOST_PIXELS // (height * width)))
    rows = np.sort(rng.choice(len(source), num, replace=False))
    pixels = np.asarray(source[rows]["image"]).reshape(-1, channels)
    if len(pixels) > _POINTS:
        pixels = pixels[rng.choice(len(pixels), _POINTS, replace=False)]
    points, counts = np.unique(pixels, axis=0, return_counts=True)
    if len(points) < num_colours:
        raise ValueError(
            f"num_colours must be at most {len(points)}, as many as {source.name} has, "
            f"got {num_colours}"
        )
    colours = k_means(points.astype(np.float64), counts, num_colours, rng, rounds)
    order = np.lexsort((*colours.T, colours.sum(axis=1)))
    return (colours[order] / 127.5 - 1).astype(np.float32)


def k_means(
    points: np.ndarray, weights: np.ndarray, num: int, rng: np.random.Generator, rounds: int
) -> np.ndarray:
    r"""Centres that lessen $$\sum_i w_i \min_k |x_i - c_k|^2$$ (Lloyd 1982).

    The first centres are points, each drawn by its weighted squared distance to those before it
    (k-means++, Arthur and Vassilvitskii 2007). A centre that no point is nearest to goes to one of
    the points that are farthest from theirs.

    Args:
        points: Different points f64[N, D], at least `num`.
        weights: Weights [N], positive.
        num: Number of centres.
        rng: Generator of the first centres.
        rounds: Greatest number of rounds; fewer where nothing changes any more.

    Returns:
        f64[num, D].
    """
    chosen = [rng.choice(len(points), p=weights / weights.sum())]
    distance = np.full(len(points), np.inf)
    for _ in range(num - 1):
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
        share = weights * distance  # 0 at the points that are chosen
        chosen.append(rng.choice(len(points), p=share / share.sum()))
    centres = points[chosen]
    for _ in range(rounds):
        distance, nearest = cKDTree(centres).query(points)
        mass = np.bincount(nearest, weights, num)
        sums = [np.bincount(nearest, weights * column, num) for column in points.T]
        means = np.stack(sums, axis=1) / np.maximum(mass, 1e-300)[:, None]
        empty = np.flatnonzero(mass == 0)
        means[empty] = points[np.argsort(-distance, kind="stable")[: len(empty)]]
        if np.array_equal(means, centres):
            break
        centres = means
    return centres


def values_of(colours: Colours, images: Images) -> Values:
    """Images of codes, `2 k / (K - 1) - 1` of each pixel's nearest colour k, NaN where it is NaN.

    As `jaxgen.families.autoregressive` takes them with `num_values=K`.

    Args:
        colours: Palette of K colours.
        images: Images in [-1, 1].

    Raises:
        ValueError: Images of other channels than the palette has.
    """
    num, channels = colours.shape
    if images.shape[-1] != channels:
        raise ValueError(
            f"the palette's colours have {channels} channels, the images {images.shape[-1]}"
        )
    # |x|^2 is the same for all colours. The product must tell near ones apart.
    product = jnp.einsum("bhwc,kc->bhwk", images, colours, precision=lax.Precision.HIGHEST)
    distance = np.square(colours).sum(axis=1).reshape(1, 1, 1, -1) - 2 * product
    codes = jnp.argmin(distance, axis=-1)[..., None]
    values = 2 * codes.astype(jnp.float32) / (num - 1) - 1
    return jnp.where(jnp.isnan(images).any(axis=-1, keepdims=True), jnp.nan, values)


def images_of(colours: Colours, values: Values) -> Images:
    """The images of codes, in [-1, 1]: what `values_of` gives back exactly; NaN where they are NaN.

    Args:
        colours: Palette of K colours.
        values: Images of codes, in [-1, 1]; each counts as the nearest code.
    """
    codes = jnp.round((values[..., 0] + 1) / 2 * (len(colours) - 1))
    codes = jnp.where(jnp.isnan(values[..., 0]), len(colours), jnp.clip(codes, 0, len(colours) - 1))
    return jnp.asarray(colours).at[codes.astype(jnp.int32)].get(mode="fill", fill_value=jnp.nan)


def content_of(colours: Colours) -> bytes:
    """A palette as the bytes of a `.npy` file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(colours, np.float32), allow_pickle=False)
    return file.getvalue()


def read(path: Path, num_colours: int, channels: int) -> Colours:
    """The palette of a `.npy` file.

    Args:
        path: Path of the file.
        num_colours: Number of colours that it must have.
        channels: Number of channels that they must have.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is broken, or holds no such palette; names it.
    """
    colours = read_npy(path)
    if colours.shape != (num_colours, channels) or colours.dtype != np.float32:
        raise ValueError(
            f"{path} must hold float32 [{num_colours}, {channels}], a palette, got {colours.dtype} "
            f"{list(colours.shape)}"
        )
    if not (np.abs(colours) <= 1).all():
        raise ValueError(f"{path} must hold colours in [-1, 1]")
    return colours
