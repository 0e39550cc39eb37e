"""What lies between a first stage's encoder and its decoder: a Gaussian, a codebook, or rounding.

bottleneck = gaussian(kl_weight=1e-6)                       # KL autoencoders
bottleneck = codebook(1024, 256)                            # VQGAN
bottleneck = finite_scalars(FiniteScalars((8, 5, 5, 5)))    # FSQ
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen.core import Metrics, PyTree
from jaxgen.distributions.elementwise import gaussian_kl
from jaxgen.families.vq import used
from jaxgen.losses.vq import commitment_loss, vector_quantization_loss
from jaxgen.models.vq import FiniteScalars, nearest
from jaxgen.sampling.latent import interpolate

_LOG_VARIANCES = (-30.0, 20.0)
Latents = Float[Array, "batch rows columns dims"]


class Passed(NamedTuple):
    """What the decoder is given of a batch, and what that costs.

    Attributes:
        latents: The decoder's input.
        penalty: What the bottleneck adds to the loss of each example, weighted.
        metrics: Metrics of each example.
    """

    latents: Latents
    penalty: Float[Array, " batch"]
    metrics: Metrics


class Bottleneck(NamedTuple):
    """A bottleneck as functions of its own parameters, `params`.

    Attributes:
        moments: The values that the encoder gives for each number of the latents.
        init: `key -> params`, a pytree, or None where there is nothing to train.
        squeeze: `(params, encoded, key, weight) -> Passed`, in training and evaluation; `weight`
            is that of each example, or None.
        encode: `(params, encoded) -> latents` as the family's `encode` gives them: integers of a
            bottleneck with codes.
        continuous: `(params, encoded, key) -> latents` as a second stage of real numbers is trained
            on: a draw of a Gaussian; of codes the vectors before they are quantized.
        decode: `(params, latents) -> ` the decoder's input, of latents of either kind.
        interpolate: `(start, end, steps) -> latents` of `encode`, or None for codes.
        num_codes: The number of codes, or None.
        summed: Whether the penalty is of whole examples, so that the reconstruction must be summed
            over pixels and channels too; else it is averaged over them.
    """

    moments: int
    init: Callable[[Key[Array, ""]], PyTree]
    squeeze: Callable[..., Passed]
    encode: Callable[[PyTree, Array], Array]
    continuous: Callable[[PyTree, Array, Key[Array, ""]], Latents]
    decode: Callable[[PyTree, Array], Latents]
    interpolate: Callable[[PyTree, PyTree, int], PyTree] | None = None
    num_codes: int | None = None
    summed: bool = False


def gaussian(kl_weight: float = 1e-6) -> Bottleneck:
    """`z ~ N(mean, variance)`, held to N(0, I) by `kl_weight KL(q(z | x) | N(0, I))`, nats.

    The encoder gives mean and log-variance, side by side; the latter is cut off at -30 and 20, as
    in the code of Rombach et al. 2022. Metrics: "kl", the divergence in nats without its weight.

    Args:
        kl_weight: Weight of the divergence of an example, beside a reconstruction that is summed
            over pixels and channels.

    Raises:
        ValueError: If the weight is negative or not finite.
    """
    _check_weights(kl_weight=kl_weight)

    def posterior(encoded: Array) -> tuple[Array, Array]:
        mean, log_variance = jnp.split(encoded, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCES)

    def draw(params: PyTree, encoded: Array, key: Key[Array, ""]) -> Latents:
        mean, log_variance = posterior(encoded)
        noise = jax.random.normal(key, (mean.size,)).reshape(mean.shape)  # flat compiles faster
        return mean + jnp.exp(0.5 * log_variance) * noise

    def squeeze(params: PyTree, encoded: Array, key: Key[Array, ""], weight=None) -> Passed:
        kl = gaussian_kl(*posterior(encoded), 0.0, 0.0).sum(axis=(1, 2, 3))
        return Passed(draw(params, encoded, key), kl_weight * kl, {"kl": kl})

    return Bottleneck(
        moments=2,
        init=lambda key: None,
        squeeze=squeeze,
        encode=lambda params, encoded: posterior(encoded)[0],
        continuous=draw,
        decode=lambda params, latents: latents,
        interpolate=partial(interpolate, path="linear"),  # they keep to no shell
        summed=True,
    )


def codebook(
    num_codes: int, dims: int, *, codebook_weight: float = 0.25, commitment_weight: float = 1.0
) -> Bottleneck:
    """The nearest of `num_codes` trained vectors, its gradient passed straight to the encoder.

    The penalty is `codebook_weight |sg[z] - e|^2 + commitment_weight |z - sg[e]|^2`, averaged over
    positions and dimensions. The defaults are those that VQGAN and latent diffusion were trained
    with: in their quantizer's code (`legacy=True`) beta, 0.25, is at the codebook's term, where
    the paper (eq. 4) has it at the commitment. The codes begin uniform in +-1 / num_codes.

    Metrics: "commitment" (without its weight), "perplexity" of the batch's codes, and "usage", the
    share of the codes that it uses.

    Args:
        num_codes: The number of codes K, at least 2.
        dims: The numbers in a code, the encoder's latent channels.
        codebook_weight: Weight of what moves the codes.
        commitment_weight: Weight of what holds the encoder to them.

    Raises:
        ValueError: If a number is out of its range.
    """
    if num_codes < 2 or dims < 1:
        raise ValueError(
            f"num_codes must be at least 2 and dims at least 1, got {num_codes} and {dims}"
        )
    _check_weights(codebook_weight=codebook_weight, commitment_weight=commitment_weight)

    def init(key: Key[Array, ""]) -> Array:
        return jax.random.uniform(key, (num_codes, dims), minval=-1.0, maxval=1.0) / num_codes

    def quantize(codes: Array, encoded: Array) -> tuple[Array, Array]:
        indices = nearest(lax.stop_gradient(codes), lax.stop_gradient(encoded))
        return codes[indices], indices

    def squeeze(codes: Array, encoded: Array, key: Key[Array, ""], weight=None) -> Passed:
        quantized, indices = quantize(codes, encoded)
        commitment = commitment_loss(encoded, quantized) / dims
        moving = vector_quantization_loss(encoded, quantized) / dims
        penalty = codebook_weight * moving + commitment_weight * commitment
        metrics = {"commitment": commitment, **used(indices, num_codes, weight)}
        return Passed(encoded + lax.stop_gradient(quantized - encoded), penalty, metrics)

    def decode(codes: Array, latents: Array) -> Latents:
        if jnp.issubdtype(latents.dtype, jnp.integer):
            return codes.at[latents.astype(jnp.int32)].get(mode="fill", fill_value=jnp.nan)
        # What is not finite stays so, and is not taken for the first code.
        return jnp.where(jnp.isfinite(latents), quantize(codes, latents)[0], jnp.nan)

    return Bottleneck(
        moments=1,
        init=init,
        squeeze=squeeze,
        encode=lambda codes, encoded: quantize(codes, encoded)[1],
        continuous=lambda codes, encoded, key: encoded,
        decode=decode,
        num_codes=num_codes,
    )


def finite_scalars(quantizer: FiniteScalars) -> Bottleneck:
    """Every number of the latents rounded by itself: FSQ, without a penalty (Mentzer et al. 2024).

    Metrics: "perplexity" of the batch's codes, and "usage", the share of the codes that it uses.

    Args:
        quantizer: The levels; as many as the encoder has latent channels.
    """

    def squeeze(params: PyTree, encoded: Array, key: Key[Array, ""], weight=None) -> Passed:
        quantized = quantizer.quantize(encoded)
        indices = quantizer.indices(lax.stop_gradient(quantized))
        penalty = jnp.zeros(encoded.shape[0])
        return Passed(quantized, penalty, used(indices, quantizer.num_codes, weight))

    def decode(params: PyTree, latents: Array) -> Latents:
        if jnp.issubdtype(latents.dtype, jnp.integer):
            return quantizer.vectors(latents)
        return quantizer.quantize(latents)

    return Bottleneck(
        moments=1,
        init=lambda key: None,
        squeeze=squeeze,
        encode=lambda params, encoded: quantizer.indices(quantizer.quantize(encoded)),
        continuous=lambda params, encoded, key: encoded,
        decode=decode,
        num_codes=quantizer.num_codes,
    )


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {value}")
