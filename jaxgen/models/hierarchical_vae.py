"""The very deep VAE of Child (2021), "Very Deep VAEs Generalize Autoregressive Models" (VDVAE).

A decoder of many stochastic layers, from one pixel to the whole image. Each of its blocks has a
Gaussian prior of its latents given all coarser ones; the posterior sees besides what an encoder
makes of the image at the block's resolution.

The blocks are written as the authors write them (`jaxgen.models.blocks.vdvae_stages`). Those of one
resolution are one compiled loop, their parameters stacked.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.distributions.elementwise import gaussian_kl
from jaxgen.models.blocks.vdvae_stages import (
    DecoderStage,
    EncoderStage,
    decoder_stages,
    encoder_stages,
)
from jaxgen.models.conv.layers import Conv

Images = Float[Array, "batch height width channels"]
Latents = Mapping[int, Float[Array, "batch _ _ _ latent"]]  # blocks, height and width of each
Features = Mapping[int, Float[Array, "batch _ _ _"]]
_NO_WIDTHS: Mapping[int, int] = FrozenDict()


class Inferred(NamedTuple):
    """An image seen through the posterior.

    Attributes:
        params: Parameters of the image's likelihood, f32[batch, height, width, num_params].
        latents: Latents in units of their priors, `(z - mean) / std`, by resolution: f32[batch,
            blocks, height, width, latent].
        kl: KL of each block's posterior from its prior in nats, summed over its latents, by
            resolution: f32[batch, blocks].
    """

    params: Float[Array, "batch height width num_params"]
    latents: Latents
    kl: Mapping[int, Float[Array, "batch _"]]


class VDVAE(nn.Module):
    """Encoder and decoder of the very deep VAE.

    What is random enters as noise, N(0, I) of `latent_shapes`: a posterior's, or a prior's. So a
    prior's noise is the latents in units of their priors, and a smaller noise a lower temperature.

    Attributes:
        encoder_blocks: Blocks of the encoder, from the image on, see `encoder_stages`.
        decoder_blocks: Blocks of the decoder up to the image, see `decoder_stages`.
        width: Number of channels of every image.
        num_params: Numbers a pixel of the likelihood, `likelihood.num_params(channels)`.
        latent_dim: Number of latents a pixel of each block.
        bottleneck: Number of channels inside a block, in units of those at its ends.
        widths: Numbers of channels by resolution, where they are not `width`; more at a higher
            resolution than at a lower one are refused.
        max_bias: Highest resolution that begins with a learned image; those above begin with zero.
        mean: Mean of the images' values, which the encoder takes away first.
        std: Number by which the encoder divides them then.
        dtype: Type of the computation; parameters, the first and the last layers, what is said of
            latents and what is made of them are float32.

    Examples:
        >>> network = VDVAE("8x1,8d2,4x1", "4x1,8m4", width=8, num_params=3)
        >>> x = jnp.zeros((2, 8, 8, 1))
        >>> variables = network.init(jax.random.key(0), x)
        >>> network.apply(variables, x).params.shape
        (2, 8, 8, 3)
        >>> network.latent_shapes
        {4: (1, 4, 4, 16), 8: (1, 8, 8, 16)}
    """

    encoder_blocks: str
    decoder_blocks: str
    width: int
    num_params: int
    latent_dim: int = 16
    bottleneck: float = 0.25
    widths: Mapping[int, int] = _NO_WIDTHS
    max_bias: int = 64
    mean: float = 0.0
    std: float = 1.0
    dtype: DTypeLike = jnp.float32

    @property
    def latent_shapes(self) -> dict[int, tuple[int, int, int, int]]:
        """The shape of an image's latents by resolution: blocks, height, width, latents."""
        return {
            r: (num_blocks, r, r, self.latent_dim)
            for r, num_blocks, _ in decoder_stages(self.decoder_blocks)
        }

    def setup(self) -> None:
        common = {name: getattr(self, name) for name in ("width", "widths", "bottleneck", "dtype")}
        self._check()
        self.encoder = _Encoder(self.encoder_blocks, mean=self.mean, std=self.std, **common)
        self.decoder = _Decoder(
            self.decoder_blocks,
            num_params=self.num_params,
            latent_dim=self.latent_dim,
            max_bias=self.max_bias,
            **common,
        )

    def __call__(self, x: Images, noise: Latents | None = None) -> Inferred:
        """Images through the posterior.

        Args:
            x: Images in model space.
            noise: Noise of the posterior's latents, of `latent_shapes` for each image; None for its
                means.

        Raises:
            ValueError: If images, noise and network do not fit.
        """
        first = encoder_stages(self.encoder_blocks)[0].resolution
        if x.shape[1:3] != (first, first):
            raise ValueError(
                f"images must be of {first}x{first} pixels, as encoder_blocks begin, got "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        if noise is None:
            noise = {r: jnp.zeros((len(x), *s)) for r, s in self.latent_shapes.items()}
        return self.decoder(noise, self.encoder(x))

    def generate(self, noise: Latents) -> Float[Array, "batch height width num_params"]:
        """The parameters of the likelihood of images drawn from the prior.

        Args:
            noise: Noise of the prior's latents, of `latent_shapes` for each image.

        Raises:
            ValueError: If the noise is of other shapes.
        """
        return self.decoder(noise).params

    def _check(self) -> None:
        """Raise ValueError where encoder and decoder do not fit, or a number is out of range."""
        for name in ("width", "num_params", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite, got {self.std}")
        encoded = encoder_stages(self.encoder_blocks)
        decoded = decoder_stages(self.decoder_blocks)
        size, last = encoded[0].resolution, decoded[-1].resolution
        if last != size:
            raise ValueError(
                f"decoder_blocks must end where encoder_blocks begin, at {size}x{size} pixels, got "
                f"{last}x{last}"
            )
        seen = {r for stage in encoded for r in (stage.resolution, _after(stage))}
        if unseen := [r for r, *_ in decoded if r not in seen]:
            raise ValueError(
                f"encoder_blocks must reach every resolution of decoder_blocks, and lack {unseen}"
            )
        widths = [self.widths.get(r, self.width) for r in sorted(seen)]
        if widths != sorted(widths, reverse=True):
            raise ValueError(
                f"widths must not be more at a higher resolution than at a lower one, got {widths} "
                f"at {sorted(seen)}"
            )
        if not 1 <= min(widths) * self.bottleneck < math.inf:
            raise ValueError(
                f"bottleneck must leave at least one channel of {min(widths)}, got "
                f"{self.bottleneck}"
            )


class _Encoder(nn.Module):
    """From images to features: at each resolution what the last block there makes."""

    blocks: str
    width: int
    widths: Mapping[int, int]
    bottleneck: float
    mean: float
    std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Images) -> Features:
        stages = encoder_stages(self.blocks)
        count = sum(stage.num_blocks + (stage.down is not None) for stage in stages)
        r = stages[0].resolution
        conv = Conv(self.widths.get(r, self.width), (3, 3), kernel_init=_uniform(), name="conv_in")
        h = conv((x - self.mean) / self.std).astype(self.dtype)
        features = {r: h}
        for stage in stages:
            r = stage.resolution
            fields = (self.bottleneck, _kernel_size(r), 1 / count, self.dtype)
            if stage.num_blocks:
                loop: Any = _loop(_EncoderBlock, stage.num_blocks)
                h, _ = loop(*fields, name=f"blocks{r}")(h)
                features[r] = h
            if stage.down is not None:
                h, _ = _EncoderBlock(*fields, name=f"down{r}")(h)
                r = _after(stage)
                h = h.reshape(len(h), r, stage.down, r, stage.down, -1).mean(axis=(2, 4))
                more = self.widths.get(r, self.width) - h.shape[-1]
                h = jnp.pad(h, ((0, 0), (0, 0), (0, 0), (0, more)))
                features[r] = h
        return features


class _Decoder(nn.Module):
    """From noise to the likelihood, through the latents of the posterior, or of the prior."""

    blocks: str
    width: int
    num_params: int
    latent_dim: int
    widths: Mapping[int, int]
    bottleneck: float
    max_bias: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, noise: Latents, features: Features | None = None) -> Inferred:
        stages = decoder_stages(self.blocks)
        self._check(noise, stages)
        count = sum(stage.num_blocks for stage in stages)
        images: dict[int, Array] = {}
        latents, kl = {}, {}
        for r, num_blocks, mixin in stages:
            width = self.widths.get(r, self.width)
            h = self._bias(r, width, len(noise[r]))
            if mixin is not None:
                h = h + _enlarged(images[mixin][..., :width], r // mixin)
            loop: Any = _loop(_DecoderBlock, num_blocks, in_axes=(1, nn.broadcast))
            fields = (self.latent_dim, self.bottleneck, _kernel_size(r), 1 / count, self.dtype)
            seen = None if features is None else features[r]
            images[r], (latents[r], kl[r]) = loop(*fields, name=f"blocks{r}")(h, noise[r], seen)
        h = images[stages[-1].resolution].astype(jnp.float32)
        gain = self.param("gain", nn.initializers.ones, h.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, h.shape[-1:])
        conv = Conv(self.num_params, (1, 1), kernel_init=_uniform(), name="conv_out")
        return Inferred(conv(h * gain[None, None, None] + bias[None, None, None]), latents, kl)

    def _bias(self, r: int, width: int, batch: int) -> Array:
        """The image that a resolution begins with, for each of a batch."""
        shape = (r, r, width)
        if r > self.max_bias:
            return jnp.zeros((batch, *shape), self.dtype)
        bias = self.param(f"bias{r}", nn.initializers.zeros, shape)
        return jnp.broadcast_to(bias.astype(self.dtype), (batch, *shape))

    def _check(self, noise: Latents, stages: tuple[DecoderStage, ...]) -> None:
        expected = {r: (num_blocks, r, r, self.latent_dim) for r, num_blocks, _ in stages}
        given = {r: each.shape[1:] for r, each in noise.items()}
        if given != expected or len({len(each) for each in noise.values()}) != 1:
            shapes = {r: each.shape for r, each in noise.items()}
            raise ValueError(
                f"noise must be of the latents' shapes {expected} after that of the batch, got "
                f"{shapes}"
            )


class _EncoderBlock(nn.Module):
    """A residual block; `(h, None)`, as a loop wants it."""

    bottleneck: float
    kernel_size: int
    scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Any) -> tuple[Any, None]:
        width = h.shape[-1]
        middle = int(width * self.bottleneck)
        fields = (middle, width, self.kernel_size, self.scale, self.dtype, self.dtype)
        return h + _Bottleneck(*fields, name="residual")(h), None


