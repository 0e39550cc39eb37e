"""Layers of adversarial networks: spectral normalization, conditional batch norm, and the like.

Power-iteration vectors are kept in the collection `spectral`, running means and variances in
`batch_stats`; both are part of the family's `Variables.state`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.models.conv.layers import conv_general_dilated
from jaxgen.models.conv.resampled import downsampled_conv

SPECTRAL = "spectral"
NOISE = "noise"
"""Stream of random numbers that a generator may draw beside its latents."""


def l2_normalize(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """`x / max(|x|, 1e-12)`."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def power_iteration(
    matrix: Float[Array, "rows columns"], u: Float[Array, " columns"]
) -> tuple[Float[Array, ""], Float[Array, " columns"]]:
    """One step towards the largest singular value (Miyato et al. 2018, algorithm 1).

    `v = norm(W u), u' = norm(W^T v), sigma = v^T W u'`, gradients flowing through `W` of the last
    only, which is that of the singular value.

    Args:
        matrix: The matrix W.
        u: Last estimate of the right singular vector.

    Returns:
        The singular value sigma, and the new estimate of the vector.
    """
    fixed = lax.stop_gradient(matrix)
    v = l2_normalize(fixed @ u)
    u = l2_normalize(fixed.T @ v)
    return v @ (matrix @ u), u


class _Spectral(nn.Module):
    """A layer with a kernel whose largest singular value is held at 1."""

    def normalized(self, kernel: Array, *, update: bool) -> Array:
        """`kernel / sigma`; sigma from one power iteration, which is kept if `update`."""
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
        u = self.variable(
            SPECTRAL,
            "u",
            lambda: l2_normalize(jax.random.normal(self.make_rng("params"), matrix.shape[-1:])),
        )
        sigma, new_u = power_iteration(matrix, u.value)
        if update and not self.is_initializing():
            u.value = new_u
        return kernel / sigma.astype(kernel.dtype)

    def biased(self, y: Array) -> Array:
        """`y` plus a learned number for each of its features."""
        bias = self.param("bias", nn.initializers.zeros, (y.shape[-1],))
        return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class SpectralConv(_Spectral):
    """A 2-D convolution with spectral normalization (Miyato et al. 2018, section 2.1).

    The kernel `[height, width, channels, features]` counts as a matrix of `features` columns.

    Attributes:
        features: Number of output channels.
        kernel_size: Side of the square kernel.
        stride: Step of the window.
        padding: Number of zeros on every side; None for as many as keep the size under stride 1.
        use_bias: Add a bias.
        normalize: Normalize; False for a plain convolution, with the same parameters.
        kernel_init: Initializer of the kernel.
        dtype: Type of the computation; parameters and the power iteration are float32.
        halves: Take the mean of every 2x2 of the result, in one with the convolution; of stride 1.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = True
    normalize: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32
    halves: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height2 width2 features"]:
        """Convolves; `train=True` advances the power iteration by one step.

        Raises:
            ValueError: If the result is to be halved and is of an odd size, or of another stride.
        """
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features))
        if self.normalize:
            kernel = self.normalized(kernel, update=train)
        pad = (k - 1) // 2 if self.padding is None else self.padding
        convolve = downsampled_conv if self.halves else conv_general_dilated
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return self.biased(y) if self.use_bias else y


class SpectralDense(_Spectral):
    """A dense layer with spectral normalization.

    Attributes:
        features: Number of outputs.
        use_bias: Add a bias.
        normalize: Normalize; False for a plain layer, with the same parameters.
        kernel_init: Initializer of the kernel.
        dtype: Type of the computation; parameters and the power iteration are float32.
    """

    features: int
    use_bias: bool = True
    normalize: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Multiplies; `train=True` advances the power iteration by one step."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if self.normalize:
            kernel = self.normalized(kernel, update=train)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return self.biased(y) if self.use_bias else y


class ConditionalBatchNorm(nn.Module):
    """Batch normalization whose gain and bias depend on the condition (de Vries et al. 2017).

    `norm(x) (1 + W_g e) + W_b e`, e the condition's vector: one gain and one bias a class where e
    is one-hot, as in Miyato & Koyama 2018. Without a condition it is plain batch normalization.

    Attributes:
        momentum: Weight of the old running mean and variance: `new = momentum old +
            (1 - momentum) batch`.
        epsilon: Number added to the variance.
        scale_init: Initializer of the plain gain; the conditional one starts at 1.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the result; statistics are float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        e: Float[Array, "batch condition_width"] | None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """Normalizes each channel.

        Args:
            x: Activations.
            e: Vectors of the condition, or None.
            train: Normalize over the batch and its positions; else by the running statistics.
        """
        channels = x.shape[-1]
        plain = e is None
        y = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            use_bias=plain,
            use_scale=plain,
            scale_init=self.scale_init,
            axis_name=None if self.is_initializing() else self.axis_name,
            use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where the mean is large
            dtype=self.dtype,
            name="norm",
        )(x)
        if e is None:
            return y
        zeros = nn.initializers.zeros
        linear = nn.Dense(2 * channels, use_bias=False, kernel_init=zeros, name="condition")
        gain, bias = jnp.split(linear(e).astype(self.dtype)[:, None, None], 2, axis=-1)
        return y * (1 + gain) + bias


