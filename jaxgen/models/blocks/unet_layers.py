"""What the U-Nets of diffusion models share: the residual block, its styles, checks of inputs."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxgen.models.blocks.layers import Dropout, GroupNorm, near_zero_init, scaled_init
from jaxgen.models.conv.layers import Conv

_zeros = nn.initializers.zeros
_torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BlockStyle(NamedTuple):
    """How the blocks of a paper's network differ from those of another; `DDPM` by default.

    Attributes:
        scale_shift: Whether the time scales and shifts what the second norm gives, `(1 + s) norm(h)
            + b` (Nichol & Dhariwal 2021), instead of being added before that norm.
        residual_scale: Factor of the sum of a shortcut and its branch; `sqrt(1/2)` keeps the
            variance.
        projects_resampled: Whether the shortcut of a block that resamples is a 1x1 convolution even
            where the channels stay.
        epsilon: Number that normalizations add to the variance.
        kernel_init: Initialization of the kernels.
        last_init: Initialization of a branch's last kernel.
        attention_init: Initialization of an attention's maps to queries, keys and values.
        time_init: Initialization of the time's linear map.
        time_bias: Whether the time's linear map has a bias.
    """

    scale_shift: bool = False
    residual_scale: float = 1.0
    projects_resampled: bool = False
    epsilon: float = 1e-6
    kernel_init: nn.initializers.Initializer = scaled_init
    last_init: nn.initializers.Initializer = near_zero_init
    attention_init: nn.initializers.Initializer = scaled_init
    time_init: nn.initializers.Initializer = scaled_init
    time_bias: bool = True


DDPM = BlockStyle()
"""The blocks of Ho et al. (2020)."""

SONG = BlockStyle(residual_scale=math.sqrt(0.5), projects_resampled=True)
"""The blocks of NCSN++ and DDPM++ (Song et al. 2021, SDE, appendix H): BigGAN's."""

EDM = SONG._replace(attention_init=nn.initializers.variance_scaling(0.1, "fan_avg", "uniform"))
"""The same as Karras et al. (2022, EDM) start them: theirs is 0.2 of one map to all three."""

ADM = BlockStyle(
    scale_shift=True,
    epsilon=1e-5,
    kernel_init=_torch_init,
    last_init=_zeros,
    attention_init=_torch_init,
    time_init=_torch_init,
)
"""The blocks of Dhariwal & Nichol (2021). Biases start at 0 here, as small uniforms there."""

VQGAN = BlockStyle(kernel_init=_torch_init, last_init=_torch_init, attention_init=_torch_init)
"""The blocks of Esser et al. (2021), without times, as PyTorch initializes convolutions; biases
start at 0 here, as small uniforms there."""

VDM = BlockStyle(
    kernel_init=nn.initializers.lecun_normal(),
    last_init=_zeros,
    attention_init=nn.initializers.lecun_normal(),
    time_init=_zeros,
    time_bias=False,
)
"""The blocks of Kingma et al. (2021, VDM)."""

