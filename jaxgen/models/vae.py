"""Encoders and decoders of autoencoders and VAEs: dense ones and convolutional ones.

Encoders turn images into the mean and log-variance of a Gaussian over latents, decoders turn
latents into the numbers that a likelihood of images needs. Both take a condition by one vector an
example (`jaxgen.conditioning`), appended to what they flatten. There is no batch normalization: the
bound of one example must not depend on the others. The first and the last layer are float32
whatever `dtype` is.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.conv.layers import Conv, ConvTranspose
from jaxgen.models.dcgan import levels

# e^15 is 3e6: far from any posterior, and its exponential far from overflow.
_MAX_LOG_VARIANCE = 15.0

Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch latent"]
Posterior = tuple[Latents, Latents | None]


class DenseEncoder(nn.Module):
    """From images to a Gaussian over latents, through fully connected layers.

    Attributes:
        latent_dim: The numbers in a latent.
        features: The widths of the hidden layers, from the image on; Burda et al. 2016 have two of
            200.
        activation: The function after each hidden layer.
        stochastic: Whether there is a variance; a plain autoencoder needs none.
        dtype: The type of the computation; parameters, mean and log-variance are float32.

    Examples:
        >>> encoder = DenseEncoder(latent_dim=5)
        >>> x = jnp.zeros((2, 8, 8, 1))
        >>> mean, log_variance = encoder.apply(encoder.init(jax.random.key(0), x), x)
        >>> mean.shape, log_variance.shape
        ((2, 5), (2, 5))
    """

    latent_dim: int
    features: tuple[int, ...] = (200, 200)
    activation: Callable[[Array], Array] = nn.tanh
    stochastic: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images, condition: Condition | None = None) -> Posterior:
        """`(mean, log_variance)` of q(z | x, condition), each [B, latent_dim], or `(mean, None)`.

        Raises:
            ValueError: If `latent_dim` is below 1, or the condition has tokens.
        """
        e = vector_of(condition)
        h = _beside(x.reshape(x.shape[0], -1), e)
        h = _hidden(h, self.features, self.activation, self.dtype)
        return _PosteriorHead(self.latent_dim, self.stochastic, name="posterior")(h)


class DenseDecoder(nn.Module):
    """From latents to a likelihood's parameters, through fully connected layers.

    Attributes:
        image_size: The height and width of the images.
        num_params: The numbers a pixel, `likelihood.num_params(channels)`; of a plain autoencoder
            the channels.
        features: The widths of the hidden layers, from the latents on.
        activation: The function after each hidden layer.
        dtype: The type of the computation; parameters and results are float32.
    """

    image_size: tuple[int, int]
    num_params: int
    features: tuple[int, ...] = (200, 200)
    activation: Callable[[Array], Array] = nn.tanh
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Latents, condition: Condition | None = None
    ) -> Float[Array, "batch height width params"]:
        """Parameters of p(x | z, condition), [B, height, width, num_params].

        Raises:
            ValueError: If the condition has tokens.
        """
        e = vector_of(condition)
        shape = (*self.image_size, self.num_params)
        h = _hidden(_beside(z, e), self.features, self.activation, self.dtype)
        h = nn.Dense(math.prod(shape), dtype=jnp.float32, name="pixels")(h)
        return h.reshape(-1, *shape)


class ConvEncoder(nn.Module):
    """From square images to a Gaussian over latents: 4x4 convolutions of stride 2, a dense layer.

    Attributes:
        latent_dim: The numbers in a latent.
        channels: The channels of the first layer; each one after it has twice as many.
        hidden: The width of the dense layer.
        min_size: The least side of the last image, see `jaxgen.models.dcgan.levels`.
        activation: The function after each layer.
        stochastic: Whether there is a variance; a plain autoencoder needs none.
        dtype: The type of the computation; parameters, mean and log-variance are float32.
    """

    latent_dim: int
    channels: int = 32
    hidden: int = 256
    min_size: int = 4
    activation: Callable[[Array], Array] = nn.relu
    stochastic: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images, condition: Condition | None = None) -> Posterior:
        """`(mean, log_variance)` of q(z | x, condition), each [B, latent_dim], or `(mean, None)`.

        Raises:
            ValueError: Images that are not square or of a size that the network cannot halve, a
                `latent_dim` below 1, or a condition with tokens.
        """
        e = vector_of(condition)
        _, height, width, _ = x.shape
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}")
        _, halvings = levels(height, self.min_size)
        h = x
        for level in range(halvings):
            down = Conv(
                self.channels * 2**level,
                (4, 4),
                strides=(2, 2),
                padding=((1, 1), (1, 1)),
                dtype=self.dtype if level else jnp.float32,
                name=f"down{level + 1}",
            )
            h = self.activation(down(h).astype(self.dtype))
        h = _beside(h.reshape(h.shape[0], -1), e)
        h = self.activation(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(h))
        return _PosteriorHead(self.latent_dim, self.stochastic, name="posterior")(h)


class ConvDecoder(nn.Module):
    """`ConvEncoder` turned round: dense layers, then transposed 4x4 convolutions of stride 2.

    Attributes:
        image_size: The height and width of the images, `b 2^k` as `jaxgen.models.dcgan.levels` has
            it.
        num_params: The numbers a pixel, `likelihood.num_params(channels)`.
        channels: The channels of the last hidden layer; each one before it has twice as many.
        hidden: The width of the dense layer after the latents.
        min_size: The least side of the first image.
        activation: The function after each layer but the last.
        dtype: The type of the computation; parameters and results are float32.
    """

    image_size: int
    num_params: int
    channels: int = 32
    hidden: int = 256
    min_size: int = 4
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Latents, condition: Condition | None = None
    ) -> Float[Array, "batch height width params"]:
        """Parameters of p(x | z, condition), [B, image_size, image_size, num_params].

        Raises:
            ValueError: An image size that the network cannot make, or a condition with tokens.
        """
        e = vector_of(condition)
        base, doublings = levels(self.image_size, self.min_size)
        features = self.channels * 2 ** (doublings - 1)
        h = nn.Dense(self.hidden, dtype=jnp.float32, name="hidden")(_beside(z, e))
        h = self.activation(h.astype(self.dtype))
        h = self.activation(nn.Dense(base * base * features, dtype=self.dtype, name="project")(h))
        h = h.reshape(-1, base, base, features)
        for level in range(1, doublings + 1):
            last = level == doublings
            h = ConvTranspose(
                self.num_params if last else features // 2**level,
                (4, 4),
                strides=(2, 2),
                dtype=jnp.float32 if last else self.dtype,
                name=f"up{level}",
            )(h)
            if not last:
                h = self.activation(h)
        return h


class _PosteriorHead(nn.Module):
    """Mean, and log-variance held within 15 of 0, in float32."""

    latent_dim: int
    stochastic: bool

    @nn.compact
    def __call__(self, h: Any) -> Any:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")
        h = h.astype(jnp.float32)
        mean = nn.Dense(self.latent_dim, name="mean")(h)
        if not self.stochastic:
            return mean, None
        raw = nn.Dense(self.latent_dim, name="log_variance")(h)
        return mean, _MAX_LOG_VARIANCE * jnp.tanh(raw / _MAX_LOG_VARIANCE)


def _hidden(h: Array, widths: tuple[int, ...], activation: Any, dtype: DTypeLike) -> Array:
    """Fully connected layers, the first of them in float32."""
    for i, width in enumerate(widths):
        layer = nn.Dense(width, dtype=dtype if i else jnp.float32, name=f"hidden{i}")
        h = activation(layer(h).astype(dtype))
    return h


def _beside(h: Array, e: Array | None) -> Array:
    return h if e is None else jnp.concatenate([h, e.astype(h.dtype)], axis=-1)
