"""Variational autoencoders: encoder, decoder and likelihood become a `Family`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Bound,
    Family,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.distributions.elementwise import gaussian_kl, gaussian_log_prob, standard_normal
from jaxgen.distributions.likelihoods import Likelihood
from jaxgen.families.autoencoder import (
    DECODER,
    ENCODER,
    check_decoder,
    check_shapes,
    init_networks,
)
from jaxgen.families.flow import collections_of, split_collections
from jaxgen.losses import perceptual as perceptuals
from jaxgen.losses import vae as losses
from jaxgen.losses.flow import negative_log_likelihood
from jaxgen.losses.perceptual import Perceptual
from jaxgen.losses.reduce import bits_per_dim, weighted_mean
from jaxgen.sampling.latent import normal_latents, normal_space

NAME, PRIOR = "vae", "prior"
OBJECTIVES = ("elbo", "iwae", "dreg")
OUTPUTS = ("mean", "mode", "sample")
_ACTIVE_VARIANCE = 0.01
_FEW_ACTIVE = 0.05

Values = Float[Array, " batch"]


def vae(
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    latent_dim: int,
    image_shape: tuple[int, int, int],
    prior: nn.Module | None = None,
    objective: str = "elbo",
    num_importance: int = 1,
    beta: float = 1.0,
    kl_warmup_steps: int = 0,
    free_bits: float = 0.0,
    mmd_weight: float = 0.0,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
    conditioning: Conditioning | None = None,
    bound_samples: int = 1,
    bound_chunk: int = 25,
    output: str = "mean",
    eight_bit: bool = False,
) -> Family:
    """The family of Kingma & Welling 2014, and its descendants.

    The objective "elbo" is, in nats summed over pixels and over latents,

        -log p(x | z) + beta w(t) KL(q(z | x) || p(z)) + mmd_weight MMD(q(z), p(z))

    with z drawn from q: beta-VAE at beta > 1 (Higgins et al. 2017), InfoVAE with the MMD (Zhao et
    al. 2017, whose alpha and lambda are beta = 1 - alpha and mmd_weight = alpha + lambda - 1).
    "iwae" and "dreg" are the importance-weighted bound of K samples (Burda et al. 2016), by its own
    gradient or the doubly reparameterized one (Tucker et al. 2019).

    The prior p(z) is N(0, I), with the KL in closed form, or a flow f learned with the rest, of
    which `log p(z) = log N(f(z); 0, I) + log |det df/dz|` (Chen et al. 2017, section 3.2); the KL
    is then `log q(z | x) - log p(z)` of the z drawn.

    `evaluate` has none of the modifications: its values are a bound of -log p(x), the ELBO where
    `bound_samples` is 1, the importance-weighted bound otherwise; `log_prob` is its negative. Its
    metrics are "reconstruction", "kl" and "negative_elbo" in nats, "active_units", of 8-bit data
    "bits_per_dim" of the values, and "perceptual" where there is such a distance. The latents of
    `encode`, `decode` and `latents` are those that are N(0, I), z or f(z); `encode` returns that of
    the posterior mean. `watch` warns of posterior collapse.

    Args:
        encoder: A network `encoder(x, condition) -> (mean, log_variance)`, see `jaxgen.models.vae`.
        decoder: A network `decoder(z, condition) -> parameters of the likelihood`.
        likelihood: The likelihood of images, from `jaxgen.distributions.likelihoods`.
        optimizer: The optimizer of both networks.
        latent_dim: The numbers in a latent, of both networks.
        image_shape: (H, W, C) of the data.
        prior: A bijector from latents to N(0, I) (`jaxgen.models.bijectors`), None for N(0, I).
        objective: The training objective, "elbo", "iwae" or "dreg".
        num_importance: The samples K of training; "elbo" is averaged over so many.
        beta: Weight of the KL.
        kl_warmup_steps: The updates until beta has its full weight, from 0 on.
        free_bits: The floor of each latent's KL, nats; see `losses.free_bits`. With N(0, I) only.
        mmd_weight: Weight of the squared MMD between a batch's latents and draws of the prior
            (under `pmap` a device's share of the batch).
        perceptual: A distance in a frozen network's features (`jaxgen.losses.perceptual`), by which
            the mean reconstruction and the image are compared besides; None for none. It is of the
            latent drawn, the first of several.
        perceptual_weight: Weight of that distance, nats for its 1.
        conditioning: What both networks are conditioned on, or None.
        bound_samples: The samples K of `evaluate` and `log_prob`.
        bound_chunk: The samples of that bound in memory at a time; the bound is the same.
        output: What `sample` gives: the likelihood's "mean", "mode" or "sample". Only the last is a
            sample of the model; the others leave out the noise of the pixels.
        eight_bit: Whether the likelihood is a mass of 8-bit data, so that bits per dimension have
            their meaning.

    Raises:
        ValueError: If an argument is out of its range, or a modification of the KL is asked for
            with an objective or a prior that has none.
    """
    check_shapes(latent_dim, image_shape)
    check_choice("output", output, OUTPUTS)
    _check_counts(num_importance, bound_samples, bound_chunk)
    _check_objective(
        objective, beta, kl_warmup_steps, free_bits, mmd_weight, perceptual, perceptual_weight
    )
    if free_bits and prior is not None:
        raise ValueError(
            f"free_bits needs the prior N(0, I), whose KL is a sum over latents, got {free_bits} "
            "with a learned prior"
        )
    terms = _terms(encoder, decoder, likelihood, prior)
    learned = () if prior is None else (PRIOR,)
    trains = (ENCODER, DECODER, *learned, *conditions.trains(conditioning))

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        x, trained = batch["image"], conditions.init(conditioning, jax.random.fold_in(key, 2))
        condition = conditions.encode_batch(conditioning, Variables(trained, {}, fixed), batch)
        if not isinstance(x, jax.core.Tracer):
            likelihood.check(x)
        params = init_networks(encoder, decoder, key, x, condition, latent_dim, image_shape)
        num_params = likelihood.num_params(image_shape[-1])
        check_decoder(decoder, params, condition, latent_dim, image_shape, num_params)
        if prior is None:
            return Variables({**params, **trained}, {}, fixed)
        mean, log_variance = terms.posterior(Variables(params), x, condition)
        key_prior, key_z = jax.random.split(jax.random.fold_in(key, 4))
        z = mean + jnp.exp(0.5 * log_variance) * standard_normal(key_z, mean.shape)
        params[PRIOR], constants = split_collections(prior.init(key_prior, z, condition))
        return Variables({**params, **trained}, {PRIOR: constants}, fixed)

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        x = batch["image"]
        condition = conditions.encode_batch(conditioning, variables, batch)
        key_z, key_prior = jax.random.split(key)
        mean, log_variance = terms.posterior(variables, x, condition)
        eps = standard_normal(key_z, (num_importance, *mean.shape))
        z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
        if objective == "dreg":
            stopped = lax.stop_gradient((mean, log_variance))
            value = losses.dreg_loss(
                lambda z: terms.log_weights(variables, z, *stopped, x, condition), z
            )
        elif objective == "iwae":
            log_weights = terms.log_weights(variables, z, mean, log_variance, x, condition)
            value = losses.iwae_loss(log_weights)
        pixels = terms.pixels(variables, z, condition)
        kl = terms.divergence(variables, z, mean, log_variance, condition)
        weight = beta * losses.kl_warmup(step, kl_warmup_steps) if kl_warmup_steps else beta
        log_likelihood = terms.log_likelihood(pixels, x).mean(axis=0)
        weighted, metrics = losses.negative_elbo(log_likelihood, kl, weight)
        if objective == "elbo":
            value = weighted
        if free_bits:
            each = gaussian_kl(mean, log_variance, 0.0, 0.0)
            floored = losses.free_bits(each, free_bits, batch.get("weight"))
            value = metrics["reconstruction"] + weight * floored
        metrics["active_units"] = _active_units(mean, batch.get("weight"))
        if mmd_weight:
            drawn = normal_latents(key_prior, mean.shape[0], latent_dim)
            drawn = terms.from_normal(variables, drawn, condition)
            mmd = losses.maximum_mean_discrepancy(z[0], drawn)
            metrics["mmd"] = jnp.broadcast_to(mmd, value.shape)
            value = value + mmd_weight * mmd
        if perceptual is not None:
            metrics["perceptual"] = distance(variables, pixels[0], x)
            value = value + perceptual_weight * metrics["perceptual"]
        return value, Aux(with_bits(metrics, metrics["negative_elbo"]))

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        x = batch["image"]
        condition = conditions.encode_batch(conditioning, variables, batch)
        key_z, key_bound = jax.random.split(key)
        mean, log_variance = terms.posterior(variables, x, condition)
        z = (mean + jnp.exp(0.5 * log_variance) * standard_normal(key_z, mean.shape))[None]
        pixels = terms.pixels(variables, z, condition)
        log_likelihood = terms.log_likelihood(pixels, x)[0]
        kl = terms.divergence(variables, z, mean, log_variance, condition)
        value, metrics = losses.negative_elbo(log_likelihood, kl)
        if perceptual is not None:
            metrics["perceptual"] = distance(variables, pixels[0], x)
        if bound_samples > 1:

            def log_weights(keys: Array) -> Array:
                eps = jax.vmap(lambda k: standard_normal(k, mean.shape))(keys)
                z = mean[None] + jnp.exp(0.5 * log_variance)[None] * eps
                return terms.log_weights(variables, z, mean, log_variance, x, condition)

            value = -losses.importance_bound(log_weights, key_bound, bound_samples, bound_chunk)
        metrics["active_units"] = _active_units(mean, batch.get("weight"))
        return value, with_bits(metrics, value)

    def distance(variables: Variables, pixels: Array, x: Array) -> Values:
        assert perceptual is not None
        arrays = variables.fixed[perceptuals.NAME]
        return perceptual.distance(arrays, likelihood.mean(pixels), x)

    def with_bits(metrics: Metrics, nats: Array) -> Metrics:
        if not eight_bit:
            return metrics
        return {**metrics, "bits_per_dim": bits_per_dim(nats, math.prod(image_shape))}

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Values:
        return -evaluate(variables, batch, key)[0]

    def encode(variables: Variables, batch: Batch, key: Array) -> Float[Array, "batch latent"]:
        condition = conditions.encode_batch(conditioning, variables, batch)
        mean, _ = terms.posterior(variables, batch["image"], condition)
        return terms.to_normal(variables, mean, condition)[0]

    def decode(variables: Variables, latents: Array, key: Array, *, condition=None) -> Array:
        encoded = conditions.encode(conditioning, variables, condition)
        z = terms.from_normal(variables, latents, encoded)
        return likelihood.mean(terms.pixels(variables, z[None], encoded)[0])

    def sample(variables: Variables, key: Array, num: int, *, condition=None) -> Array:
        key_z, key_x = jax.random.split(key)
        encoded = conditions.encode(conditioning, variables, condition)
        z = terms.from_normal(variables, normal_latents(key_z, num, latent_dim), encoded)
        pixels = terms.pixels(variables, z[None], encoded)[0]
        if output == "sample":
            return likelihood.sample(key_x, pixels)
        return likelihood.mean(pixels) if output == "mean" else likelihood.mode(pixels)

    kind = "ELBO" if bound_samples == 1 else f"IWAE-{bound_samples}"
    return Family(
        init,
        optimizers={NAME: Optimizer(trains, optimizer)},
        phases=(Phase(NAME, NAME, loss),),
        evaluate=evaluate,
        sample=sample,
        log_prob=log_prob,
        bound=Bound(kind, math.prod(image_shape), eight_bit, given=conditions.key_of(conditioning)),
        encode=encode,
        decode=decode,
        latents=normal_space(latent_dim),
        conditioning=conditioning,
        fixed={**conditions.fixed(conditioning), **perceptuals.fixed(perceptual)},
        watch=_watch,
        name="VAE",
        sampling=Sampling(1, "one pass of the decoder for all pixels"),
    )


class _Terms(NamedTuple):
    """The terms of the bounds, of K latents [K, B, D] for each of B images.

    Attributes:
        posterior: `(variables, x, condition) -> (mean, log_variance)` of q(z | x), each [B, D].
        to_normal: `(variables, z, condition) -> (latents under N(0, I), log |det|)` of z [B, D].
        from_normal: `(variables, latents, condition) -> z`, its inverse.
        pixels: `(variables, z, condition) -> parameters of the likelihood`, [K, B, H, W, P].
        log_likelihood: `(pixels, x) -> log p(x | z)`, [K, B].
        divergence: `(variables, z, mean, log_variance, condition) -> KL(q(z | x) || p(z))`, [B]:
            in closed form, or the mean over the K latents.
        log_weights: `(variables, z, mean, log_variance, x, condition) -> log w`, [K, B], with
            `log w = log p(x | z) + log p(z) - log q(z | x)`.
    """

    posterior: Callable[[Variables, Array, Condition | None], tuple[Array, Array]]
    to_normal: Callable[[Variables, Array, Condition | None], tuple[Array, Array | float]]
    from_normal: Callable[[Variables, Array, Condition | None], Array]
    pixels: Callable[[Variables, Array, Condition | None], Array]
    log_likelihood: Callable[[Array, Array], Array]
    divergence: Callable[[Variables, Array, Array, Array, Condition | None], Array]
    log_weights: Callable[[Variables, Array, Array, Array, Array, Condition | None], Array]


def _terms(
    encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, prior: nn.Module | None
) -> _Terms:
    def posterior(variables, x, condition):
        return encoder.apply({"params": variables.params[ENCODER]}, x, condition)

    def to_normal(variables, z, condition):
        if prior is None:
            return z, 0.0
        return prior.apply(collections_of(variables, PRIOR), z, condition)

    def from_normal(variables, latents, condition):
        if prior is None:
            return latents
        collections = collections_of(variables, PRIOR)
        outputs: Any = prior.apply(collections, latents, condition, method="inverse")
        return outputs[0]

    def pixels(variables, z, condition):
        flat, tiled = _one_batch(z, condition)  # one call of the decoder for all
        decoded: Any = decoder.apply({"params": variables.params[DECODER]}, flat, tiled)
        return decoded.reshape(*z.shape[:2], *decoded.shape[1:])

    def log_likelihood(pixels, x):
        return jax.vmap(likelihood.log_prob, in_axes=(0, None))(pixels, x)

    def log_ratio(variables, z, mean, log_variance, condition):
        log_q = gaussian_log_prob(z, mean[None], log_variance[None])
        if prior is None:
            return (gaussian_log_prob(z, 0.0, 0.0) - log_q).sum(axis=-1)
        normal, log_det = to_normal(variables, *_one_batch(z, condition))
        log_p = -negative_log_likelihood(normal, log_det).reshape(z.shape[:2])
        return log_p - log_q.sum(axis=-1)

    def divergence(variables, z, mean, log_variance, condition):
        if prior is None:
            return losses.gaussian_kl_to_standard(mean, log_variance)
        return -log_ratio(variables, z, mean, log_variance, condition).mean(axis=0)

    def log_weights(variables, z, mean, log_variance, x, condition):
        ratio = log_ratio(variables, z, mean, log_variance, condition)
        return log_likelihood(pixels(variables, z, condition), x) + ratio

    return _Terms(
        posterior, to_normal, from_normal, pixels, log_likelihood, divergence, log_weights
    )


def _one_batch(z: Array, condition: Condition | None) -> tuple[Array, Condition | None]:
    """K latents of each of B examples and their conditions, [K B, ...]."""
    tiled = jax.tree.map(lambda v: jnp.tile(v, (len(z),) + (1,) * (v.ndim - 1)), condition)
    return z.reshape(-1, z.shape[-1]), tiled


def _active_units(mean: Array, weight: Array | None) -> Values:
    """The share of latents whose posterior mean varies over the batch by more than 0.01 (Burda et
    al. 2016, section 5.2, where it is over all the data), for each example."""
    mean = lax.stop_gradient(mean)
    over_batch = jax.vmap(weighted_mean, in_axes=(1, None))
    centred = mean - over_batch(mean, weight)[None]
    active = over_batch(jnp.square(centred), weight) > _ACTIVE_VARIANCE
    return jnp.broadcast_to(active.mean(), mean.shape[:1])


def _watch(metrics: Mapping[str, float]) -> Sequence[str]:
    """Warns of posterior collapse, from a row of averaged metrics."""
    if not float(metrics.get("active_units", 1.0)) < _FEW_ACTIVE:
        return []
    return [
        f"the posterior has collapsed: less than {_FEW_ACTIVE:.0%} of the latents are active (vary "
        "with the image), so the decoder ignores them. Lower beta, warm the KL up over more steps, "
        "give free bits, or use a weaker decoder"
    ]


def _check_counts(num_importance: int, bound_samples: int, bound_chunk: int) -> None:
    for name, count in (
        ("num_importance", num_importance),
        ("bound_samples", bound_samples),
        ("bound_chunk", bound_chunk),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_objective(
    objective: str,
    beta: float,
    kl_warmup_steps: int,
    free_bits: float,
    mmd_weight: float,
    perceptual: Perceptual | None,
    perceptual_weight: float,
) -> None:
    check_choice("objective", objective, OBJECTIVES)
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
