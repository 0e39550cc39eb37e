"""Losses of vector quantization: what moves the codes, and what holds the encoder to them.

The squared distances are summed over a code's dimensions (the last axis) and averaged over the
positions of an example's latent map. The reconstruction's likelihood is one of
`jaxgen.distributions.likelihoods`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.checks import check_same_shape


def vector_quantization_loss(
    encoded: Float[Array, "batch *positions dims"], quantized: Float[Array, "batch *positions dims"]
) -> Float[Array, " batch"]:
    """`|sg[z_e] - e|^2`, which moves the codes to the encoder's outputs (van den Oord et al. 2017,
    eq. 3, second term).

    The squared distance is summed over a code's dimensions (last axis) and averaged over the
    positions of an example's latent map. Not needed where the codebook is a moving average.

    Args:
        encoded: The encoder's outputs z_e; they get no gradient.
        quantized: The codes e nearest to them, not passed straight through.

    Returns:
        f32[B], without a unit.

    Raises:
        ValueError: If the shapes differ or there are no positions and dimensions.

    Examples:
        >>> vector_quantization_loss(jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3)))
        Array([3.], dtype=float32)
    """
    return _code_distance(jax.lax.stop_gradient(encoded), quantized)


def commitment_loss(
    encoded: Float[Array, "batch *positions dims"], quantized: Float[Array, "batch *positions dims"]
) -> Float[Array, " batch"]:
    """`|z_e - sg[e]|^2`, which holds the encoder to its codes (van den Oord et al. 2017, eq. 3,
    third term, without its beta, which the paper sets to 0.25).

    Summed over a code's dimensions and averaged over positions, as `vector_quantization_loss`.

    Args:
        encoded: The encoder's outputs z_e.
        quantized: The codes e nearest to them; they get no gradient.

    Returns:
        f32[B], without a unit.

    Raises:
        ValueError: If the shapes differ or there are no positions and dimensions.
    """
    return _code_distance(encoded, jax.lax.stop_gradient(quantized))


def _code_distance(encoded, quantized):
    check_same_shape(encoded=encoded, quantized=quantized)
    if encoded.ndim < 2:
        raise ValueError(f"encoded and quantized must be [B, ..., D], got {encoded.shape}")
    distance = jnp.square(encoded - quantized).sum(axis=-1)
    return distance.reshape(distance.shape[0], -1).mean(axis=1)
