"""The vector-quantized variational autoencoder: networks and a codebook become a `Family`."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.core import (
    Aux,
    Batch,
    Bound,
    Family,
    Metrics,
    Optimizer,
    Params,
    Phase,
    PyTree,
    Variables,
)
from jaxgen.distributions.likelihoods import Likelihood
from jaxgen.losses.reduce import bits_per_dim, weighted_mean
from jaxgen.losses.vq import commitment_loss
from jaxgen.models import vq as codebooks
from jaxgen.models.vq import Codebook

ENCODER, DECODER = "encoder", "decoder"
NAME = "vqvae"
_FEW_USED = 0.02

Indices = Int[Array, "batch rows columns"]
Values = Float[Array, " batch"]


def vqvae(
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    num_codes: int,
    image_shape: tuple[int, int, int],
    commitment_weight: float = 0.25,
    decay: float = 0.99,
    revive_below: float = 0.01,
    eight_bit: bool = False,
    axis_name: str | None = None,
) -> Family:
    """The family of van den Oord et al. 2017, its codes moving averages of the encoder's outputs.

    Training minimizes `-log p(x | e) + commitment_weight mean_positions |z_e - sg[e]|^2` (eq. 3),
    summed over pixels, but averaged over the codes of an example (section 3.2: "an average over N
    terms, one for each latent"); e is the code nearest to z_e, and
    the decoder's gradient passes from e straight to z_e. The codebook lies in the state. It starts
    with outputs of the first batch, follows them by the averages of appendix A.1, and codes that
    hardly any position chooses are moved to outputs of the batch.

    There is no prior over the codes, so `sample` is None: a second stage is one, see
    `jaxgen.families.latent`. `encode` gives indices [B, h, w], `decode` takes them. The values of
    `evaluate`, and the negative of `log_prob`, are the bound `-log p(x | e) + h w log(num_codes)`
    of -log p(x) under a uniform prior, which a fitted one tightens.

    Metrics: "reconstruction" (`-log p(x | e)`, nats), "commitment" (averaged over positions,
    unweighted), "mse" of the mean reconstruction (mean over pixels and channels), "perplexity" of
    the batch's codes and the share of codes that it uses, "usage"; in training "dead", the share of
    codes moved; of 8-bit data "bits_per_dim" of the bound. `watch` warns of a collapsed codebook.

    Args:
        encoder: A network `encoder(x) -> z_e[B, h, w, D]`.
        decoder: A network `decoder(codes[B, h, w, D]) -> parameters of the likelihood`.
        likelihood: The likelihood of images, from `jaxgen.distributions.likelihoods`.
        optimizer: The optimizer of both networks.
        num_codes: The number of codes K.
        image_shape: (H, W, C) of the data.
        commitment_weight: Weight of the commitment, the paper's beta.
        decay: The decay of the moving averages.
        revive_below: The part of the even share 1 / K below which a code's averaged share of the
            positions makes it dead; 0 for no revival.
        eight_bit: Whether the likelihood is a mass of 8-bit data, so that bits per dimension have
            their meaning.
        axis_name: The mapped axis over which the batch is spread (pmap), or None: revived codes are
            then taken from one device.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check(num_codes, image_shape, commitment_weight, decay, revive_below)
    num_dims = math.prod(image_shape)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        x = batch["image"]
        if x.shape[1:] != tuple(image_shape):
            raise ValueError(f"image_shape is {tuple(image_shape)}, but the data has {x.shape[1:]}")
        if not isinstance(x, jax.core.Tracer):
            likelihood.check(x)
        key_encoder, key_decoder, key_codes = jax.random.split(key, 3)
        outputs, encoded = encoder.init_with_output(key_encoder, x)
        pixels, decoded = decoder.init_with_output(key_decoder, outputs)
        needed = (*image_shape[:2], likelihood.num_params(image_shape[-1]))
        if pixels.shape[1:] != needed:
            raise ValueError(f"the decoder makes {pixels.shape[1:]}, the likelihood needs {needed}")
        params = {ENCODER: encoded["params"], DECODER: decoded["params"]}
        codebook = codebooks.draw_codebook(key_codes, outputs, num_codes)
        return Variables(params, {"codebook": codebook}, fixed)

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        encoded, indices, metrics, _ = measure(variables, batch)
        weight = batch.get("weight")
        codebook = codebooks.update(variables.state["codebook"], encoded, indices, decay, weight)
        if revive_below:
            replacements = codebooks.draw_outputs(key, lax.stop_gradient(encoded), num_codes)
            if axis_name is not None:
                # The mean of several devices' outputs, which the step would take, is no output.
                replacements = lax.all_gather(replacements, axis_name)[0]
                codebook = lax.pmean(codebook, axis_name)
            codebook, dead = codebooks.revive(codebook, replacements, revive_below)
            metrics["dead"] = jnp.broadcast_to(dead.mean(), metrics["reconstruction"].shape)
        value = metrics["reconstruction"] + commitment_weight * metrics["commitment"]
        return value, Aux(metrics, {**variables.state, "codebook": codebook})

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        _, _, metrics, bound = measure(variables, batch)
        return bound, metrics

    def measure(variables: Variables, batch: Batch):
        """(encoder's outputs, indices, metrics, the bound), with straight-through gradients."""
        x, codebook = batch["image"], variables.state["codebook"]
        encoded = outputs_of(variables.params, x)
        indices = codebooks.nearest(codebook.codes, lax.stop_gradient(encoded))
        quantized = codebook.codes[indices]
        passed = encoded + lax.stop_gradient(quantized - encoded)
        pixels = pixels_of(variables.params, passed)
        reconstruction = -likelihood.log_prob(pixels, x)
        positions = math.prod(indices.shape[1:])
        bound = reconstruction + positions * math.log(num_codes)
        metrics = {
            "reconstruction": reconstruction,
            "commitment": commitment_loss(encoded, quantized),
            "mse": jnp.square(likelihood.mean(pixels) - x).mean(axis=(1, 2, 3)),
            **used(indices, num_codes, batch.get("weight")),
        }
        if eight_bit:
            metrics["bits_per_dim"] = bits_per_dim(bound, num_dims)
        return encoded, indices, metrics, bound

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Values:
        return -evaluate(variables, batch, key)[0]

    def encode(variables: Variables, batch: Batch, key: Array) -> Indices:
        outputs = outputs_of(variables.params, batch["image"])
        return codebooks.nearest(variables.state["codebook"].codes, outputs)

    def decode(variables: Variables, latents: Array, key: Array, *, condition=None) -> Array:
        conditions.encode(None, variables, condition)
        if not jnp.issubdtype(latents.dtype, jnp.integer):
            raise ValueError(f"latents must be indices of codes, integers, got {latents.dtype}")
        codebook: Codebook = variables.state["codebook"]
        codes = codebook.codes.at[latents.astype(jnp.int32)].get(mode="fill", fill_value=jnp.nan)
        return likelihood.mean(pixels_of(variables.params, codes))

    def outputs_of(params: Params, x: Array) -> Array:
        return encoder.apply({"params": params[ENCODER]}, x)  # type: ignore[return-value]

    def pixels_of(params: Params, codes: Array) -> Array:
        return decoder.apply({"params": params[DECODER]}, codes)  # type: ignore[return-value]

    return Family(
        init,
        optimizers={NAME: Optimizer((ENCODER, DECODER), optimizer)},
        phases=(Phase(NAME, NAME, loss),),
        evaluate=evaluate,
        log_prob=log_prob,
        bound=Bound("ELBO", num_dims, eight_bit),
        encode=encode,
        decode=decode,
        watch=watch,
        name="VQ-VAE",
        num_codes=num_codes,
    )


def used(indices: Indices, num_codes: int, weight: Array | None) -> dict[str, Array]:
    """The health of a codebook: "perplexity" of the batch's codes, and "usage", the share used.

    Args:
        indices: The codes of each example's positions.
        num_codes: The number of codes.
        weight: Weight of each example; None for 1.

    Returns:
        Both for each example, the same for all.
    """
    count = partial(jnp.bincount, length=num_codes)  # one-hot vectors take too much memory
    chosen = jax.vmap(count)(indices.reshape(indices.shape[0], -1)) / math.prod(indices.shape[1:])
    shares = jax.vmap(weighted_mean, in_axes=(1, None))(chosen, weight)
    entropy = jax.scipy.special.entr(shares).sum()
    shape = indices.shape[:1]
    return {
        "perplexity": jnp.broadcast_to(jnp.exp(entropy), shape),
        "usage": jnp.broadcast_to((shares > 0).mean(), shape),
    }


def watch(metrics: Mapping[str, float]) -> Sequence[str]:
    """Warnings of a collapsed codebook.

    Args:
        metrics: A row of averaged metrics, with "usage" as `used` gives it.
    """
    if not float(metrics.get("usage", 1.0)) < _FEW_USED:
        return []
    return [
        f"the codebook has collapsed: a batch uses less than {_FEW_USED:.0%} of the codes. Raise "
        "revive_below, lower the learning rate, or use fewer codes"
    ]


def _check(
    num_codes: int,
    image_shape: tuple[int, int, int],
    commitment_weight: float,
    decay: float,
    revive_below: float,
) -> None:
    """Raise ValueError for an argument out of its range."""
    if num_codes < 2:
        raise ValueError(f"num_codes must be at least 2, got {num_codes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    if not 0 <= commitment_weight < math.inf:
        raise ValueError(f"commitment_weight must be 0 or more, got {commitment_weight}")
    for name, value in (("decay", decay), ("revive_below", revive_below)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
