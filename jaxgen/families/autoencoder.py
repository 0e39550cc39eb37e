"""The plain autoencoder, and what every family of an encoder and a decoder checks."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxgen import conditioning as conditions
from jaxgen.core import Aux, Batch, Family, Params, Phase, PyTree

ENCODER, DECODER = "encoder", "decoder"


def autoencoder(
    encoder: nn.Module,
    decoder: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    latent_dim: int,
    image_shape: tuple[int, int, int],
) -> Family:
    """The plain autoencoder: a bottleneck, and the squared error *summed* over pixels and channels.

    The metric "mse" is the mean over them instead. There is no prior and no likelihood: `sample`
    refuses, `log_prob` is None. `decode` gives images of [-1, 1], cut off there.

    Args:
        encoder: `encoder(x) -> (latents, None)`, such as `DenseEncoder(..., stochastic=False)`.
        decoder: `decoder(z) -> images`: a decoder of `num_params` = channels.
        optimizer: trains both networks.
        latent_dim: of both networks.
        image_shape: (H, W, C) of the data.

    Raises:
        ValueError: if `latent_dim` is below 1 or `image_shape` no shape of images.
    """
    check_shapes(latent_dim, image_shape)

    def encode(params, model_state, batch, key) -> Float[Array, "batch latent"]:
        return encoder.apply({"params": params[ENCODER]}, batch["image"])[0]  # type: ignore[index]

    def rebuild(params, latents) -> Array:
        return decoder.apply({"params": params[DECODER]}, latents)  # type: ignore[return-value]

    def init(key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        params = init_networks(encoder, decoder, key, batch["image"], None, latent_dim, image_shape)
        check_decoder(decoder, params, None, latent_dim, image_shape, image_shape[-1])
        return params, {}

    def loss(params, model_state, batch, key, *, train: bool):
        x = batch["image"]
        rebuilt = rebuild(params, encode(params, model_state, batch, key))
        squares = jnp.square(rebuilt - x).reshape(x.shape[0], -1)
        return squares.sum(axis=1), Aux({"mse": squares.mean(axis=1)}, model_state)

    def sample(params, model_state, key, num: int, *, condition: Array | None = None):
        raise ValueError(
            "an autoencoder has no prior to sample from: train a VAE, or draw the pictures that "
            "begin with examples, such as reconstructions"
        )

    def decode(params, model_state, latents, key, *, condition: Array | None = None):
        conditions.encode(None, condition)
        return jnp.clip(rebuild(params, latents), -1, 1)

    phase = Phase("autoencoder", (ENCODER, DECODER), loss, optimizer)
    return Family(init, (phase,), loss, sample, encode=encode, decode=decode)


def init_networks(encoder, decoder, key, x, e, latent_dim, image_shape) -> dict[str, PyTree]:
    """Parameters of both networks, of which the encoder's fit the data and the latents."""
    if x.shape[1:] != tuple(image_shape):
        raise ValueError(f"image_shape is {tuple(image_shape)}, but the data has {x.shape[1:]}")
    key_encoder, key_decoder = jax.random.split(key)
    encoded = encoder.init(key_encoder, x, e)
    found = jax.eval_shape(lambda: encoder.apply(encoded, x, e)[0]).shape
    if found[1:] != (latent_dim,):
        raise ValueError(f"latent_dim is {latent_dim}, but the encoder has {found[1:]}")
    decoded = decoder.init(key_decoder, jnp.zeros((x.shape[0], latent_dim)), e)
    return {ENCODER: encoded["params"], DECODER: decoded["params"]}


def check_decoder(decoder, params, e, latent_dim, image_shape, num_params: int) -> None:
    """Raise ValueError unless the decoder makes `num_params` numbers a pixel of `image_shape`."""
    z = jnp.zeros((1, latent_dim))
    told = None if e is None else e[:1]
    shape = jax.eval_shape(lambda: decoder.apply({"params": params[DECODER]}, z, told)).shape[1:]
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
