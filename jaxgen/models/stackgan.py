"""StackGAN (Zhang et al. 2017): coarse images from conditions, then fine ones from coarse ones.

The networks are those of the authors' TensorFlow code, with which the paper's figures were made,
parameter for parameter: `Generator` makes 64x64 pixels (stage I), `Refiner` 256x256 from what a
`Generator` made (stage II), and `Discriminator` judges either. Other sizes follow from the same
definition.

Conditioning augmentation: the generators see a condition through a *code* of it, drawn from a
Gaussian that its vector e gives, whose divergence from N(0, I) is part of their loss:

    mu, log sigma = leaky_relu(W e + b)        c = mu + sigma eps,  eps ~ N(0, I)

Here eps is part of the latents, which are `[noise, eps]` (of a `Refiner` `[noise, eps, eps of its
own code]`). So whoever draws latents draws codes; a latent of zeros has the code's mean, and a walk
between latents goes through other drafts of one condition.

Departures: eps is not truncated at two standard deviations (`truncation` of the family does that),
the discriminator's third layer of stage I has an activation as in stage II, and the batch
normalization's variance is estimated without cancellation.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.gan_layers import ConditionalBatchNorm, Verdict
from jaxgen.models.conv.layers import Conv
from jaxgen.models.conv.resampled import UpsampledConv
from jaxgen.models.dcgan import around_one, levels

_normal = nn.initializers.normal(0.02)
_kernel = nn.initializers.truncated_normal(0.02)
FIRST = "stage1"
"""The name of a frozen stage I among the parameters of a `Refiner`."""
_NARROW = 4  # times fewer channels inside a residual unit of stage I
_DOUBLINGS = 3  # of the channels, that a discriminator keeps to its end


class _ConditionCode(nn.Module):
    """(mean, log sigma) of the Gaussian of a condition's code, float32."""

    features: int

    @nn.compact
    def __call__(self, condition: Condition | None) -> tuple[Array, Array]:
        gaussian = nn.Dense(2 * self.features, kernel_init=_normal, name="gaussian")
        both = nn.leaky_relu(gaussian(_vector(condition)), 0.2)
        mean, log_sigma = jnp.split(both.astype(jnp.float32), 2, axis=-1)
        return mean, log_sigma


class _ConvNorm(nn.Module):
    """A convolution, batch normalization or a bias, and leaky ReLU unless `slope` is None."""

    features: int
    size: int
    slope: float | None
    shared: Mapping[str, Any]
    stride: int = 1
    batch_norm: bool = True
    layer: type[Conv] = Conv

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        options: dict[str, Any] = {"stride": self.stride, "use_bias": not self.batch_norm}
        dtype = self.shared["dtype"]
        x = _conv(self.features, self.size, dtype, layer=self.layer, **options)(x)
        if self.batch_norm:
            x = _norm(self.shared)(x, None, train=train)
        return x if self.slope is None else nn.leaky_relu(x, self.slope)


class _Residual(nn.Module):
    """`leaky_relu(x + f(x))`, f of (channels, kernel size) a convolution, each with its norm."""

    layers: tuple[tuple[int, int], ...]
    slope: float
    shared: Mapping[str, Any]
    batch_norm: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        y = x
        for index, (features, size) in enumerate(self.layers, start=1):
            slope = self.slope if index < len(self.layers) else None
            options: dict[str, Any] = {"batch_norm": self.batch_norm, "name": f"conv{index}"}
            y = _ConvNorm(features, size, slope, self.shared, **options)(y, train=train)
        return nn.leaky_relu(x + y, self.slope)


def _conv(
    features: int,
    size: int,
    dtype: DTypeLike,
    *,
    stride: int = 1,
    use_bias: bool = False,
    layer: type[Conv] = Conv,
    **options: Any,
) -> Conv:
    return layer(
        features,
        (size, size),
        strides=(stride, stride),
        use_bias=use_bias,
        kernel_init=_kernel,
        dtype=dtype,
        name=options.pop("name", "conv"),
        **options,
    )


def _norm(shared: Mapping[str, Any]) -> ConditionalBatchNorm:
    return ConditionalBatchNorm(scale_init=around_one, name="norm", **shared)


