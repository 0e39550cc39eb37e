"""Layers of Glow's networks in its authors' code: where an image ends, scales by their logarithms.

A convolution there sees one channel more, which is 1 outside of the image and 0 inside, and the
last one of a network starts at 0 and is scaled by `e^(3 s)` with s learned (openai/glow, tfops.py).
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxgen.models.conv.layers import Conv

zeros = nn.initializers.zeros


def outside(height: int, width: int, size: int = 3) -> Float[np.ndarray, "height width taps"]:
    """1 for each tap of a square kernel that lies outside of the image at a position, else 0."""
    inside = np.pad(np.ones((height, width), np.float32), size // 2)
    shifted = [inside[i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return 1 - np.stack(shifted, axis=-1)


class Edges(nn.Module):
    """What a channel that is 1 outside of the image adds to a convolution's output.

    Equal to that channel in the convolution's padded input, and cheaper: it depends on the position
    alone.

    Attributes:
        kernel_init: Initializer of the channel's part of the kernel.
        size: Rows and columns of the kernel, odd.
    """

    kernel_init: nn.initializers.Initializer = zeros
    size: int = 3

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Adds to the output x of a convolution."""
        kernel = self.param("kernel", self.kernel_init, (self.size**2, x.shape[-1]))
        taps = outside(x.shape[1], x.shape[2], self.size).astype(kernel.dtype)
        shift = jnp.matmul(taps, kernel, precision=lax.Precision.HIGHEST)
        return x + shift[None].astype(x.dtype)


class LearnedScale(nn.Module):
    """Multiplies each channel by `e^(f s)`, where s is learned and starts at 0.

    Attributes:
        factor: Factor f; a step of the optimizer changes the scale by so much more.
    """

    factor: float = 3.0

    @nn.compact
    def __call__(self, x: Float[Array, "*dims channels"]) -> Float[Array, "*dims channels"]:
        """Scales."""
        log_scale = self.param("log_scale", zeros, (x.shape[-1],))
        scale = jnp.exp(self.factor * log_scale).astype(x.dtype)
        return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def zero_conv(
    x: Float[Array, "batch height width channels"],
    features: int,
    *,
    edges: bool = False,
    log_scale_factor: float | None = None,
    name: str = "out",
) -> Float[Array, "batch height width features"]:
    """A 3x3 convolution that starts at 0, at least in float32; for use within a compact module.

    Args:
        x: Input.
        features: Channels of the output.
        edges: Whether it is told where the image ends, see `Edges`.
        log_scale_factor: Factor of a learned scale, see `LearnedScale`; None for no such scale.
        name: Name of the convolution's parameters.

    Returns:
        The output, in the wider of float32 and x's type.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = Conv(features, (3, 3), kernel_init=zeros, dtype=wide, name=name)(x)
    if edges:
        x = Edges(name=f"{name}_edges")(x)
    if log_scale_factor is not None:
        x = LearnedScale(log_scale_factor, name=f"{name}_scale")(x)
    return x
