r"""The network of RealNVP's couplings as in its authors' code (tensorflow/models, real_nvp).

A residual network in which every block's output reaches the last layer by a 1x1 convolution of its
own, with weight normalization throughout. Its log-scales are

$$s = a \tanh(r)$$ of its last layer's r, with one learned number a for all, so that `ShiftScale`
is its transform.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.layers import GroupNorm
from jaxgen.models.conv.layers import conv_general_dilated

MAGNITUDE, RESCALING = "magnitude", "rescaling"


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform up to the root of 2 / inputs, either sign."""
    bound = math.sqrt(2 / shape[-2])
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class NormedConv(nn.Module):
    r"""A convolution with weight normalization (Salimans and Kingma 2016).

    The kernel of each output channel has length 1, or a learned magnitude, which begins as
    $k / \sqrt 6$ for k x k taps; its direction begins uniform in a cube.

    Attributes:
        features: Number of output channels.
        size: Rows and columns k of the kernel.
        use_bias: Whether to add a bias.
        use_magnitude: Whether magnitudes are learned.
        dtype: Type of the computation; None for the input's.
    """

    features: int
    size: int = 3
    use_bias: bool = True
    use_magnitude: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width features"]:
        """Convolves; zeros lie around the image."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        direction = self.param("direction", _uniform, shape)
        squares = jnp.sum(jnp.square(direction), axis=(0, 1, 2), keepdims=True)
        kernel = direction / jnp.sqrt(squares + 1e-12)
        if self.use_magnitude:
            start = nn.initializers.constant(self.size / math.sqrt(6))
            kernel = kernel * self.param(MAGNITUDE, start, shape[-1:])[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, shape[-1:]) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        numbers = ("NHWC", "HWIO", "NHWC")
        y = conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return y if bias is None else y + bias[None, None, None]


class SkipResNet(nn.Module):
    """RealNVP's residual network with a skip from each block to the output.

    It sees the positive and the negative part of what passes, [x, -x] rectified, and which pixels
    pass. Normalization over groups of an example's channels, and a shift of each channel, stand in
    the place of the authors' batch normalization: an image's likelihood then does not depend on
    the batch that it came with. Unlike other conditioners it does not start at 0.

    Attributes:
        features: Number of output channels, even: shifts, then log-scales.
        width: Number of hidden channels.
        num_blocks: Number of residual blocks of two 3x3 convolutions.
        rescaling: Number a at the start: in the authors' code 0 under checkerboard masks, 1 under
            channel masks.
        dtype: Type of the hidden layers; None for the input's. The first and the last one are
            float32 or wider.
    """

    features: int
    width: int = 64
    num_blocks: int = 8
    rescaling: float = 1.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Condition | None = None,
        mask: Float[Array, "1 height width 1"] | None = None,
    ) -> Float[Array, "batch height width features"]:
        """Shifts and log-scales, of what passes, its mask and the condition."""
        e = vector_of(condition)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        dtype = x.dtype if self.dtype is None else self.dtype

        def norm(name: str, h: Array) -> Array:
            return nn.relu(GroupNorm(epsilon=1e-4, dtype=dtype, use_scale=False, name=name)(h))

        def conv(name: str, h: Array, **options: Any) -> Array:
            return NormedConv(self.width, dtype=dtype, name=name, **options)(h)

        parts = [x, -x]
        if mask is not None:
            parts.append(jnp.broadcast_to(mask.astype(x.dtype), (*x.shape[:-1], 1)))
        first = NormedConv(self.width, dtype=wide, name="in")
        h = first(nn.relu(jnp.concatenate(parts, axis=-1))).astype(dtype)
        out = conv("skip_in", h, size=1, use_magnitude=True)
        for i in range(self.num_blocks):
            inner = conv(f"conv_{i}_0", norm(f"norm_{i}_0", h), use_bias=False)
            if e is not None:
                added = nn.Dense(self.width, use_bias=False, dtype=dtype, name=f"told_{i}")
                inner = inner + added(e)[:, None, None]
            h = h + conv(f"conv_{i}_1", norm(f"norm_{i}_1", inner), use_magnitude=True)
            out = out + conv(f"skip_{i}", h, size=1, use_magnitude=True)
        last = NormedConv(self.features, 1, use_magnitude=True, dtype=wide, name="out")
        shift, raw = jnp.split(last(norm("norm_out", out)), 2, axis=-1)
        rescaling = self.param(RESCALING, nn.initializers.constant(self.rescaling), ())
        return jnp.concatenate([shift, rescaling.astype(raw.dtype) * jnp.tanh(raw)], axis=-1)


def sum_of_squared_scales(params: Mapping[str, Any]) -> Float[Array, ""]:
    """The squares of all learned magnitudes and rescalings, summed: what RealNVP's L2 penalizes.

    Args:
        params: Parameters of a flow, or of any module that holds such networks.

    Returns:
        f32[], for the loss with a weight: 5e-5 in the paper (section 4.1).

    Raises:
        ValueError: No `SkipResNet` in the parameters.
    """
    squares = [
        jnp.sum(jnp.square(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if getattr(path[-1], "key", None) in (MAGNITUDE, RESCALING)
    ]
    if not squares:
        raise ValueError("params must hold the scales of a SkipResNet, got none")
    return jnp.sum(jnp.stack(squares))