LDM = ADM._replace(scale_shift=False)
"""The blocks of Rombach et al. (2022, latent diffusion)."""


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions beside a shortcut; the time, if any, enters between them.

    Attributes:
        channels: Channels of the output; where the input has others, the shortcut is a 1x1
            convolution.
        dropout: Rate of the dropout before the second convolution.
        deterministic: Whether there is no dropout.
        dtype: Type of the convolutions; the time's linear map is float32.
        resample: Function that doubles or halves images, of the branch (after its first
            nonlinearity) and of the shortcut; None for neither (Brock et al. 2019, BigGAN).
        style: What the block has of a paper's network.
    """

    channels: int
    dropout: float
    deterministic: bool
    dtype: DTypeLike = jnp.float32
    resample: Callable[[Array], Array] | None = None
    style: BlockStyle = DDPM

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width features"],
        embedding: Float[Array, "batch embedding"] | None,
    ) -> Float[Array, "batch height2 width2 channels"]:
        """Applies the block.

        Args:
            x: Images.
            embedding: Embedding of the times, after its nonlinearity; None for a block without.
        """
        style = self.style
        conv = partial(Conv, self.channels, kernel_init=style.kernel_init, dtype=self.dtype)
        norm = partial(GroupNorm, epsilon=style.epsilon, dtype=self.dtype)
        if embedding is not None:
            width = 2 * self.channels if style.scale_shift else self.channels
            time = nn.Dense(width, style.time_bias, kernel_init=style.time_init, name="time")
            modulation = time(embedding)[:, None, None]

        h = nn.silu(norm(name="norm1")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(kernel_size=(3, 3), name="conv1")(h)
        if embedding is None:
            h = norm(name="norm2")(h)
        elif style.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm(name="norm2")(h) * (1 + scale).astype(self.dtype) + shift.astype(self.dtype)
        else:
            h = norm(name="norm2")(h + modulation.astype(self.dtype))
        h = Dropout(self.dropout, self.deterministic)(nn.silu(h))
        h = conv(kernel_size=(3, 3), kernel_init=style.last_init, name="conv2")(h)

        projects = style.projects_resampled and self.resample is not None
        if projects or x.shape[-1] != self.channels:
            x = conv(kernel_size=(1, 1), name="shortcut")(x)
        return x + h if style.residual_scale == 1 else style.residual_scale * (x + h)


def embed_times(
    time_features: Callable[[Array, int], Array], t: Num[Array, "batch *times"], channels: int
) -> Float[Array, "batch features"]:
    """The features of each image's time, or of its several times side by side.

    Args:
        time_features: Function `(t, channels) -> f32[batch, features]`.
        t: Times [batch], or several of each image [batch, times].
        channels: Channels, as `time_features` takes them.
    """
    if t.ndim == 1:
        return time_features(t, channels)
    return jnp.concatenate([time_features(column, channels) for column in t.T], axis=-1)


def check_fields(
    channels: int,
    num_res_blocks: int,
    dropout: float,
    multipliers: tuple[int, ...] = (1,),
    out_channels: int | None = None,
) -> None:
    """Checks what all U-Nets are given.

    Args:
        channels: Channels of the first level.
        num_res_blocks: Number of residual blocks of a level.
        dropout: Rate of the dropout.
        multipliers: Channels of each level as multiples of `channels`.
        out_channels: Channels of the output, or None.

    Raises:
        ValueError: If one is out of its range.
    """
    if channels < 4 or channels % 2:
        raise ValueError(f"channels must be even and at least 4, got {channels}")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be one or more positives, got {multipliers}")
    if num_res_blocks < 1:
        raise ValueError(f"num_res_blocks must be positive, got {num_res_blocks}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if out_channels is not None and out_channels < 1:
        raise ValueError(f"out_channels must be positive, got {out_channels}")


def check_inputs(
    x: Array, t: Array, vector: Array | None, multipliers: tuple[int, ...] = (1,)
) -> None:
    """Checks the shapes of what a U-Net is called with before anything is computed.

    Args:
        x: Images [batch, height, width, channels].
        t: Times [batch], or several of each image [batch, times].
        vector: Conditions [batch, width], or None.
        multipliers: Channels of each level; each level but the last halves the image.

    Raises:
        ValueError: If the images cannot be halved often enough, or there are other numbers of
            times or conditions than images.
    """
    batch, height, width, _ = x.shape
    halvings = len(multipliers) - 1
    multiple = 2**halvings
    if height % multiple or width % multiple:
        raise ValueError(
            f"x: an image of {height}x{width} cannot be halved {halvings} times; with multipliers "
            f"{multipliers} its height and width must be multiples of {multiple}"
        )
    if t.shape[:1] != (batch,) or t.ndim > 2:
        raise ValueError(f"t must have shape ({batch},), one time an image, got {t.shape}")
    if vector is not None and vector.shape[0] != batch:
        raise ValueError(f"condition must be of {batch} examples, got {vector.shape[0]}")
