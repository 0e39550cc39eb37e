"""The U-Nets of score-based models: NCSN++, DDPM++, EDM's forms of these, and ADM.

    ncsnpp, ncsnpp_256, ddpmpp Song et al. (2021), "Score-Based Generative Modeling through SDEs"
    edm_ncsnpp, edm_ddpmpp     Karras et al. (2022), "Elucidating the Design Space" (EDM)
    adm                        Dhariwal & Nichol (2021), "Diffusion Models Beat GANs"

Each function gives the paper's network; any field of `ScoreUNet` may be given in another value.
They resample inside residual blocks, where the U-Net of DDPM (`models/unet.py`) has a convolution
of its own, and differ from each other in what the table below names.

                 features of the time   filter   pyramid   attention going up   parameters
    ncsnpp       Fourier                1331     yes       last block of level  62.8M (CIFAR-10)
    ncsnpp_256   Fourier                1331     two       last block of level  65.6M (256x256)
    ddpmpp       sinusoid               box      no        last block of level  61.8M
    edm_ncsnpp   Fourier                1331     yes       last block of level  56.4M
    edm_ddpmpp   sinusoid               box      no        last block of level  55.7M
    adm          sinusoid               box      no        every block          296M (ImageNet-64)

What each is told as its time, which the parametrization gives it: `ncsnpp` ln sigma, sigma being
the deviation of the noise for data in [0, 1], that is ln(sigma / 2) for data in [-1, 1]; `ddpmpp`
999 t for t in [0, 1]; EDM's, `adm` as EDM trains it, `ln(sigma) / 4` (`parametrization.edm`); `adm`
by itself the step of a chain of 1000. All see the noisy image as it is given, and none divides its
output by sigma: `ncsnpp` predicts `NEGATIVE_EPS`, sigma times the score.
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
    GroupNorm,
    SelfAttention,
    fourier_features,
    timestep_embedding,
)
from jaxgen.models.blocks.resample import BINOMIAL, BOX, downsample, smooth, upsample
from jaxgen.models.blocks.unet_layers import (
    ADM,
    EDM,
    SONG,
    BlockStyle,
    ResidualBlock,
    check_fields,
    check_inputs,
    embed_times,
)
from jaxgen.models.conv.layers import Conv

TimeFeatures = Callable[[Array, int], Array]


class ScoreUNet(nn.Module):
    """Predicts what a parametrization says from a noisy image and its time.

    The defaults are DDPM++ of Song et al. (2021) for CIFAR-10. Every residual branch and the output
    start near zero (at zero in ADM's style).

    Attributes:
        channels: Channels of the first convolution; even, at least 4. The embedding of the time is
            four times as wide.
        multipliers: Channels of each level as multiples of `channels`. Each level but the last
            halves the image.
        num_res_blocks: Residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: Image heights at which blocks are followed by self-attention. The
            middle of the network always has one.
        dropout: Rate of the dropout inside the residual blocks.
        out_channels: Channels of the output: None for as many as the image has; twice that for a
            learned variance.
        augmentation_labels: Number of labels that tell of the augmentation of an image; 0 for a
            network that is not told. Nine of EDM's pipe.
        time_features: Function `(t, channels) -> f32[batch, features]`, the first embedding of
            the time.
        taps: Filter of the resampling, `resample.BOX` or `resample.BINOMIAL`.
        input_pyramid: Whether the noisy image itself, halved by a convolution each time, is added
            to each level's input.
        skip_pyramids: Whether the noisy image, halved by the filter alone, enters each level by a
            1x1 convolution, and each level says a part of the output, which the next one doubles
            and adds to its own.
        attends_every_block: Whether attention follows each block on the way up too, and not the
            last of a level alone.
        head_width: Width of an attention's heads, which must divide the channels; None for one
            head.
        condition_first: Whether the condition joins the features of the time, ahead of the
            embedding's two layers, and not the embedding itself.
        style: What the blocks have of a paper's network.
        dtype: Type of the computation. Parameters, embeddings, the first and the last convolution,
            normalization statistics, softmax and output are float32.
        remat: Whether to compute each block again in the backward pass instead of keeping its
            activations: less memory for about a third more time.

    Examples:
        >>> model = edm_ddpmpp(channels=8, multipliers=(1, 2), num_res_blocks=1)
        >>> x, t = jnp.zeros((2, 8, 8, 1)), jnp.array([-1.2, 0.3])
        >>> params = model.init(jax.random.key(0), x, t, train=False)
        >>> model.apply(params, x, t, train=True, rngs={"dropout": jax.random.key(1)}).shape
        (2, 8, 8, 1)
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    out_channels: int | None = None
    augmentation_labels: int = 0
    time_features: TimeFeatures = timestep_embedding
    taps: tuple[int, ...] = BOX
    input_pyramid: bool = False
    skip_pyramids: bool = False
    attends_every_block: bool = False
    head_width: int | None = None
    condition_first: bool = True
    style: BlockStyle = SONG
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        check_fields(
            self.channels, self.num_res_blocks, self.dropout, self.multipliers, self.out_channels
        )
        if self.augmentation_labels < 0:
            raise ValueError(
                f"augmentation_labels must be at least 0, got {self.augmentation_labels}"
            )
        if self.input_pyramid and self.skip_pyramids:
            raise ValueError("input_pyramid and skip_pyramids must not both be True")
        if self.head_width is not None and self.head_width < 1:
            raise ValueError(f"head_width must be positive, got {self.head_width}")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width image_channels"],
        t: Num[Array, "..."],
        condition: Condition | None = None,
        augmentation: Float[Array, "batch labels"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width out_channels"]:
        """Predicts from the image `x` at time `t`.

        Args:
            x: Noisy images.
            t: Times [batch], as the module's description says. Several of each image, [batch,
                times], are embedded side by side.
            condition: Condition of each image, one vector, or None for a network without. Zeros
                stand for no condition.
            augmentation: Labels of each image's augmentation, where the network is told; None for
                zeros, which stand for images as they are.
            train: Whether to drop out, which needs the rng "dropout".

        Returns:
            f32[batch, height, width, out_channels].

        Raises:
            ValueError: if the image cannot be halved often enough, a shape is wrong, the heads do
                not divide the channels, or the condition has tokens.
        """
        vector = vector_of(condition)
        check_inputs(x, t, vector, self.multipliers)
        style, out_channels = self.style, self.out_channels or x.shape[-1]
        remat: Any = nn.remat if self.remat else lambda module: module
        block = partial(
            remat(ResidualBlock),
            dropout=self.dropout,
            deterministic=not train,
            dtype=self.dtype,
            style=style,
        )
        halve, double = partial(downsample, taps=self.taps), partial(upsample, taps=self.taps)
        conv = partial(Conv, kernel_size=(3, 3))

        def attention(name: str, h: Array) -> Array:
            layer = remat(SelfAttention)(
                self._num_heads(h.shape[-1]),
                self.dtype,
                style.attention_init,
                style.last_init,
                style.epsilon,
                style.residual_scale,
                name=name,
            )
            return layer(h)

        embedding = self._embed(t, vector, augmentation)
        h = conv(self.channels, kernel_init=style.kernel_init, name="conv_in")(x).astype(self.dtype)
        pyramid, skips = x, [h]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.num_res_blocks):
                h = block(multiplier * self.channels, name=f"down{level}_block{i}")(h, embedding)
                if h.shape[1] in self.attention_resolutions:
                    h = attention(f"down{level}_attention{i}", h)
                skips.append(h)
            if level < len(self.multipliers) - 1:
                width = h.shape[-1]
                h = block(width, resample=halve, name=f"down{level}_downsample")(h, embedding)
                if self.input_pyramid:
                    dtype = jnp.float32 if level == 0 else self.dtype  # it sees the image
                    layer = SmoothDownsample(width, self.taps, dtype, name=f"down{level}_pyramid")
                    h = pyramid = style.residual_scale * (h + layer(pyramid).astype(self.dtype))
                elif self.skip_pyramids:
                    pyramid = halve(pyramid)
                    enter = Conv(width, (1, 1), kernel_init=style.kernel_init, name=f"in{level}")
                    h = h + enter(pyramid).astype(self.dtype)
                skips.append(h)

        def output(h: Array, name: str) -> Array:
            h = nn.silu(GroupNorm(epsilon=style.epsilon, name=f"norm_{name}")(h))
            return conv(out_channels, kernel_init=style.last_init, name=f"conv_{name}")(h)

        h = block(h.shape[-1], name="mid_block0")(h, embedding)
        h = attention("mid_attention", h)
        h = block(h.shape[-1], name="mid_block1")(h, embedding)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(multiplier * self.channels, name=f"up{level}_block{i}")(h, embedding)
                last = i == self.num_res_blocks
                if h.shape[1] in self.attention_resolutions and (last or self.attends_every_block):
                    h = attention(f"up{level}_attention{i}", h)
            if self.skip_pyramids:
                part = output(h, f"out{level}")
                lowest = level == len(self.multipliers) - 1
                pyramid = part if lowest else double(pyramid) + part
            if level > 0:
                h = block(h.shape[-1], resample=double, name=f"up{level}_upsample")(h, embedding)

        return pyramid if self.skip_pyramids else output(h, "out")

    def _num_heads(self, channels: int) -> int:
        if self.head_width is None:
            return 1
        if channels % self.head_width:
            raise ValueError(
                f"head_width must divide the {channels} channels, got {self.head_width}"
            )
        return channels // self.head_width

    def _embed(self, t: Array, vector: Array | None, augmentation: Array | None) -> Array:
        """The embedding of the time and of all that the network is told, f32[batch, 4 channels]."""
        init = self.style.kernel_init
        dense = partial(nn.Dense, 4 * self.channels, kernel_init=init)
        features = embed_times(self.time_features, t, self.channels)
        if self.augmentation_labels:
            shape = (len(t), self.augmentation_labels)
            labels = jnp.zeros(shape) if augmentation is None else augmentation
            if labels.shape != shape:
                raise ValueError(f"augmentation must have shape {shape}, got {labels.shape}")
            tell = nn.Dense(features.shape[-1], use_bias=False, kernel_init=init, name="augment")
            features = features + tell(labels)
        elif augmentation is not None:
            raise ValueError("augmentation must be None: augmentation_labels is 0")
        if vector is not None and self.condition_first:
            # Of a class this is a row of the kernel, of the size of the sinusoids it is added to.
            tell = nn.Dense(features.shape[-1], kernel_init=init, name="condition")
            features = features + tell(vector * vector.shape[-1] ** 0.5)
        embedding = dense(name="time2")(nn.silu(dense(name="time1")(features)))
        if vector is not None and not self.condition_first:
            embed = partial(dense, use_bias=False, kernel_init=nn.initializers.normal(1.0))
            embedding = embedding + embed(name="condition")(vector)
        return nn.silu(embedding)  # every block begins with it


class SmoothDownsample(nn.Module):
    """Halves height and width: a filter, then a 3x3 convolution of stride 2 (StyleGAN2).

    Attributes:
        features: Channels of the output.
        taps: The filter.
        dtype: Type of the computation.
    """

    features: int
    taps: tuple[int, ...] = BINOMIAL
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height2 width2 features"]:
        """Returns half the height and width."""
        conv = partial(Conv, self.features, (3, 3), strides=(2, 2), padding="VALID")
        # As many zeros around as leave the convolution's windows centred on pairs of pixels.
        x = smooth(x.astype(self.dtype), self.taps, len(self.taps) // 2)
        return conv(kernel_init=SONG.kernel_init, dtype=self.dtype, name="conv")(x)


def ncsnpp(**fields: Any) -> ScoreUNet:
    """NCSN++ (continuous) of Song et al. (2021), 62.8M parameters for CIFAR-10; deep, 107.6M.

    The deep one has `num_res_blocks=8`. The time is ln sigma; the output is sigma times the score.

    Args:
        fields: Fields of `ScoreUNet` in other values than the paper's.
    """
    pyramid = {"time_features": fourier_features, "taps": BINOMIAL, "input_pyramid": True}
    return ScoreUNet(**{**pyramid, **fields})


def ncsnpp_256(**fields: Any) -> ScoreUNet:
    """NCSN++ of Song et al. (2021) for FFHQ at 256x256, 65.6M parameters.

    The time is ln sigma; the output is sigma times the score. Its process has `sigma_max=348` for
    data in [0, 1], and its Langevin steps a signal-to-noise ratio of 0.075.

    Args:
        fields: Fields of `ScoreUNet` in other values than the paper's.
    """
    paper = {
        "multipliers": (1, 1, 2, 2, 2, 2, 2),
        "num_res_blocks": 2,
        "dropout": 0.0,
        "input_pyramid": False,
        "skip_pyramids": True,
    }
    return ncsnpp(**{**paper, **fields})


def ddpmpp(**fields: Any) -> ScoreUNet:
    """DDPM++ (continuous) of Song et al. (2021), 61.8M parameters for CIFAR-10; deep, 106.6M.

    The deep one has `num_res_blocks=8`. The time is 999 t for t in [0, 1]; the output is the
    negative noise, sigma times the score.

    Args:
        fields: Fields of `ScoreUNet` in other values than the paper's.
    """
    return ScoreUNet(**fields)


def edm_ncsnpp(**fields: Any) -> ScoreUNet:
    """NCSN++ of Karras et al. (2022), 56.4M parameters for CIFAR-10.

    The time is ln(sigma) / 4, or ln(sigma / 2) with the older preconditioning. For FFHQ and AFHQv2
    at 64x64 it has `multipliers=(1, 2, 2, 2)` and a dropout of 0.05 and 0.25.

    Args:
        fields: Fields of `ScoreUNet` in other values than the paper's; `augmentation_labels=9` for
            the paper's augmentation.
    """
    return ncsnpp(**{"multipliers": (2, 2, 2), "dropout": 0.13, "style": EDM, **fields})


def edm_ddpmpp(**fields: Any) -> ScoreUNet:
    """DDPM++ of Karras et al. (2022), 55.7M parameters for CIFAR-10.

    The time is ln(sigma) / 4, or 999 t with the older preconditioning. For FFHQ and AFHQv2 at 64x64
    it has `multipliers=(1, 2, 2, 2)` and a dropout of 0.05 and 0.25.

    Args:
        fields: Fields of `ScoreUNet` in other values than the paper's; `augmentation_labels=9` for
            the paper's augmentation.
    """
    return ScoreUNet(**{"multipliers": (2, 2, 2), "dropout": 0.13, "style": EDM, **fields})


def adm(**fields: Any) -> ScoreUNet:
    """ADM of Dhariwal & Nichol (2021) for ImageNet at 64x64, 296M parameters with the classes.

    The time is the step of a chain of 1000, counted from 0, or with EDM's preconditioning ln(sigma)
    / 4. A learned variance needs `out_channels=6`.

    Args:
        fields: Fields of `ScoreUNet` in other values than the paper's.
    """
    paper = {
        "channels": 192,
        "multipliers": (1, 2, 3, 4),
        "num_res_blocks": 3,
        "attention_resolutions": (32, 16, 8),
        "time_features": partial(timestep_embedding, endpoint=False),
        "attends_every_block": True,
        "head_width": 64,
        "condition_first": False,
        "style": ADM,
    }
    return ScoreUNet(**{**paper, **fields})
