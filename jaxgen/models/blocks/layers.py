"""Blocks that several networks share: embeddings, group normalization, attention, resampling.

Every layer takes images as `[batch, height, width, channels]`, keeps its parameters in float32 and
computes in `dtype`; the statistics of norms, the softmax and the scale of dropout are float32
whatever `dtype` is.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxgen.models.blocks.attention import dot_product_attention
from jaxgen.models.conv.layers import Conv
from jaxgen.models.conv.resampled import UpsampledConv

scaled_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
"""The initialization of Ho et al.'s code, for kernels of any shape."""

near_zero_init = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
"""The same, shrunk to almost nothing: a residual branch that begins as the identity but still
passes gradients."""


def timestep_embedding(
    t: Num[Array, " batch"],
    features: int,
    max_period: float = 10_000.0,
    *,
    endpoint: bool = True,
) -> Float[Array, "batch features"]:
    r"""Embeds times as sines and cosines of geometrically spaced frequencies.

    $$e(t) = [\sin(\omega_0 t), \dots, \sin(\omega_{n-1} t), \cos(\omega_0 t), \dots,
    \cos(\omega_{n-1} t)], \quad \omega_i = P^{-i / (n - 1)}, \quad n = \text{features} / 2$$

    The frequencies run from 1 to 1/P with both ends included, as in the code of Ho et al. (2020),
    "Denoising Diffusion Probabilistic Models". Without the `endpoint` they are `P^{-i / n}`, as in
    Vaswani et al. (2017), section 3.5, and ADM.

    Args:
        t: Times, in steps; integers or floats.
        features: Width of the embedding, even and at least 4.
        max_period: Longest wavelength divided by 2 pi, P.
        endpoint: Whether the lowest frequency is 1/P itself.

    Returns:
        f32[batch, features], the sines first.

    Raises:
        ValueError: If `features` is odd or below 4.

    Examples:
        >>> timestep_embedding(jnp.array([0, 10]), 4).shape
        (2, 4)
    """
    if features < 4 or features % 2:
        raise ValueError(f"features must be even and at least 4, got {features}")
    half = features // 2
    last = half - 1 if endpoint else half
    frequencies = np.exp(-math.log(max_period) * np.arange(half) / last).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_features(
    t: Num[Array, " batch"], channels: int, scale: float = 16.0
) -> Float[Array, "batch features"]:
    r"""Embeds times as sines and cosines of random frequencies (Tancik et al. 2020; NCSN++).

    $$e(t) = [\sin(2 \pi W t), \cos(2 \pi W t)], \quad W_i \sim N(0, \text{scale}^2)$$

    W is drawn once and for all: it depends on the arguments alone, and is no parameter.

    Args:
        t: Times, such as the logarithm of the noise's deviation.
        channels: Number of frequencies, half the width of the embedding.
        scale: Deviation of the frequencies.

    Returns:
        f32[batch, 2 channels], the sines first.

    Raises:
        ValueError: If `channels` is not positive.
    """
    if channels < 1:
        raise ValueError(f"channels must be positive, got {channels}")
    frequencies = np.random.default_rng(0).normal(scale=2 * np.pi * scale, size=channels)
    angles = t.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def default_groups(channels: int) -> int:
    """The number of groups to normalize `channels` in: 32, or fewer where the network is narrow.

    The largest divisor of `channels` that is at most 32 and leaves four channels or more in a group
    (fewer only below four channels). So it is 32 at 128, 256, 384 and 512 channels, the widths of
    Ho et al. (2020), and 8 at 32 channels. With one channel to a group, the normalization after the
    time embedding's addition would subtract that embedding again, exactly: the network would not
    know its time.

    Raises:
        ValueError: If `channels` is not positive.
    """
    if channels < 1:
        raise ValueError(f"channels must be positive, got {channels}")
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


class GroupNorm(nn.Module):
    """Group normalization (Wu and He 2018): zero mean and unit variance in each group of channels.

    Computes what `flax.linen.GroupNorm` does, with its parameters, but in the two-pass form, which
    stays exact where the mean is far larger than the deviation, and reduces over positions before
    it reduces over the channels of a group, which is about twice as fast on CPU.

    Attributes:
        num_groups: Number of groups, which must divide the channels; None for `default_groups`.
        epsilon: Number that is added to the variance.
        dtype: Type of the result; statistics are float32.
        use_scale: Whether channels are scaled afterwards, not only shifted.
    """

    num_groups: int | None = None
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "..."]:
        """Normalizes `x` over all but its first axis, group by group.

        Raises:
            ValueError: If the groups do not divide the channels.
        """
        channels = x.shape[-1]
        groups = default_groups(channels) if self.num_groups is None else self.num_groups
        if groups < 1 or channels % groups:
            raise ValueError(f"num_groups must divide the {channels} channels, got {groups}")
        scale = jnp.ones((channels,), jnp.float32)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return _group_norm(x, scale, bias, groups, self.epsilon).astype(self.dtype)