class _DecoderBlock(nn.Module):
    """A stochastic layer: prior, posterior, a latent of the one or the other, a residual block."""

    latent_dim: int
    bottleneck: float
    kernel_size: int
    scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Any, noise: Any, seen: Any) -> tuple[Any, tuple[Any, Any]]:
        width, latents = h.shape[-1], self.latent_dim
        middle = int(width * self.bottleneck)
        block = partial(_Bottleneck, middle, kernel_size=self.kernel_size, dtype=self.dtype)
        of_prior = block(2 * latents + width, scale=0.0, last_dtype=jnp.float32, name="prior")(h)
        mean_p, log_std_p, change = jnp.split(of_prior, (latents, 2 * latents), axis=-1)
        mean, log_std = mean_p, log_std_p
        if seen is not None:
            both = jnp.concatenate([h, seen], axis=-1)
            of_posterior = block(2 * latents, last_dtype=jnp.float32, name="posterior")(both)
            mean, log_std = jnp.split(of_posterior, 2, axis=-1)
        z = mean + jnp.exp(log_std) * noise
        kl = gaussian_kl(mean, 2 * log_std, mean_p, 2 * log_std_p).sum(axis=(1, 2, 3))
        project = Conv(width, (1, 1), kernel_init=_uniform(self.scale), name="latents")
        h = h + change.astype(self.dtype) + project(z).astype(self.dtype)
        h = h + block(width, scale=self.scale, last_dtype=self.dtype, name="residual")(h)
        return h, ((z - mean_p) * jnp.exp(-log_std_p), kl)


