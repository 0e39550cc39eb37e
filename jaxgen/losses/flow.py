"""Likelihoods of normalizing flows, per example and in nats: change of variables, dequantization.

A flow maps data x to latents z and knows `log |det dz/dx|`; `jaxgen.models.bijectors` has the
flows. Continuous data has an exact density, 8-bit data a bound of its probability.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_batch

# x -> (latents, log |det| f32[B])
Flow = Callable[[Array], tuple[Any, Array]]
# (key, image) -> (noise in [0, 1) of the image's shape, log q(noise | image) f32[B])
Dequantizer = Callable[[Array, Array], tuple[Array, Array]]

BYTE = 256
"""Values of a byte."""


def prior_log_prob(latents: Any) -> Float[Array, " batch"]:
    """`log N(z; 0, I)` of latents, in nats.

    Args:
        latents: An array or a tree of arrays, each f32[B, ...].

    Returns:
        Nats per example.

    Raises:
        ValueError: No latents, or parts of different numbers of examples.
    """
    leaves = jax.tree.leaves(latents)
    if not leaves or len({z.shape[:1] for z in leaves}) > 1 or not leaves[0].ndim:
        raise ValueError(
            "latents must hold at least one array, each [B, ...], got "
            f"{', '.join(str(z.shape) for z in leaves) or 'none'}"
        )
    parts = [z.reshape(z.shape[0], -1) for z in leaves]
    squares = sum(jnp.sum(jnp.square(z.astype(_wide(z))), axis=1) for z in parts)
    return -0.5 * (squares + sum(z.shape[1] for z in parts) * math.log(2 * math.pi))


def negative_log_likelihood(
    latents: Any, log_det: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    r"""The change of variables: $-\log p(x) = -\log N(z; 0, I) - \log |\det dz/dx|$.

    Dinh et al. 2017, eq. 3.

    Args:
        latents: Latents z, an array or a tree of arrays, each f32[B, ...].
        log_det: Logarithm `log |det dz/dx|`, in nats.

    Returns:
        Nats per example.

    Raises:
        ValueError: No latents, parts or log-determinants of different numbers of examples.

    Examples:
        >>> negative_log_likelihood(jnp.zeros((1, 2)), jnp.zeros(1))  # log(2 pi)
        Array([1.837877], dtype=float32)
    """
    log_prior = prior_log_prob(latents)
    check_batch(len(log_prior), log_det=log_det)
    return -log_prior - log_det


def to_levels(
    image: Float[Array, "batch *dims"], num_values: int = BYTE
) -> Float[Array, "batch *dims"]:
    """Model space `2 u / (V - 1) - 1` to the level u it came from, 0..V-1, as floats.

    Of V = 256 values the level is the byte.
    """
    return jnp.clip(jnp.round((image + 1) * (0.5 * (num_values - 1))), 0, num_values - 1)


def to_unit(
    image: Float[Array, "batch *dims"], num_values: int = BYTE
) -> Float[Array, "batch *dims"]:
    """Model space, in between levels too, to (0, 1): level u to its bin's middle, `(u + 0.5) / V`.

    What `from_unit` undoes.
    """
    return ((image + 1) * (0.5 * (num_values - 1)) + 0.5) / num_values


def from_unit(
    x: Float[Array, "batch *dims"], num_values: int = BYTE
) -> Float[Array, "batch *dims"]:
    """(0, 1) to model space, the bin's middle `(u + 0.5) / V` to `2 u / (V - 1) - 1`."""
    return (x * num_values - 0.5) / (0.5 * (num_values - 1)) - 1


def quantize(x: Float[Array, "batch *dims"], num_values: int = BYTE) -> Float[Array, "batch *dims"]:
    """(0, 1) to model space by way of the level whose bin x lies in, `floor(V x)`."""
    level = jnp.clip(jnp.floor(x * num_values), 0, num_values - 1)
    # Compiled, the division is a product with a rounded 1/127.5, which takes 255 just above 1.
    return jnp.clip(level / (0.5 * (num_values - 1)) - 1, -1, 1)


def dequantize(
    key: Key[Array, ""],
    image: Float[Array, "batch *dims"],
    dequantizer: Dequantizer | None = None,
    num_values: int = BYTE,
) -> tuple[Float[Array, "batch *dims"], Float[Array, " batch"]]:
    """Spreads levels over their bins: `x = (u + noise) / V` in [0, 1] (Theis et al. 2016).

    Args:
        key: PRNG key of the noise.
        image: Data in model space, `2 u / (V - 1) - 1`; of V = 256 values 8-bit data.
        dequantizer: Function `(key, image) -> (noise, log q)`; None for uniform noise, whose log q
            is 0.
        num_values: Number V of values that a pixel takes.

    Returns:
        The data x, and `log q(noise | u)` in nats.

    Raises:
        ValueError: A dequantizer whose noise does not have the image's shape.
    """
    if dequantizer is None:
        noise = jax.random.uniform(key, (image.size,), _wide(image)).reshape(image.shape)
        log_q = jnp.zeros(image.shape[:1], _wide(image))
    else:
        noise, log_q = dequantizer(key, image)
        if noise.shape != image.shape or log_q.shape != image.shape[:1]:
            raise ValueError(
                f"dequantizer must return noise {list(image.shape)} and log q "
                f"{list(image.shape[:1])}, got {list(noise.shape)} and {list(log_q.shape)}"
            )
    return (to_levels(image, num_values) + noise) / num_values, log_q


def dequantized_bound(
    flow: Flow,
    image: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    dequantizer: Dequantizer | None = None,
    num_values: int = BYTE,
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    r"""A bound of the negative log-probability of data of V values, by one draw of the noise.

    $$-\log P(u) \le E_{v \sim q(v | u)}\left[-\log p\left(\tfrac{u + v}{V}\right)
    + D \log V + \log q(v | u)\right]$$

    (Theis et al. 2016, section 3.1, for uniform q; Ho et al. 2019, eq. 12, for any.) p is the
    flow's density on [0, 1], and `D log V` the price of its unit being V levels wide. V is 256 for
    8-bit data. Where their pixels take fewer values, evenly spaced, the bound with that V is one of
    the same data: each value has one byte.

    Args:
        flow: Function `x -> (latents, log |det|)` of x in [0, 1].
        image: Data in model space, `2 u / (V - 1) - 1`.
        key: PRNG key of the noise.
        dequantizer: Distribution q as `dequantize` takes it; None for the uniform one.
        num_values: Number V of values that a pixel takes.

    Returns:
        Nats per example, and the terms that they are the sum of: `prior` (`-log N(z; 0, I)`),
        `volume` (`-log |det dz/dx|`), `quantization` (`D log V`) and `dequantization` (`log q`).

    Raises:
        ValueError: A dequantizer whose noise does not have the image's shape, or a flow whose
            results are not of the image's number of examples.
    """
    x, log_q = dequantize(key, image, dequantizer, num_values)
    latents, log_det = flow(x)
    log_prior = prior_log_prob(latents)
    check_batch(len(image), log_det=log_det, latents=log_prior)
    num_dims = math.prod(image.shape[1:])
    terms = {
        "prior": -log_prior,
        "volume": -log_det,
        "quantization": jnp.full_like(log_det, num_dims * math.log(num_values)),
        "dequantization": log_q,
    }
    return sum(terms.values(), start=jnp.zeros_like(log_det)), terms


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
