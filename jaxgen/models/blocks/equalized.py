"""Layers of StyleGAN2, whose parameters are scaled where they are used.

Equalized learning rate (Karras et al. 2018, section 4.1): weights begin as N(0, 1), and a layer
computes with them divided by the root of its fan-in. So the step of an optimizer that normalizes
gradients is the same part of every layer's weights, whatever their number.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.models.blocks.resample import BINOMIAL, downsample, smooth
from jaxgen.models.conv.layers import conv_general_dilated

_SLOPE = 0.2
NHWC = ("NHWC", "HWIO", "NHWC")


def leaky(
    x: Float[Array, "..."], gain: float = 1.0, clamp: float | None = None
) -> Float[Array, "..."]:
    """`gain sqrt(2) max(x, x / 5)`, which keeps the scale of x; cut off at `gain clamp`.

    Args:
        x: Activations.
        gain: Factor of the result.
        clamp: Greatest size of a value before the gain, so that small float types do not overflow;
            None for none.
    """
    return clipped(math.sqrt(2) * gain * jax.nn.leaky_relu(x, _SLOPE), gain, clamp)


def clipped(x: Float[Array, "..."], gain: float, clamp: float | None) -> Float[Array, "..."]:
    """`x` within `gain clamp` of 0; as it is where there is no clamp.

    Args:
        x: Activations.
        gain: Factor that they were multiplied by.
        clamp: Greatest size of a value before the gain, or None.

    Raises:
        ValueError: If the clamp is not positive.
    """
    if clamp is None:
        return x
    if not clamp > 0:
        raise ValueError(f"clamp must be positive or None, got {clamp}")
    return jnp.clip(x, -gain * clamp, gain * clamp)


def biased(x: Float[Array, "..."], bias: Float[Array, " channels"]) -> Float[Array, "..."]:
    """`x` plus a number for each of its channels.

    Args:
        x: Activations, the channels last.
        bias: A number for each channel.
    """
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class EqualizedDense(nn.Module):
    """A dense layer of equalized learning rate, in float32.

    Attributes:
        features: Number of outputs.
        rate: Factor of the layer's learning rate: its weights begin as N(0, 1) / rate and are
            multiplied by it again, and so is the bias.
        bias_init: First value of the bias.
        active: Whether `leaky` follows.
    """

    features: int
    rate: float = 1.0
    bias_init: float = 0.0
    active: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch channels"]) -> Float[Array, "batch features"]:
        """Multiplies."""
        fan_in = x.shape[-1]
        init = nn.initializers.normal(1 / self.rate)
        kernel = self.param("kernel", init, (fan_in, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.features,))
        y = x.astype(jnp.float32) @ (kernel * (self.rate / math.sqrt(fan_in)))
        y = biased(y, bias * self.rate)
        return leaky(y) if self.active else y


class EqualizedConv(nn.Module):
    """A convolution of equalized learning rate, which may halve the image.

    To halve, the image is filtered by `BINOMIAL` before every other pixel of the result is taken.

    Attributes:
        features: Number of output channels.
        kernel_size: Side of the square kernel, 1 or 3.
        halves: Whether height and width are halved.
        use_bias: Whether a bias is added.
        active: Whether `leaky` follows.
        gain: Factor of the result.
        clamp: Greatest size of a value before the gain, or None.
        dtype: Type of the computation; parameters are float32.
    """

    features: int
    kernel_size: int = 3
    halves: bool = False
    use_bias: bool = True
    active: bool = True
    gain: float = 1.0
    clamp: float | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height2 width2 features"]:
        """Convolves."""
        k, channels = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (k, k, channels, self.features))
        kernel = (kernel / math.sqrt(k * k * channels)).astype(self.dtype)
        x, pad, stride = x.astype(self.dtype), k // 2, 1
        if self.halves and k == 1:
            x = downsample(x, BINOMIAL)
        elif self.halves:
            x, pad, stride = smooth(x, BINOMIAL, 1 + k // 2), 0, 2
        padding = ((pad, pad), (pad, pad))
        y = conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=NHWC)
        if self.use_bias:
            y = biased(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return leaky(y, self.gain, self.clamp) if self.active else self.gain * y