class Verdict(NamedTuple):
    """What a discriminator says of a batch.

    Attributes:
        logits: Scores f32[B], positive for real.
        class_logits: Logits f32[B, num_classes] of an auxiliary classifier, or None.
    """

    logits: Float[Array, " batch"]
    class_logits: Float[Array, "batch classes"] | None = None


class VerdictHead(nn.Module):
    """From pooled features to a verdict: realness, agreement with the condition, class.

    `w h + b + <V e, h>`: with a condition's vector e, the projection discriminator of Miyato &
    Koyama 2018, eq. 4; with `num_classes`, the classifier of ACGAN (Odena et al. 2017). All of it
    is float32.

    Attributes:
        num_classes: Number of classes, or attributes, of the auxiliary classifier, or None for no
            classifier.
        normalize: Spectral normalization of all maps.
        kernel_init: Initializer of all maps.
    """

    num_classes: int | None = None
    normalize: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch channels"],
        e: Float[Array, "batch condition_width"] | None,
        *,
        train: bool,
    ) -> Verdict:
        """Judges features, given the condition.

        Args:
            h: Pooled features.
            e: Vectors of the condition, or None.
            train: Advance the power iteration by one step.
        """

        def linear(name: str, features: int, x: Array, *, use_bias: bool = True) -> Array:
            layer = SpectralDense(
                features,
                use_bias=use_bias,
                normalize=self.normalize,
                kernel_init=self.kernel_init,
                name=name,
            )
            return layer(x, train=train)

        logits = linear("out", 1, h)[:, 0]
        if e is not None:
            projected = linear("projection", h.shape[-1], e, use_bias=False)
            logits = logits + jnp.sum(projected * h.astype(jnp.float32), axis=-1)
        classes = None if self.num_classes is None else linear("classes", self.num_classes, h)
        return Verdict(logits, classes)


def minibatch_stddev(
    x: Float[Array, "batch height width channels"], group_size: int = 4, num_features: int = 1
) -> Float[Array, "batch height width channels2"]:
    r"""Appends the standard deviation over a group of examples as more channels.

    Of each group of `group_size` examples the deviation of every value, averaged over positions
    and over each of `num_features` blocks of channels: a discriminator that sees it punishes a
    generator whose samples are alike (Karras et al. 2018, section 3; groups as in StyleGAN2).
    Example i belongs to the group i mod (batch / group_size).

    Args:
        x: Activations.
        group_size: Number of examples in a group; it must divide the batch.
        num_features: Number of channels to append; it must divide the channels.

    Returns:
        The activations with more channels, `[batch, height, width, channels + num_features]`.

    Raises:
        ValueError: `group_size` is below 1 or does not divide the batch, or `num_features` is below
            1 or does not divide the channels.
    """
    batch, height, width, channels = x.shape
    if group_size < 1 or batch % group_size:
        raise ValueError(
            f"group_size must be at least 1 and divide the batch of {batch} examples, "
            f"got {group_size}"
        )
    if num_features < 1 or channels % num_features:
        raise ValueError(
            f"num_features must be at least 1 and divide the {channels} channels, "
            f"got {num_features}"
        )
    groups = batch // group_size
    y = x.astype(jnp.float32).reshape(group_size, groups, height * width, num_features, -1)
    deviation = jnp.sqrt(jnp.var(y, axis=0) + 1e-8).mean(axis=(1, 3))  # [groups, num_features]
    appended = jnp.tile(deviation, (group_size, 1))[:, None, None].astype(x.dtype)
    appended = jnp.broadcast_to(appended, (batch, height, width, num_features))
    return jnp.concatenate([x, appended], axis=-1)


class NonLocalBlock(nn.Module):
    r"""Attention of SAGAN (Zhang et al. 2019, section 3): `x + gamma o(softmax(q k^T) v)`.

    Keys and values are max-pooled 2x2, queries and keys have an eighth of the channels, values a
    half; gamma starts at 0.

    Attributes:
        normalize: Spectral normalization of the four maps.
        dtype: Type of the computation; the softmax is float32.
    """

    normalize: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Lets every position attend to every second one along height and width.

        Args:
            x: Activations, of at least 8 channels and even sides.
            train: Advance the power iteration by one step.

        Raises:
            ValueError: Fewer than 8 channels, or an odd height or width.
        """
        batch, height, width, channels = x.shape
        if channels < 8 or height % 2 or width % 2:
            raise ValueError(
                f"attention needs 8 channels and even sides, got {height}x{width}x{channels}"
            )

        def project(name: str, features: int, x: Array) -> Array:
            conv = SpectralConv(
                features, 1, use_bias=False, normalize=self.normalize, dtype=self.dtype, name=name
            )
            return conv(x, train=train)

        def pooled(x: Array) -> Array:
            x = x.reshape(batch, height // 2, 2, width // 2, 2, -1).max(axis=(2, 4))
            return x.reshape(batch, height * width // 4, -1)

        query = project("query", channels // 8, x).reshape(batch, height * width, -1)
        key, value = (
            pooled(project(name, features, x))
            for name, features in (("key", channels // 8), ("value", channels // 2))
        )
        logits = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32)
        y = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(logits).astype(self.dtype), value)
        y = project("out", channels, y.reshape(batch, height, width, -1))
        gamma = self.param("gamma", nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * y