@partial(jax.jit, static_argnums=(3, 4))  # traced once for a shape, however often it recurs
def _group_norm(x: Array, scale: Array, bias: Array, groups: int, epsilon: float) -> Array:
    """`x` in float32, normalized over all but its first axis, group by group."""
    batch, channels = x.shape[0], x.shape[-1]

    def group_mean(values: Array) -> Array:
        """[batch, positions, channels] -> [batch, 1, channels], equal within a group."""
        means = values.mean(1).reshape(batch, groups, channels // groups).mean(-1)
        return jnp.repeat(means, channels // groups, axis=-1)[:, None]

    flat = x.astype(jnp.float32).reshape(batch, -1, channels)
    centred = flat - group_mean(flat)
    inverse = jax.lax.rsqrt(group_mean(jnp.square(centred)) + epsilon)
    y = centred * (inverse * scale[None, None]) + bias[None, None]
    return y.reshape(x.shape)


class Dropout(nn.Module):
    """Sets elements to zero at random and scales up the rest (Srivastava et al. 2014).

    `flax.linen.Dropout` with half the random bits, 16 an element, for drawing them is a tenth of a
    small network's training step on CPU. So the rate is rounded to a multiple of 2^-16, and the
    scale is that of the rounded rate: the expectation is exactly the input. What it scales is at
    least float32, for bfloat16 would round all of a number's copies the same way.

    Attributes:
        rate: Probability of zero, in [0, 1).
        deterministic: Whether to pass the input through.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*shape channels"]) -> Float[Array, "*shape channels"]:
        """Drops out by the rng "dropout".

        Raises:
            ValueError: If the rate lies outside [0, 1).
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate must lie in [0, 1), got {self.rate}")
        if self.deterministic or self.rate == 0:
            return x
        *shape, channels = x.shape
        pairs = (channels + 1) // 2
        # Drawn flat: the same bits, which XLA's CPU backend compiles five times faster.
        flat = jax.random.bits(self.make_rng("dropout"), (math.prod(shape) * pairs,), "uint32")
        words = flat.reshape(*shape, pairs)
        halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*shape, -1)
        kept = min(max(round((1 - self.rate) * 2**16), 1), 2**16 - 1)
        mask = halves[..., :channels] < jnp.uint16(kept)
        scale = jnp.asarray(2**16 / kept, jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(mask, x * scale, 0)


class SelfAttention(nn.Module):
    r"""Residual self-attention over the positions of an image, as in Ho et al. (2020).

    $$x + W_o\,\mathrm{softmax}(q k^\top / \sqrt{d})\,v$$, where q, k and v are linear maps of the
    group-normalized x and d is the width of a head. The last map starts near zero.

    Attributes:
        num_heads: Number of heads, which must divide the channels.
        dtype: Type of the computation; the softmax is float32.
        kernel_init: Initialization of the maps to q, k and v.
        last_init: Initialization of the last map.
        epsilon: Number that the normalization adds to the variance.
        residual_scale: Factor of the sum of x and what attention adds.
    """

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = scaled_init
    last_init: nn.initializers.Initializer = near_zero_init
    epsilon: float = 1e-6
    residual_scale: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Lets every position attend to every other.

        Raises:
            ValueError: If the heads do not divide the channels.
        """
        batch, height, width, channels = x.shape
        heads = self.num_heads
        if heads < 1 or channels % heads:
            raise ValueError(f"num_heads must divide the {channels} channels, got {heads}")

        def project(name: str) -> Array:
            dense = nn.Dense(channels, kernel_init=self.kernel_init, dtype=self.dtype, name=name)
            return dense(normed).reshape(batch, height * width, heads, channels // heads)

        normed = GroupNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        y = dot_product_attention(project("query"), project("key"), project("value"))
        y = y.reshape(x.shape)
        out = nn.Dense(channels, kernel_init=self.last_init, dtype=self.dtype, name="out")
        y = x + out(y)
        return y if self.residual_scale == 1 else self.residual_scale * y


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution.

    Attributes:
        dtype: Type of the computation.
        kernel_init: Initialization of the kernel.
    """

    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = scaled_init

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height2 width2 channels"]:
        """Returns twice the height and width, the same channels."""
        conv = UpsampledConv(
            x.shape[-1], (3, 3), kernel_init=self.kernel_init, dtype=self.dtype, name="conv"
        )
        return conv(x)


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    It pads one row below and one column to the right only, as TensorFlow's "SAME" does, which Ho et
    al. (2020) used: symmetric padding would shift the image by half a pixel against theirs.

    Attributes:
        dtype: Type of the computation.
        kernel_init: Initialization of the kernel.
    """

    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = scaled_init

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height2 width2 channels"]:
        """Returns half the height and width, the same channels.

        Raises:
            ValueError: If the height or width is odd.
        """
        _, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"height and width must be even, got {height}x{width}")
        return Conv(
            channels,
            (3, 3),
            strides=(2, 2),
            padding=((0, 1), (0, 1)),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
