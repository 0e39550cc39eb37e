"""The U-Net of Ho et al. (2020), "Denoising Diffusion Probabilistic Models", appendix B.

Read `UNet.__call__` as the figure: down through the levels, keeping every activation; two blocks
and an attention at the bottom; up again, each block taking back one kept activation.

    UNet            Ho et al. (2020), DDPM, CIFAR-10                            35.7M parameters
    iddpm           Nichol & Dhariwal (2021), CIFAR-10                          52.5M
    ldm             Rombach et al. (2022), latents of 64x64x3, no condition     274M
    ldm_imagenet    the same, told a class                                      401M
    ldm_text        the same, latents of 32x32x4, told a text                   872M
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.layers import (
    Downsample,
    GroupNorm,
    SelfAttention,
    Upsample,
    timestep_embedding,
)
from jaxgen.models.blocks.spatial_transformer import SpatialTransformer
from jaxgen.models.blocks.unet_layers import (
    ADM,
    DDPM,
    LDM,
    BlockStyle,
    ResidualBlock,
    check_fields,
    check_inputs,
    embed_times,
)
from jaxgen.models.conv.layers import Conv


class UNet(nn.Module):
    """Predicts noise (or x0, or v) from a noisy image and its time.

    The defaults are the paper's CIFAR-10 network, 35,746,307 parameters on 32x32x3 images, layer
    for layer and in the initialization too: every residual branch and the output start near zero.

    Attributes:
        channels: Channels of the first level; even, at least 4. The time embedding is four times as
            wide.
        multipliers: Channels of each level as multiples of `channels`. Each level but the last
            halves the image.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        attention_resolutions: Image heights at which each block is followed by self-attention.
            The middle of the network always has one.
        dropout: Rate of the dropout inside the residual blocks.
        num_heads: Number of attention heads.
        out_channels: Channels of the output: None for as many as the image has; twice that for a
            learned variance.
        time_features: Function `(t, channels) -> f32[batch, features]`, the first embedding of
            the time.
        style: What the blocks have of a paper's network.
        dtype: Type of the computation. Parameters, embeddings, the first and the last convolution,
            normalization statistics, softmax and output are float32.
        remat: Whether to compute each block again in the backward pass instead of keeping its
            activations: less memory for about a third more time.
        head_width: Width of an attention's heads, which must divide the channels; None for
            `num_heads` of them.
        transformer_depth: Number of blocks in the place of each attention by which positions read
            the tokens of a condition as well as each other; 0 for self-attention.
        token_width: Width of the one token that the vector of a condition without tokens becomes,
            to be read.

    Examples:
        >>> model = UNet(channels=8, multipliers=(1, 2))
        >>> x, t = jnp.zeros((2, 8, 8, 1)), jnp.array([3, 700])
        >>> params = model.init(jax.random.key(0), x, t, train=False)
        >>> model.apply(params, x, t, train=True, rngs={"dropout": jax.random.key(1)}).shape
        (2, 8, 8, 1)
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_heads: int = 1
    out_channels: int | None = None
    time_features: Callable[[Array, int], Array] = timestep_embedding
    style: BlockStyle = DDPM
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    head_width: int | None = None
    transformer_depth: int = 0
    token_width: int = 512

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        check_fields(
            self.channels, self.num_res_blocks, self.dropout, self.multipliers, self.out_channels
        )
        if self.num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {self.num_heads}")
        if self.head_width is not None and self.head_width < 1:
            raise ValueError(f"head_width must be positive, got {self.head_width}")
        if self.transformer_depth < 0:
            raise ValueError(f"transformer_depth must be at least 0, got {self.transformer_depth}")
        if self.token_width < 1:
            raise ValueError(f"token_width must be positive, got {self.token_width}")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width image_channels"],
        t: Num[Array, "..."],
        condition: Condition | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width out_channels"]:
        """Predicts from the image `x` at time `t`.

        Args:
            x: Noisy images.
            t: Times [batch]: steps of a chain, counted from 0. Several of each image, [batch,
                times], are embedded side by side.
            condition: Condition of each image, one vector, or None for a network without. Zeros
                stand for no condition: the vector goes through a linear map without bias. With a
                `transformer_depth` its tokens are read, or its vector where it has none.
            train: Whether to drop out, which needs the rng "dropout".

        Returns:
            f32[batch, height, width, out_channels].

        Raises:
            ValueError: if the image cannot be halved often enough, a shape is wrong, the heads do
                not divide the channels, or the condition has tokens that the network does not read
                or nothing that it could.
        """
        vector, *read = self._told(condition)
        check_inputs(x, t, read[0] if read else vector, self.multipliers)
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        remat: Any = nn.remat if self.remat else lambda module: module
        style = self.style
        block = partial(
            remat(ResidualBlock),
            dropout=self.dropout,
            deterministic=not train,
            dtype=self.dtype,
            style=style,
        )

        def attend(h: Array, name: str) -> Array:
            heads, inits = self._heads(h.shape[-1]), (style.attention_init, style.last_init)
            if not self.transformer_depth:
                layer = remat(SelfAttention)(heads, self.dtype, *inits, style.epsilon, name=name)
                return layer(h)
            depth = self.transformer_depth
            return remat(SpatialTransformer)(heads, depth, self.dtype, *inits, name=name)(h, *read)

        dense = partial(nn.Dense, 4 * self.channels, kernel_init=style.kernel_init)
        conv = partial(Conv, kernel_size=(3, 3))

        embedding = dense(name="time1")(embed_times(self.time_features, t, self.channels))
        embedding = dense(name="time2")(nn.silu(embedding))
        if vector is not None:  # of a class: its row of the kernel, a learned embedding
            embed = partial(dense, use_bias=False, kernel_init=nn.initializers.normal(1.0))
            embedding = embedding + embed(name="condition")(vector)
        embedding = nn.silu(embedding)  # every block begins with it; the paper's has it inside

        h = conv(self.channels, kernel_init=style.kernel_init, name="conv_in")(x)
        h = h.astype(self.dtype)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.num_res_blocks):
                h = block(multiplier * self.channels, name=f"down{level}_block{i}")(h, embedding)
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f"down{level}_attention{i}")
                skips.append(h)
            if level < len(self.multipliers) - 1:
                h = Downsample(self.dtype, name=f"down{level}_downsample")(h)
                skips.append(h)

        h = block(h.shape[-1], name="mid_block0")(h, embedding)
        h = attend(h, "mid_attention")
        h = block(h.shape[-1], name="mid_block1")(h, embedding)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(multiplier * self.channels, name=f"up{level}_block{i}")(h, embedding)
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f"up{level}_attention{i}")
            if level > 0:
                h = Upsample(self.dtype, name=f"up{level}_upsample")(h)

        h = nn.silu(GroupNorm(epsilon=style.epsilon, name="norm_out")(h))
        return conv(out_channels, kernel_init=style.last_init, name="conv_out")(h)

    def _told(self, condition: Condition | None) -> tuple[Array | None, ...]:
        """What joins the embedding of the time, or None and the tokens that are read, their mask.

        Raises:
            ValueError: if the condition is not what the network takes.
        """
        if not self.transformer_depth:
            return (vector_of(condition),)
        if condition is None or (condition.vector is None and condition.tokens is None):
            raise ValueError("condition must have tokens or a vector: the network reads it")
        if condition.tokens is not None:
            return None, condition.tokens, condition.mask
        init = nn.initializers.normal(1.0)  # of a class: its row of the kernel, an embedding
        dense = nn.Dense(self.token_width, use_bias=False, kernel_init=init, name="condition")
        return None, dense(condition.vector)[:, None], None

    def _heads(self, channels: int) -> int:
        """The number of heads of an attention.

        Raises:
            ValueError: if they are of a width that does not divide the channels.
        """
        if self.head_width is None:
            return self.num_heads
        if channels % self.head_width:
            raise ValueError(
                f"head_width must divide the {channels} channels, got {self.head_width}"
            )
        return channels // self.head_width


