"""The network of Kingma et al. (2021), "Variational Diffusion Models", appendix B.

A deep stack of residual blocks at full resolution: a likelihood is about the finest details, so the
image is never made smaller, and sines and cosines of its values let the network see what a
thousandth of the noise does. The equal blocks are one compiled loop: their parameters are stacked.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.layers import GroupNorm, SelfAttention, timestep_embedding
from jaxgen.models.blocks.unet_layers import VDM, ResidualBlock, check_fields, check_inputs
from jaxgen.models.conv.layers import Conv


def value_features(
    x: Float[Array, "*shape channels"], exponents: tuple[int, ...]
) -> Float[Array, "*shape features"]:
    r"""Sines and cosines of an image's values, $$\sin(2 \pi 2^n x), \cos(2 \pi 2^n x)$$.

    Args:
        x: Images, f32.
        exponents: The exponents n.

    Returns:
        f32[..., 2 len(exponents) channels], the sines first.
    """
    factors = np.exp2(np.asarray(exponents, np.float32)).reshape(*x.ndim * (1,), -1)
    turns = x[..., None] * factors
    # Of whole turns nothing is left: taken away first, the angle loses no digits.
    angles = 2 * np.pi * (turns - jnp.round(turns)).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class _Step(nn.Module):
    """A step of the stack: a residual block, and an attention where asked."""

    channels: int
    attends: bool
    dropout: float
    deterministic: bool
    dtype: DTypeLike
    hands_out: bool = False  # what it was given, for a step up to take back

    @nn.compact
    def __call__(
        self, h: Array, embedding: Array, skip: Array | None = None
    ) -> tuple[Array, Array | None]:
        given = h
        if skip is not None:
            h = jnp.concatenate([h, skip], axis=-1)
        block = partial(ResidualBlock, dtype=self.dtype, style=VDM, name="block")
        h = block(self.channels, self.dropout, self.deterministic)(h, embedding)
        if self.attends:
            attention = SelfAttention(
                1, self.dtype, VDM.attention_init, VDM.last_init, name="attention"
            )
            h = attention(h)
        return h, given if self.hands_out else None


class VDMNetwork(nn.Module):
    """Predicts the noise in an image from the image and its log-SNR.

    The defaults are the paper's network for CIFAR-10 without augmentation, 30.6M parameters; with
    augmentation it has `channels=256`, `attends=True` and a dropout of 0.05. At the start it
    predicts the noisy image itself.

    Attributes:
        channels: Channels of every block; even, at least 4. The embedding of the time is four times
            as wide.
        num_res_blocks: Residual blocks on the way down; one more on the way up.
        attends: Whether each of them is followed by self-attention. The middle always has one.
        dropout: Rate of the dropout inside the residual blocks.
        exponents: Exponents n of the features `sin(2 pi 2^n x), cos(2 pi 2^n x)` that the network
            sees beside the image x; none for x alone.
        dtype: Type of the computation. Parameters, embeddings, the first and the last convolution,
            normalization statistics, softmax and output are float32.
        remat: Whether to compute each block again in the backward pass instead of keeping its
            activations: less memory for about a third more time.

    Examples:
        >>> model = VDMNetwork(channels=8, num_res_blocks=2)
        >>> x, t = jnp.zeros((2, 8, 8, 1)), jnp.array([0.0, 700.0])
        >>> params = model.init(jax.random.key(0), x, t, train=False)
        >>> model.apply(params, x, t, train=True, rngs={"dropout": jax.random.key(1)}).shape
        (2, 8, 8, 1)
    """

    channels: int = 128
    num_res_blocks: int = 32
    attends: bool = False
    dropout: float = 0.1
    exponents: tuple[int, ...] = (6, 7)
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        check_fields(self.channels, self.num_res_blocks, self.dropout)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width image_channels"],
        t: Num[Array, "..."],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width image_channels"]:
        """Predicts the noise in the image `x`.

        Args:
            x: Noisy images of a variance-preserving process.
            t: Times [batch]: `1000 (gamma - gamma_min) / (gamma_max - gamma_min)` with gamma the
                negative log-SNR, from 0 for data to 1000 for noise.
            condition: Condition of each image, one vector, or None for a network without. Zeros
                stand for no condition.
            train: Whether to drop out, which needs the rng "dropout".

        Returns:
            f32[batch, height, width, image_channels], the sum of the network's output and x.

        Raises:
            ValueError: if a shape is wrong or the condition has tokens.
        """
        vector = vector_of(condition)
        check_inputs(x, t, vector)
        step: Any = partial(nn.remat, prevent_cse=False)(_Step) if self.remat else _Step
        loop: Any = partial(
            nn.scan,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_res_blocks,
        )
        options = {"dropout": self.dropout, "deterministic": not train, "dtype": self.dtype}
        fields = {"channels": self.channels, "attends": self.attends, **options}
        conv = partial(Conv, kernel_size=(3, 3))

        embedding = self._embed(t, vector)
        seen = jnp.concatenate([x, value_features(x, self.exponents)], axis=-1)
        h = conv(self.channels, kernel_init=VDM.kernel_init, name="conv_in")(seen)
        h = h.astype(self.dtype)
        down = loop(step, in_axes=nn.broadcast)(**fields, hands_out=True, name="down")
        deepest, skips = down(h, embedding)
        h, _ = step(self.channels, True, **options, name="middle0")(deepest, embedding)
        h, _ = step(self.channels, False, **options, name="middle1")(h, embedding)
        # The last output on the way down is taken back first, by a step outside the loop.
        h, _ = step(**fields, name="up_first")(h, embedding, deepest)
        up = loop(step, in_axes=(nn.broadcast, 0), reverse=True)(**fields, name="up")
        h, _ = up(h, embedding, skips)

        h = nn.silu(GroupNorm(name="norm_out")(h))
        return conv(x.shape[-1], kernel_init=VDM.last_init, name="conv_out")(h) + x

    def _embed(self, t: Array, vector: Array | None) -> Array:
        """The embedding of the time and of the condition, f32[batch, 4 channels]."""
        dense = partial(nn.Dense, 4 * self.channels)
        h = dense(name="time1")(timestep_embedding(t, self.channels))
        if vector is not None:
            h = h + dense(use_bias=False, name="condition")(vector)
        return nn.silu(dense(name="time2")(nn.silu(h)))
