"""The vector-quantized variational autoencoder: networks and a codebook become a `Family`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.core import Aux, Batch, Bound, Family, Params, Phase, PyTree
from jaxgen.likelihoods import Likelihood
from jaxgen.losses.reduce import bits_per_dim, masked_mean
from jaxgen.losses.vqvae import commitment_loss
from jaxgen.models import vqvae as codebooks
from jaxgen.models.vqvae import Codebook

ENCODER, DECODER = "encoder", "decoder"
_FEW_USED = 0.02

Indices = Int[Array, "batch rows columns"]
# (key, num, condition) -> indices[num, h, w]
Prior = Callable[[Key[Array, ""], int, Array | None], Indices]


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
    prior: Prior | None = None,
    eight_bit: bool = False,
    axis_name: str | None = None,
) -> Family:
    """The family of van den Oord et al. 2017, its codes moving averages of the encoder's outputs.

    Training minimizes `-log p(x | e) + commitment_weight sum_positions |z_e - sg[e]|^2` (eq. 3),
    both terms sums over what an example has, pixels or positions; e is the code nearest to z_e, and
    the decoder's gradient passes from e straight to z_e. The codebook lies in the model state. It
    starts with outputs of the first batch, follows them by the averages of appendix A.1, and codes
    that hardly any position chooses are moved to outputs of the batch.

    There is no prior over the codes but the one given: `sample` refuses without it. `encode` gives
    indices [B, h, w], `decode` takes them. The loss of `evaluate`, and the negative of `log_prob`,
    is the bound `-log p(x | e) + h w log(num_codes)` of -log p(x) under a uniform prior, which a
    fitted one tightens.

    Metrics: "reconstruction" (`-log p(x | e)`, nats), "commitment" (summed over positions,
    unweighted), "mse" of the mean reconstruction (mean over pixels and channels), "perplexity" of
    the batch's codes and the share of codes that it uses, "usage"; "dead", the share of codes
    moved; of 8-bit data "bits_per_dim" of the bound.

    Args:
        encoder: `encoder(x) -> z_e[B, h, w, D]`.
        decoder: `decoder(codes[B, h, w, D]) -> parameters of the likelihood`.
        likelihood: of images, from `jaxgen.likelihoods`.
        optimizer: trains both networks.
        num_codes: K.
        image_shape: (H, W, C) of the data.
        commitment_weight: the paper's beta.
        decay: of the moving averages.
        revive_below: a code is dead when its share of the positions, averaged, is below this part
            of the even share 1 / K; 0 for no revival.
        prior: draws indices, `(key, num, condition) -> i32[num, h, w]`; None for none.
        eight_bit: the likelihood is a mass of 8-bit data, so that bits per dimension have meaning.
        axis_name: the mapped axis over which the batch is spread (pmap), or None: revived codes are
            then taken from one device.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if num_codes < 2:
        raise ValueError(f"num_codes must be at least 2, got {num_codes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    if not 0 <= commitment_weight < math.inf:
        raise ValueError(f"commitment_weight must be 0 or more, got {commitment_weight}")
    for name, value in (("decay", decay), ("revive_below", revive_below)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
    model = _VqVae(
        encoder,
        decoder,
        likelihood,
        num_codes,
        tuple(image_shape),
        commitment_weight,
        decay,
        revive_below,
        prior,
        eight_bit,
        axis_name,
    )
    phase = Phase("vqvae", (ENCODER, DECODER), model.loss, optimizer)
    bound = Bound("ELBO", math.prod(image_shape), eight_bit)
    return Family(
        model.init,
        (phase,),
        model.evaluate,
        model.sample,
        model.log_prob,
        encode=model.encode,
        decode=model.decode,
        bound=bound,
    )


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Collapse of the codebook, from a row of averaged metrics; none where all is well."""
    if not float(metrics.get("usage", 1.0)) < _FEW_USED:
        return []
    return [
        f"the codebook has collapsed: a batch uses less than {_FEW_USED:.0%} of the codes. Raise "
        "revive_below, lower the learning rate, or use fewer codes"
    ]


@dataclass(frozen=True)
class _VqVae:
    """The functions of `vqvae`, around its arguments."""

    encoder: Any
    decoder: Any
    likelihood: Likelihood
    num_codes: int
    image_shape: tuple[int, ...]
    commitment_weight: float
    decay: float
    revive_below: float
    prior: Prior | None
    eight_bit: bool
    axis_name: str | None

    def init(self, key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        x = batch["image"]
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"image_shape is {self.image_shape}, but the data has {x.shape[1:]}")
        if not isinstance(x, jax.core.Tracer):
            self.likelihood.check(x)
        key_encoder, key_decoder, key_codes = jax.random.split(key, 3)
        encoded, variables = self.encoder.init_with_output(key_encoder, x)
        pixels, decoded = self.decoder.init_with_output(key_decoder, encoded)
        needed = (*self.image_shape[:2], self.likelihood.num_params(self.image_shape[-1]))
        if pixels.shape[1:] != needed:
            raise ValueError(f"the decoder makes {pixels.shape[1:]}, the likelihood needs {needed}")
        params = {ENCODER: variables["params"], DECODER: decoded["params"]}
        return params, {"codebook": codebooks.draw_codebook(key_codes, encoded, self.num_codes)}

    def loss(self, params, model_state, batch: Batch, key, *, train: bool):
        x, mask = batch["image"], batch.get("mask")
        codebook: Codebook = model_state["codebook"]
        encoded = self._encoded(params, x)
        indices = codebooks.nearest(codebook.codes, lax.stop_gradient(encoded))
        quantized = codebook.codes[indices]
        passed = encoded + lax.stop_gradient(quantized - encoded)
        pixels = self._pixels(params, passed)
        reconstruction = -self.likelihood.log_prob(pixels, x)
        positions = math.prod(indices.shape[1:])
        commitment = positions * commitment_loss(encoded, quantized)
        bound = reconstruction + positions * math.log(self.num_codes)
        metrics = {
            "reconstruction": reconstruction,
            "commitment": commitment,
            "mse": jnp.square(self.likelihood.mean(pixels) - x).mean(axis=(1, 2, 3)),
            **_used(indices, self.num_codes, mask),
        }
        if self.eight_bit:
            metrics["bits_per_dim"] = bits_per_dim(bound, math.prod(self.image_shape))
        if not train:
            return bound, Aux(metrics, model_state)
        codebook = codebooks.update(codebook, encoded, indices, self.decay, mask)
        if self.revive_below:
            codebook, dead = self._revived(codebook, encoded, key)
            metrics["dead"] = jnp.broadcast_to(dead.mean(), reconstruction.shape)
        value = reconstruction + self.commitment_weight * commitment
        return value, Aux(metrics, {**model_state, "codebook": codebook})

    def evaluate(self, params, model_state, batch: Batch, key, *, train: bool = False):
        return self.loss(params, model_state, batch, key, train=False)

    def log_prob(self, params, model_state, batch: Batch, key) -> Float[Array, " batch"]:
        return -self.evaluate(params, model_state, batch, key)[0]

    def encode(self, params, model_state, batch: Batch, key) -> Indices:
        return codebooks.nearest(
            model_state["codebook"].codes, self._encoded(params, batch["image"])
        )

    def decode(self, params, model_state, latents, key, *, condition: Array | None = None):
        if not jnp.issubdtype(latents.dtype, jnp.integer):
            raise ValueError(f"latents must be indices of codes, integers, got {latents.dtype}")
        codes = model_state["codebook"].codes.at[latents].get(mode="fill", fill_value=jnp.nan)
        return self.likelihood.mean(self._pixels(params, codes))

    def sample(self, params, model_state, key, num: int, *, condition: Array | None = None):
        if self.prior is None:
            raise ValueError(
                "this VQ-VAE has no prior over its codes, and codes drawn uniformly decode to "
                "noise: fit a prior (an autoregressive network on `encode`'s indices) and give it "
                "as `prior`, or draw the picture of reconstructions"
            )
        key_codes, key_pixels = jax.random.split(key)
        indices = self.prior(key_codes, num, condition)
        return self.decode(params, model_state, indices, key_pixels)

    def _encoded(self, params, x):
        return self.encoder.apply({"params": params[ENCODER]}, x)

    def _pixels(self, params, codes):
        return self.decoder.apply({"params": params[DECODER]}, codes)

    def _revived(self, codebook: Codebook, encoded, key):
        replacements = codebooks.draw_outputs(key, lax.stop_gradient(encoded), self.num_codes)
        if self.axis_name is not None:
            # The mean of several devices' outputs, which the step would take, is no output.
            replacements = lax.all_gather(replacements, self.axis_name)[0]
            codebook = lax.pmean(codebook, self.axis_name)
        return codebooks.revive(codebook, replacements, self.revive_below)


def _used(indices: Indices, num_codes: int, mask: Array | None) -> dict[str, Array]:
    """Perplexity of the batch's codes and the share of codes used, for each example."""
    chosen = jax.nn.one_hot(indices, num_codes).mean(axis=(1, 2))
    shares = jax.vmap(masked_mean, in_axes=(1, None))(chosen, mask)
    entropy = jax.scipy.special.entr(shares).sum()
    shape = indices.shape[:1]
    return {
        "perplexity": jnp.broadcast_to(jnp.exp(entropy), shape),
        "usage": jnp.broadcast_to((shares > 0).mean(), shape),
    }
