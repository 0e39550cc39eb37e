"""Path length regularization of a generator with styles (Karras et al. 2020, section 3.2).

A step of one size in the space of styles should change the image by one amount, wherever it starts
and whichever way it goes. The generator's Jacobian J tells the amount; seen from a random image y
it is |J^T y|, which is to be the same for all styles.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.distributions.elementwise import standard_normal


def path_lengths(
    synthesize: Callable[[Array], Array],
    styles: Float[Array, "batch *dims"],
    key: Key[Array, ""],
) -> Float[Array, " batch"]:
    r"""The lengths $$\sqrt{\tfrac{1}{L} \sum_l |J_l^T y|^2}$$ of each example, y a random image.

    J_l is the Jacobian of the image in layer l's style. The numbers of y are
    N(0, 1 / (height width)), so that the length does not depend on the image's size.

        >>> doubled = lambda styles: 2 * styles.reshape(2, 1, 1, 3)  # an image of one pixel
        >>> lengths = path_lengths(doubled, jnp.ones((2, 1, 3)), jax.random.key(0))
        >>> lengths.shape
        (2,)

    Args:
        synthesize: Function from styles [B, L, W] to images [B, H, W, C], each example by itself;
            twice differentiable in reverse mode.
        styles: Styles of all layers, [B, L, W].
        key: Key that y is drawn with.

    Returns:
        The lengths, f32[B]. Where the Jacobian is exactly zero, the length's derivative is taken as
        0.

    Raises:
        ValueError: Styles are not of shape [B, L, W], or images not of [B, H, W, C].
    """
    if styles.ndim != 3:
        raise ValueError(f"styles must be [B, L, W], got {list(styles.shape)}")
    images, pull = jax.vjp(synthesize, styles)
    if images.ndim != 4 or len(images) != len(styles):
        raise ValueError(
            f"synthesize must return images [{len(styles)}, H, W, C], got {list(images.shape)}"
        )
    y = standard_normal(key, images.shape) / math.sqrt(images.shape[1] * images.shape[2])
    (gradient,) = pull(y.astype(images.dtype))
    squared = jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=2).mean(axis=1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def path_length_penalty(
    lengths: Float[Array, " batch"], mean: Float[Array, ""]
) -> Float[Array, " batch"]:
    """`(|J^T y| - a)^2` (eq. 4), a the mean of the lengths so far; the weight multiplies outside.

    Args:
        lengths: Lengths of this batch (`path_lengths`).
        mean: Moving average a of earlier batches' lengths.
    """
    return jnp.square(lengths - mean)