def _bottleneck(features: int) -> tuple[tuple[int, int], ...]:
    """The layers of stage I's residual units: narrow inside."""
    narrow = max(1, features // _NARROW)
    return (narrow, 1), (narrow, 3), (features, 3)


def _vector(condition: Condition | None) -> Array:
    vector = vector_of(condition)
    if vector is None:
        raise ValueError("condition must be given: StackGAN's networks have no other input for it")
    return vector


def _shared(network: Any) -> dict[str, Any]:
    """What all layers of a network have."""
    axis_name, dtype = network.axis_name, network.dtype
    return {"momentum": network.momentum, "axis_name": axis_name, "dtype": dtype}


def _tiled(code: Array, like: Array) -> Array:
    """The activations with a code as more channels at every position."""
    code = jnp.broadcast_to(code[:, None, None], (*like.shape[:3], code.shape[-1]))
    return jnp.concatenate([like, code.astype(like.dtype)], axis=-1)


class Generator(nn.Module):
    """Stage I: from latents and a condition to images in [-1, 1].

    A linear map, a residual unit, and doublings by nearest neighbours with a 3x3 convolution each,
    after the first of which stands another residual unit.

    Attributes:
        image_size: Height and width of the images, in pixels.
        out_channels: Channels of the images.
        channels: Channels of the last hidden layer, the authors' GF_DIM; at each smaller size twice
            as many.
        noise_dim: Width of the noise.
        condition_dim: Width of the code of a condition.
        min_size: Least side of the first image, see `jaxgen.models.dcgan.levels`.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first and the last layer are
            float32.

    Examples:
        >>> generator = Generator(image_size=8, channels=8)
        >>> z, condition = jnp.zeros((2, generator.latent_dim)), Condition(jnp.ones((2, 5)))
        >>> variables = generator.init(jax.random.key(0), z, condition, train=False)
        >>> generator.apply(variables, z, condition, train=False).shape
        (2, 8, 8, 3)
    """

    image_size: int = 64
    out_channels: int = 3
    channels: int = 128
    noise_dim: int = 100
    condition_dim: int = 128
    min_size: int = 4
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def latent_dim(self) -> int:
        """Width of the latents: the noise, and eps of the code."""
        return self.noise_dim + self.condition_dim

    def setup(self):
        self.code = _ConditionCode(self.condition_dim)

    def condition_code(self, condition: Condition | None) -> tuple[Array, Array]:
        """(mean, log sigma) of the Gaussian of the condition's code, each [B, condition_dim]."""
        return self.code(condition)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """Makes an image of each latent and condition.

        Args:
            z: Latents.
            condition: One vector an example.
            train: Normalize by the batch's statistics and update the running ones.

        Returns:
            Images in [-1, 1], float32.

        Raises:
            ValueError: An image size that the network cannot make, latents of another width, or a
                condition that is missing or has tokens.
        """
        base, doublings = levels(self.image_size, self.min_size)
        _check_latents(z, self.latent_dim)
        shared = _shared(self)
        noise, eps = jnp.split(z, [self.noise_dim], axis=-1)
        code = _drawn(self.condition_code(condition), eps)

        features = self.channels * 2 ** (doublings - 1)
        project = nn.Dense(base * base * features, kernel_init=_normal, name="project")
        x = project(jnp.concatenate([code, noise], axis=-1))
        # Each number by itself: a norm of as many channels as the first image has numbers.
        x = _norm(shared)(x[:, None, None], None, train=train)
        x = x.reshape(-1, base, base, features)
        for level in range(doublings):
            if level:
                features //= 2
                slope = None if level == 1 else 0.0
                options: dict[str, Any] = {"layer": UpsampledConv, "name": f"up{level}"}
                x = _ConvNorm(features, 3, slope, shared, **options)(x, train=train)
            if level < 2:
                unit = _Residual(_bottleneck(features), 0.0, shared, name=f"residual{level}")
                x = unit(x, train=train)
        image = _conv(self.out_channels, 3, jnp.float32, layer=UpsampledConv, name="image")
        return jnp.tanh(image(x))


class Refiner(nn.Module):
    """Stage II: from latents and a condition to images, through those of a frozen stage I.

    The small image is halved twice, the condition's code stands beside it at every position, and
    residual units and doublings follow. Stage I is normalized as this network is, by the batch in
    training, and has no gradient; its parameters are those by the name `FIRST`.

    Attributes:
        first: Stage I; its momentum, axis and dtype are this network's.
        image_size: Height and width of the images, in pixels.
        channels: Channels of the first layer, the authors' GF_DIM; four times as many at the
            smallest size, and half as many at each one after it.
        condition_dim: Width of the code of a condition, stage II's own.
        blocks: Number of residual units.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first and the last layer are
            float32.
    """

    first: Generator
    image_size: int = 256
    channels: int = 128
    condition_dim: int = 128
    blocks: int = 4
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def latent_dim(self) -> int:
        """Width of the latents: stage I's, and eps of stage II's code."""
        return self.first.latent_dim + self.condition_dim

    def setup(self):
        self.code = _ConditionCode(self.condition_dim)
        self.stage1 = self.first.clone(parent=None, **_shared(self))

    def condition_code(self, condition: Condition | None) -> tuple[Array, Array]:
        """(mean, log sigma) of the Gaussian of the condition's code, each [B, condition_dim]."""
        return self.code(condition)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch latent"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels"]:
        """Makes an image of each latent and condition.

        Args:
            z: Latents.
            condition: One vector an example.
            train: Normalize by the batch's statistics and update the running ones.

        Returns:
            Images in [-1, 1], float32.

        Raises:
            ValueError: An image size that does not follow from stage I's, latents of another width,
                or a condition that is missing or has tokens.
        """
        doublings = refinements(self.first.image_size, self.image_size)
        _check_latents(z, self.latent_dim)
        shared = _shared(self)
        of_first, eps = jnp.split(z, [self.first.latent_dim], axis=-1)
        small = lax.stop_gradient(self.stage1(of_first, condition, train=train))
        code = _drawn(self.condition_code(condition), eps)

        def layer(x: Array, name: str, features: int, size: int = 3, **options: Any) -> Array:
            return _ConvNorm(features, size, 0.0, shared, name=name, **options)(x, train=train)

        x = nn.relu(_conv(self.channels, 3, jnp.float32, name="coarse")(small))
        x = layer(x.astype(self.dtype), "down1", 2 * self.channels, 4, stride=2)
        x = layer(x, "down2", 4 * self.channels, 4, stride=2)
        x = layer(_tiled(code, x), "joint", 4 * self.channels)
        for block in range(1, self.blocks + 1):
            wide = ((4 * self.channels, 3),) * 2
            x = _Residual(wide, 0.0, shared, name=f"residual{block}")(x, train=train)
        for level in range(1, doublings + 1):
            features = max(1, 4 * self.channels // 2**level)
            x = layer(x, f"up{level}", features, layer=UpsampledConv)
        return jnp.tanh(_conv(self.first.out_channels, 3, jnp.float32, name="image")(x))


class Discriminator(nn.Module):
    """Of both stages: from images and conditions to verdicts.

    Convolutions of stride 2 double the channels down to the smallest size; where these are more
    than eight times the first layer's, 1x1 convolutions halve them. After a residual unit a linear
    map of the condition stands beside the image at every position.

    Attributes:
        channels: Channels of the first layer, the authors' DF_DIM.
        condition_dim: Width of the map of a condition.
        min_size: Least side of the last image, see `jaxgen.models.dcgan.levels`.
        batch_norm: Normalize by the batch's statistics, as the authors do. Then real, wrong and
            fake pairs may be told apart by their batch's statistics, each being a batch of its own;
            without it the convolutions have biases.
        momentum: Weight of the old running statistics in batch normalization.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.
        dtype: Type of the computation; parameters, statistics, the first layer and verdicts are
            float32.
    """

    channels: int = 64
    condition_dim: int = 128
    min_size: int = 4
    batch_norm: bool = True
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def mixes_examples(self) -> bool:
        """Whether the verdict on one image depends on the others: by batch normalization."""
        return self.batch_norm

    @property
    def batch_statistics(self) -> bool:
        """Whether it normalizes by batch statistics."""
        return self.batch_norm

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Verdict:
        """Judges whether images are real and show what they should.

        Args:
            x: Images in [-1, 1].
            condition: One vector an example.
            train: Normalize by the batch's statistics and update the running ones.

        Raises:
            ValueError: Images that are not square or of a size that the network cannot halve, or a
                condition that is missing or has tokens.
        """
        _, height, width, _ = x.shape
        if height != width:
            raise ValueError(f"images must be square, got {height}x{width}")
        base, halvings = levels(height, self.min_size)
        shared, normed = _shared(self), self.batch_norm

        e = nn.Dense(self.condition_dim, kernel_init=_normal, name="condition")(_vector(condition))
        x = _conv(self.channels, 4, jnp.float32, stride=2, use_bias=not normed, name="down1")(x)
        x = nn.leaky_relu(x, 0.2).astype(self.dtype)
        features = self.channels
        slimmings = max(0, halvings - 1 - _DOUBLINGS)
        for level in range(2, halvings + 1):
            features *= 2
            last = level == halvings and not slimmings
            slope = None if last else 0.2
            down = _ConvNorm(features, 4, slope, shared, 2, normed, name=f"down{level}")
            x = down(x, train=train)
        for index in range(1, slimmings + 1):
            features //= 2
            slope = None if index == slimmings else 0.2
            slim = _ConvNorm(features, 1, slope, shared, 1, normed, name=f"slim{index}")
            x = slim(x, train=train)
        x = _Residual(_bottleneck(features), 0.2, shared, normed, name="residual")(x, train=train)
        joint = _ConvNorm(features, 1, 0.2, shared, 1, normed, name="joint")
        x = joint(_tiled(nn.leaky_relu(e, 0.2), x), train=train)
        logits = _conv(1, base, jnp.float32, padding="VALID", name="verdict")(x)
        return Verdict(logits.reshape(-1))


def refinements(small: int, large: int) -> int:
    """The doublings of a `Refiner` from images of one size, halved twice, to those of another.

    Args:
        small: Height and width of stage I's images, in pixels.
        large: Height and width of stage II's images, in pixels.

    Raises:
        ValueError: `small` cannot be halved twice, or `large` is not it times a power of two.
    """
    ratio, rest = divmod(large, small) if small > 0 else (0, 0)
    if small < 4 or small % 4 or rest or ratio < 1 or ratio & (ratio - 1):
        raise ValueError(
            f"image_size must be stage I's ({small} pixels, a multiple of 4) times a power of two, "
            f"got {large}"
        )
    return ratio.bit_length() + 1


def _drawn(gaussian: tuple[Array, Array], eps: Array) -> Array:
    mean, log_sigma = gaussian
    return mean + jnp.exp(log_sigma) * eps


def _check_latents(z: Array, width: int) -> None:
    if z.shape[-1] != width:
        raise ValueError(f"z must be [B, {width}], got {list(z.shape)}")
