"""Hierarchical variational autoencoders: many layers of latents, each given the coarser ones."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice
from jaxgen.conditioning import base as conditions
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
from jaxgen.distributions.likelihoods import Likelihood
from jaxgen.families.autoencoder import DECODER, ENCODER, check_shapes
from jaxgen.families.vae import OUTPUTS
from jaxgen.losses import vae as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.hierarchical_vae import VDVAE, Inferred, Latents
from jaxgen.sampling.latent import normal_hierarchy

NAME = "vae"
_MANY_SKIPPED = 0.5

Values = Float[Array, " batch"]


def hierarchical_vae(
    network: VDVAE,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    skip_norm: float | None = None,
    temperature: float = 1.0,
    output: str = "sample",
    eight_bit: bool = False,
) -> Family:
    """The family of the very deep VAE (Child 2021).

    The loss is the negative ELBO in nats, with one draw of the latents:

        -log p(x | z) + sum_l KL(q(z_l | z_<l, x) || p(z_l | z_<l))

    where each KL is in closed form given the coarser latents z_<l. `evaluate` is the same, of an
    own draw, and `log_prob` its negative, a lower bound. Its metrics are "reconstruction", "kl" and
    "negative_elbo" in nats, the KL of each resolution ("kl_4x4"), and of 8-bit data "bits_per_dim".

    Latents are a hierarchy, a tree by resolution, f32[B, blocks, height, width, latent], in units
    of their priors: `(z - mean) / std`, which under the prior are N(0, I). `encode` gives those of
    the posteriors' means, `decode` the likelihood's mean. `sample` has the option `temperature`, by
    which the standard deviations of all priors are multiplied. `watch` warns where most updates are
    skipped.

    Args:
        network: The network, encoder and decoder.
        likelihood: The likelihood of images, from `jaxgen.distributions.likelihoods`.
        optimizer: The optimizer of the network.
        image_shape: (H, W, C) of the data.
        skip_norm: Norm of the gradient of the loss in nats an example from which on an update is
            left out, see `core.Optimizer`; None for none.
        temperature: Temperature of `sample` where none is given, 0 or more.
        output: What `sample` gives: the likelihood's "mean", "mode" or "sample".
        eight_bit: Whether the likelihood is a mass of 8-bit data, so that bits per dimension have
            their meaning.

    Raises:
        ValueError: If an argument is out of its range, or the network makes images of another shape
            or for another likelihood.
    """
    height, width, channels = image_shape
    check_shapes(network.latent_dim, image_shape)
    check_choice("output", output, OUTPUTS)
    _check_temperature(temperature)
    shapes, num_dims = network.latent_shapes, math.prod(image_shape)
    if height != width or height != max(shapes):
        raise ValueError(
            f"image_shape must be that of the network, {max(shapes)}x{max(shapes)} pixels, got "
            f"{tuple(image_shape)}"
        )
    if network.num_params != likelihood.num_params(channels):
        raise ValueError(
            f"num_params of the network must be {likelihood.num_params(channels)}, as the "
            f"likelihood of {channels} channels needs, got {network.num_params}"
        )
    space = normal_hierarchy(shapes)
    draw = space.draw
    assert draw is not None

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        x = batch["image"]
        if x.shape[1:] != tuple(image_shape):
            raise ValueError(f"image_shape is {tuple(image_shape)}, but the data has {x.shape[1:]}")
        if not isinstance(x, jax.core.Tracer):
            likelihood.check(x)
        return Variables(dict(network.init(key, x[:1])["params"]), {}, fixed)

    def inferred(variables: Variables, x: Array, noise: Latents | None) -> Inferred:
        return network.apply({"params": variables.params}, x, noise)  # type: ignore[return-value]

    def generated(variables: Variables, noise: Latents) -> Array:
        params = {"params": variables.params}
        return network.apply(params, noise, method="generate")  # type: ignore[return-value]

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        x = batch["image"]
        seen = inferred(variables, x, draw(key, len(x)))
        by_resolution = {f"kl_{r}x{r}": kl.sum(axis=1) for r, kl in seen.kl.items()}
        kl = jnp.stack(list(by_resolution.values())).sum(axis=0)
        value, metrics = losses.negative_elbo(likelihood.log_prob(seen.params, x), kl)
        metrics |= by_resolution
        if eight_bit:
            metrics["bits_per_dim"] = bits_per_dim(value, num_dims)
        return value, metrics

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        value, metrics = evaluate(variables, batch, key)
        return value, Aux(metrics)

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Values:
        return -evaluate(variables, batch, key)[0]

    def encode(variables: Variables, batch: Batch, key: Array) -> Latents:
        return inferred(variables, batch["image"], None).latents

    def decode(variables: Variables, latents: Latents, key: Array, *, condition=None) -> Array:
        conditions.encode(None, variables, condition)
        return likelihood.mean(generated(variables, latents))

    def sample(
        variables: Variables,
        key: Key[Array, ""],
        num: int,
        *,
        condition: Array | None = None,
        temperature: float = temperature,
    ) -> Array:
        conditions.encode(None, variables, condition)
        _check_temperature(temperature)
        key_z, key_x = jax.random.split(key)
        noise = jax.tree.map(lambda eps: temperature * eps, draw(key_z, num))
        params = generated(variables, noise)
        if output == "sample":
            return likelihood.sample(key_x, params)
        return likelihood.mean(params) if output == "mean" else likelihood.mode(params)

    return Family(
        init,
        optimizers={NAME: Optimizer((ENCODER, DECODER), optimizer, skip_norm)},
        phases=(Phase(NAME, NAME, loss),),
        evaluate=evaluate,
        sample=sample,
        log_prob=log_prob,
        bound=Bound("ELBO", num_dims, eight_bit),
        encode=encode,
        decode=decode,
        latents=space,
        watch=_watch,
        name="Hierarchical VAE",
        sampling=Sampling(1, "one pass of the decoder for all pixels"),
    )


def _watch(metrics: Mapping[str, float]) -> Sequence[str]:
    """Warns where training hardly goes on, from a row of averaged metrics."""
    if not float(metrics.get("left_out", 0.0)) > _MANY_SKIPPED:
        return []
    return [
        f"more than {_MANY_SKIPPED:.0%} of the updates are skipped, since their gradient is too "
        "large: lower the learning rate, or raise the norm from which on updates are skipped"
    ]


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or more and finite, got {temperature}")