def iddpm(**fields: Any) -> UNet:
    """The network of Nichol & Dhariwal (2021), 52.5M parameters for CIFAR-10.

    The time scales and shifts what the blocks' second norms give; attention has four heads, at 16
    and at 8 pixels. The output has twice the channels of RGB images, for a learned variance.

    Args:
        fields: Fields of `UNet` in other values than the paper's.
    """
    paper: dict[str, Any] = {
        "num_res_blocks": 3,
        "attention_resolutions": (16, 8),
        "dropout": 0.3,
        "num_heads": 4,
        "out_channels": 6,
        "time_features": partial(timestep_embedding, endpoint=False),
        "style": ADM,
    }
    return UNet(**{**paper, **fields})


def ldm(**fields: Any) -> UNet:
    """The network of Rombach et al. (2022) for faces, 274M parameters on latents of 64x64x3.

    Args:
        fields: Fields of `UNet` in other values than the paper's.
    """
    paper: dict[str, Any] = {
        "channels": 224,
        "multipliers": (1, 2, 3, 4),
        "attention_resolutions": (32, 16, 8),
        "dropout": 0.0,
        "time_features": partial(timestep_embedding, endpoint=False),
        "style": LDM,
        "head_width": 32,
    }
    return UNet(**{**paper, **fields})


def ldm_imagenet(**fields: Any) -> UNet:
    """The network of Rombach et al. (2022) that is told a class, 401M parameters.

    Args:
        fields: Fields of `UNet` in other values than the paper's.
    """
    paper: dict[str, Any] = {
        "channels": 192,
        "multipliers": (1, 2, 3, 5),
        "head_width": None,
        "transformer_depth": 1,
    }
    return ldm(**{**paper, **fields})


def ldm_text(**fields: Any) -> UNet:
    """The network of Rombach et al. (2022) that reads a text, 872M parameters.

    Beside it the paper trains a transformer of 32 layers of 1280 that reads 77 tokens.

    Args:
        fields: Fields of `UNet` in other values than the paper's.
    """
    paper: dict[str, Any] = {
        "channels": 320,
        "multipliers": (1, 2, 4, 4),
        "num_heads": 8,
        "head_width": None,
        "transformer_depth": 1,
    }
    return ldm(**{**paper, **fields})