class _Bottleneck(nn.Module):
    """GELU and convolution, four times: 1x1 to fewer channels, twice 3x3, 1x1 to `features`."""

    middle: int
    features: int
    kernel_size: int
    scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    last_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Any) -> Any:
        side = self.kernel_size
        conv = partial(Conv, dtype=self.dtype, kernel_init=_uniform())
        for i, kernel in enumerate(((1, 1), (side, side), (side, side))):
            h = conv(self.middle, kernel, name=f"conv{i + 1}")(_gelu(h))
        last = Conv(
            self.features,
            (1, 1),
            dtype=self.last_dtype,
            kernel_init=_uniform(self.scale),
            name="conv4",
        )
        return last(_gelu(h))


def _loop(block: Any, length: int, in_axes: Any = 0) -> Any:
    """A block so many times, each with parameters of its own; what goes in and out by axis 1."""
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        out_axes=1,
        length=length,
    )


def _uniform(scale: float = 1.0) -> Any:
    """Kernels of variance `scale` times that of PyTorch's, within 1 / sqrt(inputs) of 0."""
    if not scale:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale / 3, "fan_in", "uniform")


def _gelu(h: Any) -> Any:
    return nn.gelu(h, approximate=False)


def _kernel_size(resolution: int) -> int:
    """Images of one or two pixels a side have nothing to convolve."""
    return 3 if resolution > 2 else 1


def _after(stage: EncoderStage) -> int:
    return stage.resolution // (stage.down or 1)


def _enlarged(h: Array, times: int) -> Array:
    """Each pixel `times` times as high and wide."""
    return h.repeat(times, axis=1).repeat(times, axis=2)
