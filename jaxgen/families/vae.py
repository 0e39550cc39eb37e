"""Variational autoencoders: encoder, decoder and likelihood become a `Family`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen import conditioning as conditions
from jaxgen.conditioning import Conditioning
from jaxgen.core import Aux, Batch, Bound, Family, Params, Phase, PyTree
from jaxgen.distributions import gaussian_kl, gaussian_log_prob
from jaxgen.families.autoencoder import (
    DECODER,
    ENCODER,
    check_decoder,
    check_shapes,
    init_networks,
)
from jaxgen.likelihoods import Likelihood
from jaxgen.losses import vae as losses
from jaxgen.losses.reduce import bits_per_dim, masked_mean
from jaxgen.primitives import check_choice, standard_normal
from jaxgen.sampling.latent import normal_latents

OBJECTIVES = ("elbo", "iwae", "dreg")
OUTPUTS = ("mean", "mode", "sample")
_ACTIVE_VARIANCE = 0.01
_FEW_ACTIVE = 0.05


def vae(
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    latent_dim: int,
    image_shape: tuple[int, int, int],
    objective: str = "elbo",
    num_importance: int = 1,
    beta: float = 1.0,
    kl_warmup_steps: int = 0,
    free_bits: float = 0.0,
    mmd_weight: float = 0.0,
    perceptual: Callable[[Array], Any] | None = None,
    perceptual_weight: float = 1.0,
    conditioning: Conditioning | None = None,
    bound_samples: int = 1,
    bound_chunk: int = 25,
    output: str = "mean",
    eight_bit: bool = False,
) -> Family:
    """The family of Kingma & Welling 2014 with a standard normal prior, and its descendants.

    The objective "elbo" is, in nats summed over pixels and over latents,

        -log p(x | z) + beta w(t) KL(q(z | x) || p(z)) + mmd_weight MMD(q(z), p(z))

    with z drawn from q: beta-VAE at beta > 1 (Higgins et al. 2017), InfoVAE with the MMD (Zhao et
    al. 2017, whose alpha and lambda are beta = 1 - alpha and mmd_weight = alpha + lambda - 1).
    "iwae" and "dreg" are the importance-weighted bound of K samples (Burda et al. 2016), by its own
    gradient or the doubly reparameterized one (Tucker et al. 2019).

    `evaluate` has none of the modifications: its loss is a bound of -log p(x), the ELBO with the KL
    in closed form where `bound_samples` is 1, the importance-weighted bound otherwise; `log_prob`
    is its negative. Its metrics are "reconstruction", "kl" and "negative_elbo" in nats,
    "active_units" and, of 8-bit data, "bits_per_dim" of the loss. `encode` returns posterior means.

    Args:
        encoder: `encoder(x, e) -> (mean, log_variance)`, see `jaxgen.models.vae`.
        decoder: `decoder(z, e) -> parameters of the likelihood`.
        likelihood: of images, from `jaxgen.likelihoods`.
        optimizer: trains both networks.
        latent_dim: of both networks.
        image_shape: (H, W, C) of the data.
        objective: "elbo", "iwae" or "dreg".
        num_importance: K of training; "elbo" is averaged over so many samples.
        beta: weight of the KL.
        kl_warmup_steps: losses computed until beta has its full weight, from 0 on; each micro-batch
            is one.
        free_bits: floor of each latent's KL, nats; see `losses.free_bits`.
        mmd_weight: of the squared MMD between a batch's latents and draws of the prior (under
            `pmap` a device's share of the batch).
        perceptual: images -> features, a fixed network's, in which the mean reconstruction and the
            image are compared besides (Dosovitskiy & Brox 2016); None for none.
        perceptual_weight: of that.
        conditioning: what both networks are told, or None.
        bound_samples: K of `evaluate` and `log_prob`.
        bound_chunk: samples of it that are in memory at a time; the bound is the same.
        output: of `sample`: the likelihood's "mean", "mode" or "sample". Only the last is a sample
            of the model; the others leave out the noise of the pixels.
        eight_bit: the likelihood is a mass of 8-bit data, so that bits per dimension have meaning.

    Raises:
        ValueError: if an argument is out of its range, or a modification of the KL is asked for
            with an objective that has none.
    """
    check_shapes(latent_dim, image_shape)
    check_choice("objective", objective, OBJECTIVES)
    check_choice("output", output, OUTPUTS)
    for name, count in (
        ("num_importance", num_importance),
        ("bound_samples", bound_samples),
        ("bound_chunk", bound_chunk),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    for name, weight in (
        ("beta", beta),
        ("kl_warmup_steps", kl_warmup_steps),
        ("free_bits", free_bits),
        ("mmd_weight", mmd_weight),
        ("perceptual_weight", perceptual_weight),
    ):
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {weight}")
    modified = (beta, kl_warmup_steps, free_bits, mmd_weight) != (1, 0, 0, 0)
    if objective != "elbo" and (modified or perceptual is not None):
        raise ValueError(
            "beta, kl_warmup_steps, free_bits, mmd_weight and perceptual belong to the objective "
            f"'elbo', got {objective!r}"
        )
    model = _Vae(
        encoder,
        decoder,
        likelihood,
        latent_dim,
        tuple(image_shape),
        objective,
        num_importance,
        beta,
        kl_warmup_steps,
        free_bits,
        mmd_weight,
        perceptual,
        perceptual_weight,
        conditioning,
        bound_samples,
        bound_chunk,
        output,
        eight_bit,
    )
    phase = Phase("vae", (ENCODER, DECODER), model.loss, optimizer)
    kind = "ELBO" if bound_samples == 1 else f"IWAE-{bound_samples}"
    bound = Bound(kind, math.prod(image_shape), eight_bit, given=conditions.key_of(conditioning))
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
    """Posterior collapse, from a row of averaged metrics: warnings, none where all is well."""
    if not float(metrics.get("active_units", 1.0)) < _FEW_ACTIVE:
        return []
    return [
        f"the posterior has collapsed: less than {_FEW_ACTIVE:.0%} of the latents are active (vary "
        "with the image), so the decoder ignores them. Lower beta, warm the KL up over more steps, "
        "give free bits, or use a weaker decoder"
    ]


@dataclass(frozen=True)
class _Vae:
    """The functions of `vae`, around its arguments."""

    encoder: Any
    decoder: Any
    likelihood: Likelihood
    latent_dim: int
    image_shape: tuple[int, ...]
    objective: str
    num_importance: int
    beta: float
    kl_warmup_steps: int
    free_bits: float
    mmd_weight: float
    perceptual: Callable[[Array], Any] | None
    perceptual_weight: float
    conditioning: Conditioning | None
    bound_samples: int
    bound_chunk: int
    output: str
    eight_bit: bool

    def init(self, key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        x, e = batch["image"], conditions.encode_batch(self.conditioning, batch)
        if not isinstance(x, jax.core.Tracer):
            self.likelihood.check(x)
        params = init_networks(
            self.encoder, self.decoder, key, x, e, self.latent_dim, self.image_shape
        )
        num_params = self.likelihood.num_params(self.image_shape[-1])
        check_decoder(self.decoder, params, e, self.latent_dim, self.image_shape, num_params)
        return params, {"losses": jnp.int32(0)} if self.kl_warmup_steps else {}

    def loss(self, params, model_state, batch: Batch, key, *, train: bool):
        x, e = batch["image"], conditions.encode_batch(self.conditioning, batch)
        key_z, key_prior = jax.random.split(key)
        mean, log_variance = self._posterior(params, x, e)
        eps = standard_normal(key_z, (self.num_importance, *mean.shape))
        z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
        if self.objective == "dreg":
            fixed = lax.stop_gradient((mean, log_variance))
            value = losses.dreg_loss(lambda z: self._log_weights(params, z, *fixed, x, e), z)
        elif self.objective == "iwae":
            value = losses.iwae_loss(self._log_weights(params, z, mean, log_variance, x, e))
        pixels = self._decoded(params, z, e)
        kl = gaussian_kl(mean, log_variance, 0.0, 0.0)
        beta, model_state = self._beta(model_state)
        weighted, terms = losses.negative_elbo(
            self._log_likelihood(pixels, x).mean(axis=0), kl.sum(axis=1), beta
        )
        if self.objective == "elbo":
            value = weighted
        if self.free_bits:
            floored = losses.free_bits(kl, self.free_bits, batch.get("mask"))
            value = terms["reconstruction"] + beta * floored
        metrics = {**terms, "active_units": _active_units(mean, batch.get("mask"))}
        if self.mmd_weight:
            prior = normal_latents(key_prior, mean.shape[0], self.latent_dim)
            mmd = losses.maximum_mean_discrepancy(z[0], prior)
            metrics["mmd"] = jnp.broadcast_to(mmd, value.shape)
            value = value + self.mmd_weight * mmd
        if self.perceptual is not None:
            rebuilt = self.likelihood.mean(pixels[0])
            distance = losses.perceptual_loss(self.perceptual(rebuilt), self.perceptual(x))
            metrics["perceptual"] = distance
            value = value + self.perceptual_weight * distance
        return value, Aux(self._with_bits(metrics, metrics["negative_elbo"]), model_state)

    def evaluate(self, params, model_state, batch: Batch, key, *, train: bool = False):
        x, e = batch["image"], conditions.encode_batch(self.conditioning, batch)
        key_z, key_bound = jax.random.split(key)
        mean, log_variance = self._posterior(params, x, e)
        z = mean + jnp.exp(0.5 * log_variance) * standard_normal(key_z, mean.shape)
        log_likelihood = self._log_likelihood(self._decoded(params, z[None], e), x)[0]
        kl = losses.gaussian_kl_to_standard(mean, log_variance)
        bound, terms = losses.negative_elbo(log_likelihood, kl)
        if self.bound_samples > 1:

            def log_weights(keys: Array) -> Array:
                eps = jax.vmap(lambda k: standard_normal(k, mean.shape))(keys)
                z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
                return self._log_weights(params, z, mean, log_variance, x, e)

            bound = -losses.importance_bound(
                log_weights, key_bound, self.bound_samples, self.bound_chunk
            )
        metrics = {**terms, "active_units": _active_units(mean, batch.get("mask"))}
        return bound, Aux(self._with_bits(metrics, bound), model_state)

    def log_prob(self, params, model_state, batch: Batch, key) -> Float[Array, " batch"]:
        return -self.evaluate(params, model_state, batch, key)[0]

    def encode(self, params, model_state, batch: Batch, key) -> Float[Array, "batch latent"]:
        return self._posterior(
            params, batch["image"], conditions.encode_batch(self.conditioning, batch)
        )[0]

    def decode(self, params, model_state, latents, key, *, condition: Array | None = None):
        e = conditions.encode(self.conditioning, condition)
        return self.likelihood.mean(self._decoded(params, latents[None], e)[0])

    def sample(self, params, model_state, key, num: int, *, condition: Array | None = None):
        key_z, key_x = jax.random.split(key)
        e = conditions.encode(self.conditioning, condition)
        z = normal_latents(key_z, num, self.latent_dim)
        pixels = self._decoded(params, z[None], e)[0]
        if self.output == "sample":
            return self.likelihood.sample(key_x, pixels)
        return (
            self.likelihood.mean(pixels) if self.output == "mean" else self.likelihood.mode(pixels)
        )

    def _beta(self, model_state) -> tuple[Any, PyTree]:
        """The KL's weight now, and the state with one more loss counted."""
        if not self.kl_warmup_steps:
            return self.beta, model_state
        count = model_state["losses"]
        weight = self.beta * losses.kl_warmup(count, self.kl_warmup_steps)
        return weight, {**model_state, "losses": count + 1}

    def _posterior(self, params, x, e):
        return self.encoder.apply({"params": params[ENCODER]}, x, e)

    def _decoded(self, params, z, e):
        """The likelihood's parameters [K, B, H, W, P] of latents [K, B, D]: one call for all."""
        told = None if e is None else jnp.tile(e, (z.shape[0], 1))
        flat = z.reshape(-1, z.shape[-1])
        pixels = self.decoder.apply({"params": params[DECODER]}, flat, told)
        return pixels.reshape(*z.shape[:2], *pixels.shape[1:])

    def _log_likelihood(self, pixels, x):
        """log p(x | z), [K, B]."""
        return jax.vmap(self.likelihood.log_prob, in_axes=(0, None))(pixels, x)

    def _log_weights(self, params, z, mean, log_variance, x, e):
        """log p(x | z) + log p(z) - log q(z | x), [K, B], of z [K, B, D]."""
        log_q = gaussian_log_prob(z, mean[None], log_variance[None])
        ratio = (gaussian_log_prob(z, 0.0, 0.0) - log_q).sum(axis=-1)
        return self._log_likelihood(self._decoded(params, z, e), x) + ratio

    def _with_bits(self, metrics, nats):
        if not self.eight_bit:
            return metrics
        return {**metrics, "bits_per_dim": bits_per_dim(nats, math.prod(self.image_shape))}


def _active_units(mean: Array, mask: Array | None) -> Float[Array, " batch"]:
    """The share of latents whose posterior mean varies over the batch by more than 0.01 (Burda et
    al. 2016, section 5.2, where it is over all the data), for each example."""
    mean = lax.stop_gradient(mean)
    over_batch = jax.vmap(masked_mean, in_axes=(1, None))
    centred = mean - over_batch(mean, mask)[None]
    active = over_batch(jnp.square(centred), mask) > _ACTIVE_VARIANCE
    return jnp.broadcast_to(active.mean(), mean.shape[:1])
