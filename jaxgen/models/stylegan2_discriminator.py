"""StyleGAN2's discriminator (Karras et al. 2020, section 4.2), told a condition or not."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.equalized import EqualizedConv, EqualizedDense
from jaxgen.models.blocks.gan_layers import Verdict, minibatch_stddev
from jaxgen.models.stylegan2 import Mapping, channels_at, sizes


class _DownBlock(nn.Module):
    """3x3, then 3x3 at half the size; beside them, where residual, a halved 1x1."""

    channels: int
    features: int
    residual: bool
    clamp: float | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gain = math.sqrt(0.5) if self.residual else 1.0
        kept: dict[str, Any] = {"clamp": self.clamp, "dtype": self.dtype}
        y = EqualizedConv(self.channels, name="conv", **kept)(x)
        y = EqualizedConv(self.features, halves=True, gain=gain, name="down", **kept)(y)
        if not self.residual:
            return y
        plain: dict[str, Any] = {"use_bias": False, "active": False, "dtype": self.dtype}
        skip = EqualizedConv(self.features, 1, halves=True, gain=gain, name="skip", **plain)
        return y + skip(x)


class Discriminator(nn.Module):
    """From images to verdicts.

    A condition is mapped to a vector, with which the last features are multiplied (projection,
    Miyato & Koyama 2018).

    Attributes:
        channel_base: Channels times size, where there are fewer than `channel_max`.
        channel_max: Most channels of a layer.
        residual: Whether blocks have a shortcut ("resnet"), or none ("orig", for CIFAR-10).
        stddev_group: Examples in a group of `minibatch_stddev`, all where the batch has fewer; 0
            for none.
        mapping_layers: Number of layers of the condition's map.
        clamp: Greatest size of an activation, so that small float types do not overflow, or None.
        dtype: Type of the computation; parameters, the layer that sees the image, and all from the
            4x4 image on are float32.
    """

    channel_base: int = 32768
    channel_max: int = 512
    residual: bool = True
    stddev_group: int = 4
    mapping_layers: int = 8
    clamp: float | None = 256.0
    dtype: DTypeLike = jnp.float32

    batch_statistics = False

    @property
    def mixes_examples(self) -> bool:
        """Whether the verdict on one image depends on the others."""
        return self.stddev_group > 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Verdict:
        """Judges images, given what they should show.

        Args:
            x: Images in [-1, 1].
            condition: One vector an example, or None for an unconditional network.
            train: Whether the network is trained, which changes nothing: it has no state.

        Raises:
            ValueError: Images that are not square, or whose side is no power of two of at least 8;
                a batch that `stddev_group` does not divide; a clamp that is not positive; or a
                condition with tokens.
        """
        e = vector_of(condition)
        batch, height, width, _ = x.shape
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}")
        channels = {
            size: channels_at(size, self.channel_base, self.channel_max) for size in sizes(height)
        }
        first = EqualizedConv(channels[height], 1, clamp=self.clamp, name="from_image")
        x = first(x).astype(self.dtype)
        for size in sizes(height)[:0:-1]:
            ends = channels[size], channels[size // 2]
            block = _DownBlock(*ends, self.residual, self.clamp, self.dtype, name=f"block{size}")
            x = block(x)
        x = x.astype(jnp.float32)
        if self.stddev_group:
            x = minibatch_stddev(x, min(self.stddev_group, batch))
        features = channels[4]
        x = EqualizedConv(features, clamp=self.clamp, name="conv")(x)
        h = EqualizedDense(features, active=True, name="dense")(x.reshape(batch, -1))
        if e is None:
            return Verdict(EqualizedDense(1, name="out")(h)[:, 0])
        asked = Mapping(features, self.mapping_layers, name="mapping")(None, e)
        h = EqualizedDense(features, name="out")(h)
        return Verdict(jnp.sum(h * asked, axis=-1) / math.sqrt(features))
