"""The Inception-v3 of the Fréchet Inception distance: TensorFlow's of 2015, quirks and all.

Szegedy et al. 2016 as it was released in `inception-2015-12-05`: averages leave out the padding,
and the last block pools by the maximum where the others average. The batch normalizations are
folded into the convolutions before them, so this is a network for inference only. Submodules carry
the names that the PyTorch ports gave them.

An average pool before a 1x1 convolution is done after it, on fewer channels: both are linear, and
the weights of each average sum to one, so the bias passes through.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxgen.models.conv.layers import Conv

SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7


class InceptionV3(nn.Module):
    """Pooled features, logits without their bias, and spatial features."""

    @nn.compact
    def __call__(self, image: Float[Array, "batch 299 299 3"]) -> dict[str, Array]:
        """Runs the network.

        Args:
            image: Images in [-1, 1].

        Returns:
            `features` f32[B, 2048], the average of the last block; `logits` f32[B, 1008], without
            the last layer's bias, as Inception scores are computed; `spatial` f32[B, 17 * 17 * 7],
            the first seven channels of the 1x1 branch of the block that TensorFlow calls `mixed_6`
            (here `Mixed_6d`), for the spatial FID (Nash et al. 2021).
        """
        x = _conv(image, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
        x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = max_pool(x, 2)
        x = _conv(x, "Conv2d_3b_1x1", 80)
        x = _conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID")
        x = max_pool(x, 2)
        x = InceptionA(32, name="Mixed_5b")(x)
        x = InceptionA(64, name="Mixed_5c")(x)
        x = InceptionA(64, name="Mixed_5d")(x)
        x = InceptionB(name="Mixed_6a")(x)
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)  # the 1x1 branch comes first
        x = InceptionC(192, name="Mixed_6e")(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE("average", name="Mixed_7b")(x)
        x = InceptionE("max", name="Mixed_7c")(x)
        features = x.mean(axis=(1, 2))
        logits = nn.Dense(NUM_CLASSES, use_bias=False, name="fc")(features)
        return {"features": features, "logits": logits, "spatial": spatial}


class InceptionA(nn.Module):
    """On 35x35: 1x1, 5x5, two 3x3, pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = _conv(x, "branch1x1", 64)
        five = _conv(_conv(x, "branch5x5_1", 48), "branch5x5_2", 64, (5, 5))
        double = _conv(_conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        double = _conv(double, "branch3x3dbl_3", 96, (3, 3))
        return _join(one, five, double, _pooled(x, self.pool_features))


class InceptionB(nn.Module):
    """From 35x35 to 17x17: 3x3, two 3x3, maximum."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = _conv(x, "branch3x3", 384, (3, 3), 2, "VALID")
        double = _conv(_conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        double = _conv(double, "branch3x3dbl_3", 96, (3, 3), 2, "VALID")
        return _join(three, double, max_pool(x, 2))


class InceptionC(nn.Module):
    """On 17x17: 1x1, 7x7 in two factors, twice that, pool."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.channels
        one = _conv(x, "branch1x1", 192)
        seven = _conv(_conv(x, "branch7x7_1", c), "branch7x7_2", c, (1, 7))
        seven = _conv(seven, "branch7x7_3", 192, (7, 1))
        double = _conv(_conv(x, "branch7x7dbl_1", c), "branch7x7dbl_2", c, (7, 1))
        double = _conv(double, "branch7x7dbl_3", c, (1, 7))
        double = _conv(double, "branch7x7dbl_4", c, (7, 1))
        double = _conv(double, "branch7x7dbl_5", 192, (1, 7))
        return _join(one, seven, double, _pooled(x, 192))


class InceptionD(nn.Module):
    """From 17x17 to 8x8: 3x3, 7x7 in two factors and 3x3, maximum."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = _conv(_conv(x, "branch3x3_1", 192), "branch3x3_2", 320, (3, 3), 2, "VALID")
        seven = _conv(_conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, (1, 7))
        seven = _conv(seven, "branch7x7x3_3", 192, (7, 1))
        seven = _conv(seven, "branch7x7x3_4", 192, (3, 3), 2, "VALID")
        return _join(three, seven, max_pool(x, 2))


class InceptionE(nn.Module):
    """On 8x8: 1x1, 3x3 spread over 1x3 and 3x1, the same after one more 3x3, pool."""

    pool: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = _conv(x, "branch1x1", 320)
        three = _conv(x, "branch3x3_1", 384)
        double = _conv(_conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, (3, 3))
        return _join(
            one,
            _conv(three, "branch3x3_2a", 384, (1, 3)),
            _conv(three, "branch3x3_2b", 384, (3, 1)),
            _conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            _conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            _conv(max_pool(x, 1), "branch_pool", 192) if self.pool == "max" else _pooled(x, 192),
        )


def max_pool(x: Float[Array, "batch height width channels"], stride: int) -> Array:
    """The maximum of 3x3: without padding for stride 2, of equal size for stride 1.

    One axis after the other, by slices, which XLA's CPU backend does many times faster than its
    windows.
    """
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        a, b, c = _three(x, axis, stride)
        x = jnp.maximum(jnp.maximum(a, b), c)
    return x


def average_pool(x: Float[Array, "batch height width channels"]) -> Array:
    """The average of 3x3 with stride 1, of those pixels only that are not padding."""
    counts = np.ones((1, 1, 1, 1))
    for axis in (1, 2):
        size = x.shape[axis]
        present = np.convolve(np.ones(size), np.ones(3), "same")
        counts = counts * present.reshape([1, *(size if a == axis else 1 for a in (1, 2)), 1])
        x = jnp.pad(x, [(int(a == axis),) * 2 for a in range(4)])
        a, b, c = _three(x, axis, 1)
        x = a + b + c
    return x * jnp.asarray(1 / counts, x.dtype)


def _three(x: Array, axis: int, stride: int) -> list[Array]:
    """What the three taps of a window see along an axis."""
    last = x.shape[axis] - 3
    stop = last // stride * stride + 1
    return [lax.slice_in_dim(x, i, i + stop, stride, axis) for i in range(3)]


def _conv(
    x: Array,
    name: str,
    features: int,
    kernel: tuple[int, int] = (1, 1),
    stride: int = 1,
    padding: str = "SAME",
) -> Array:
    """A layer of the module that calls: convolution and ReLU."""
    return nn.relu(Conv(features, kernel, (stride, stride), padding, name=name)(x))


def _pooled(x: Array, features: int) -> Array:
    return nn.relu(average_pool(Conv(features, (1, 1), name="branch_pool")(x)))


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)
