"""A classifier of noisy images, told the level: a U-Net's way down (Dhariwal & Nichol 2021)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxgen.models.blocks.layers import Downsample, GroupNorm, scaled_init, timestep_embedding
from jaxgen.models.blocks.unet_layers import ResidualBlock, check_fields, check_inputs
from jaxgen.models.conv.layers import Conv


class NoisyClassifier(nn.Module):
    """Logits of the classes of noisy images.

    The levels of `jaxgen.models.unet.UNet` on its way down without attention, the mean over
    positions, and a linear map (of the paper's ways to pool the simplest).

    Attributes:
        num_classes: Number of classes.
        channels: Channels of the first level; even, at least 4.
        multipliers: Channels of each level as multiples of `channels`; each but the last halves
            the image.
        num_res_blocks: Residual blocks a level.
        dropout: Rate of the dropout inside the blocks.
        dtype: Type of the computation of the blocks.
    """

    num_classes: int
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        check_fields(self.channels, self.num_res_blocks, self.dropout, self.multipliers, None)
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Num[Array, " batch"],
        *,
        train: bool,
    ) -> Float[Array, "batch classes"]:
        """Logits, f32[batch, num_classes].

        Args:
            x: Noisy images.
            t: Times, of the size of a chain's steps.
            train: Whether to drop out, which needs the rng "dropout".

        Raises:
            ValueError: if the image cannot be halved often enough, or a shape is wrong.
        """
        check_inputs(x, t, None, self.multipliers)
        embedding = timestep_embedding(t, self.channels)
        for name in ("time1", "time2"):
            dense = nn.Dense(4 * self.channels, kernel_init=scaled_init, name=name)
            embedding = nn.silu(dense(embedding))
        h = Conv(self.channels, (3, 3), kernel_init=scaled_init, name="conv_in")(x)
        h = h.astype(self.dtype)
        for level, multiplier in enumerate(self.multipliers):
            width = multiplier * self.channels
            for i in range(self.num_res_blocks):
                block = ResidualBlock(
                    width, self.dropout, not train, self.dtype, name=f"down{level}_block{i}"
                )
                h = block(h, embedding)
            if level < len(self.multipliers) - 1:
                h = Downsample(self.dtype, name=f"down{level}_downsample")(h)
        h = nn.silu(GroupNorm(name="norm_out")(h)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="logits")(h)
