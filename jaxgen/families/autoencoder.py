"""The plain autoencoder, and what every family of an encoder and a decoder checks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition
from jaxgen.core import (
    Aux,
    Batch,
    Family,
    LatentSpace,
    Metrics,
    Optimizer,
    Params,
    Phase,
    PyTree,
    Variables,
)
from jaxgen.sampling.latent import interpolate

ENCODER, DECODER = "encoder", "decoder"
NAME = "autoencoder"


def autoencoder(
    encoder: nn.Module,
    decoder: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    latent_dim: int,
    image_shape: tuple[int, int, int],
) -> Family:
    """The plain autoencoder: a bottleneck, and the squared error *summed* over pixels and channels.

    The metric "mse" is the mean over them instead. There is no prior and no likelihood: `sample`,
    `log_prob` and `latents.draw` are None. `decode` gives images of [-1, 1], cut off there.

    Args:
        encoder: A network `encoder(x) -> (latents, None)`, such as
            `DenseEncoder(..., stochastic=False)`.
        decoder: A network `decoder(z) -> images`: a decoder of `num_params` = channels.
        optimizer: The optimizer of both networks.
        latent_dim: The numbers in a latent, of both networks.
        image_shape: (H, W, C) of the data.

    Raises:
        ValueError: If `latent_dim` is below 1 or `image_shape` no shape of images.
    """
    check_shapes(latent_dim, image_shape)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        params = init_networks(encoder, decoder, key, batch["image"], None, latent_dim, image_shape)
        check_decoder(decoder, params, None, latent_dim, image_shape, image_shape[-1])
        return Variables(params, {}, fixed)

    def encode(variables: Variables, batch: Batch, key) -> Float[Array, "batch latent"]:
        params = {"params": variables.params[ENCODER]}
        return encoder.apply(params, batch["image"])[0]  # type: ignore[index]

    def rebuild(variables: Variables, latents: Array) -> Array:
        return decoder.apply({"params": variables.params[DECODER]}, latents)  # type: ignore[return-value]

    def evaluate(variables: Variables, batch: Batch, key) -> tuple[Float[Array, " batch"], Metrics]:
        x = batch["image"]
        rebuilt = rebuild(variables, encode(variables, batch, key))
        squares = jnp.square(rebuilt - x).reshape(x.shape[0], -1)
        return squares.sum(axis=1), {"mse": squares.mean(axis=1)}

    def loss(variables: Variables, batch: Batch, key, step) -> tuple[Float[Array, " batch"], Aux]:
        values, metrics = evaluate(variables, batch, key)
        return values, Aux(metrics)

    def decode(variables: Variables, latents: Array, key, *, condition: Array | None = None):
        conditions.encode(None, variables, condition)
        return jnp.clip(rebuild(variables, latents), -1, 1)

    return Family(
        init,
        optimizers={NAME: Optimizer((ENCODER, DECODER), optimizer)},
        phases=(Phase(NAME, NAME, loss),),
        evaluate=evaluate,
        encode=encode,
        decode=decode,
        latents=LatentSpace(interpolate, width=latent_dim),
        name="Autoencoder",
    )


def init_networks(
    encoder: nn.Module,
    decoder: nn.Module,
    key: Key[Array, ""],
    x: Array,
    condition: Condition | None,
    latent_dim: int,
    image_shape: tuple[int, int, int],
) -> dict[str, PyTree]:
    """Parameters of both networks, of which the encoder's fit the data and the latents.

    Raises:
        ValueError: Images or an encoder of other shapes than the arguments say.
    """
    if x.shape[1:] != tuple(image_shape):
        raise ValueError(f"image_shape is {tuple(image_shape)}, but the data has {x.shape[1:]}")
    key_encoder, key_decoder = jax.random.split(key)
    encoded = encoder.init(key_encoder, x, condition)
    latents = jax.eval_shape(lambda: encoder.apply(encoded, x, condition)[0])  # type: ignore[index]
    if latents.shape[1:] != (latent_dim,):
        raise ValueError(f"latent_dim is {latent_dim}, but the encoder has {latents.shape[1:]}")
    decoded = decoder.init(key_decoder, jnp.zeros((x.shape[0], latent_dim)), condition)
    return {ENCODER: encoded["params"], DECODER: decoded["params"]}


def check_decoder(
    decoder: nn.Module,
    params: Params,
    condition: Condition | None,
    latent_dim: int,
    image_shape: tuple[int, int, int],
    num_params: int,
) -> None:
    """Raise ValueError unless the decoder makes `num_params` numbers a pixel of `image_shape`."""
    z = jnp.zeros((1, latent_dim))
    first = jax.tree.map(lambda leaf: leaf[:1], condition)
    pixels = jax.eval_shape(lambda: decoder.apply({"params": params[DECODER]}, z, first))
    shape = pixels.shape[1:]  # type: ignore[union-attr]
    if shape != (*image_shape[:2], num_params):
        raise ValueError(
            f"the decoder makes {shape}, but images of {tuple(image_shape)} need "
            f"{(*image_shape[:2], num_params)} parameters of their likelihood"
        )


def check_shapes(latent_dim: int, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError for a latent or an image of no size."""
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
