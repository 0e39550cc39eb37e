"""The transformer of Peebles & Xie (2023), "Scalable Diffusion Models with Transformers" (DiT).

An image, or the latents of one, becomes a sequence of its patches; each block is modulated by the
time and the condition, and begins as the identity (adaLN-Zero).

              depth   width   heads   parameters, patches of 2, 4 and 8 (ImageNet)
    dit_s     12      384     6       32.9M   32.9M   33.1M
    dit_b     12      768     12      130.3M  130.4M  130.9M
    dit_l     24      1024    16      457.8M  458.0M  458.6M
    dit_xl    28      1152    16      674.8M  675.0M  675.7M

The counts are of latents of 4 channels and an output of 8, with 1,001 rows for the classes (theirs
has one for no class, which is a vector of zeros here), and without the positions, which are fixed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num

from jaxgen.conditioning.base import Condition
from jaxgen.models.blocks.layers import timestep_embedding
from jaxgen.models.blocks.transformer import Attention
from jaxgen.models.blocks.unet_layers import check_inputs, embed_times

_TIME_FEATURES = 256
_zeros = nn.initializers.zeros
_normal = nn.initializers.normal(0.02)
_xavier = nn.initializers.xavier_uniform()
# Theirs is one map to queries, keys and values, of which Xavier's bound is.
_joint_xavier = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


def sincos_positions(height: int, width: int, features: int) -> Float[np.ndarray, "positions f"]:
    r"""Fixed embeddings of the positions of a grid, row by row.

    $$[\sin(\omega_i x), \cos(\omega_i x), \sin(\omega_i y), \cos(\omega_i y)], \quad \omega_i =
    10000^{-i / n}, \quad i < n = \text{features} / 4$$ for column x and row y, as in the code of
    He et al. (2022), "Masked Autoencoders".

    Args:
        height: Number of rows.
        width: Number of columns.
        features: Width of an embedding, a multiple of 4.

    Returns:
        f32[height * width, features].

    Raises:
        ValueError: If `features` is no positive multiple of 4.
    """
    if features < 4 or features % 4:
        raise ValueError(f"features must be a positive multiple of 4, got {features}")
    frequencies = 10_000.0 ** -(np.arange(features // 4) / (features // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [axis[:, None] * frequencies for axis in (columns, rows)]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def modulate(
    x: Float[Array, "batch length width"],
    shift: Float[Array, "batch 1 width"],
    scale: Float[Array, "batch 1 width"],
) -> Float[Array, "batch length width"]:
    """`x (1 + scale) + shift`, in the type of `x`."""
    return x * (1 + scale).astype(x.dtype) + shift.astype(x.dtype)


class DiTBlock(nn.Module):
    r"""Self-attention and an MLP, each modulated by an embedding; the identity at first.

    $$h = x + g_1\,\mathrm{Attention}(m_1(\mathrm{LN}(x))),\quad y = h + g_2\,\mathrm{MLP}(m_2(
    \mathrm{LN}(h)))$$ where the gates g and what the modulations m shift and scale by are linear
    maps of the embedding that begin at zero (section 3.2, adaLN-Zero). Where there is a context,
    h attends to it too, by a map that begins at zero.

    Attributes:
        num_heads: Number of heads, which must divide the width.
        hidden: Width of the MLP's hidden layer in units of the width.
        dtype: Type of the computation; modulations, softmax and normalization are float32.
        hidden_epsilon: Number that the normalization before the hidden layer adds to the variance.
    """

    num_heads: int
    hidden: int = 4
    dtype: DTypeLike = jnp.float32
    hidden_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        embedding: Float[Array, "batch width"],
        mask: Bool[Array, "batch length"] | None = None,
        context: Float[Array, "batch context features"] | None = None,
        context_mask: Bool[Array, "batch context"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The sequence after the block.

        Args:
            x: Sequence.
            embedding: What the block is told, after its nonlinearity.
            mask: True where the sequence counts; None where all of it does.
            context: Sequence that is attended to besides, or None.
            context_mask: True where the context has a token; None where all are.
        """
        width = x.shape[-1]
        attention = partial(Attention, self.num_heads, self.dtype, kernel_init=_joint_xavier)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_xavier)
        maps = nn.Dense(6 * width, kernel_init=_zeros, name="modulation")(embedding)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(maps, 6, axis=-1)

        h = modulate(_norm(x, self.dtype), shift1, scale1)
        h = attention(last_init=_xavier, name="attention")(h, mask=mask)
        x = x + gate1.astype(self.dtype) * h
        if context is not None:
            read = attention(last_init=_zeros, name="cross_attention")
            x = x + read(_norm(x, self.dtype), context, context_mask)
        h = modulate(_norm(x, self.dtype, self.hidden_epsilon), shift2, scale2)
        h = nn.gelu(dense(self.hidden * width, name="hidden")(h), approximate=True)
        return x + gate2.astype(self.dtype) * dense(width, name="out")(h)


class DiT(nn.Module):
    """Predicts noise (or x0, v, a velocity) from a noisy image, or noisy latents, and its time.

    The defaults are DiT-S/2. The output is 0 at initialization. A condition's vector, of a class or
    of attributes, is added to the embedding of the time. Its tokens, where it has some, are
    attended to by every position in every block, or join the sequence (section 3.2, in-context
    conditioning).

    Attributes:
        width: Width of the sequence; a multiple of 4, which the heads must divide.
        depth: Number of blocks.
        num_heads: Number of heads of the attention.
        patch_size: Height and width of a patch, which must divide those of the images.
        hidden: Width of the blocks' hidden layers in units of the width.
        out_channels: Channels of the output: None for as many as the image has; twice that for a
            learned variance.
        in_context: Whether a condition's tokens join the sequence of patches.
        time_features: Function `(t, 256) -> f32[batch, features]`, the first embedding of the time.
        dtype: Type of the computation. Parameters, embeddings, modulations, the first and the last
            layer, normalization statistics, softmax and output are float32.
        remat: Whether to compute each block again in the backward pass instead of keeping its
            activations: less memory for about a third more time.
        hidden_epsilon: Number that the normalization before each block's hidden layer adds to the
            variance; the others add 1e-6, as the authors' all do.

    Examples:
        >>> model = DiT(width=16, depth=1, num_heads=2)
        >>> x, t = jnp.zeros((2, 8, 8, 4)), jnp.array([3, 700])
        >>> params = model.init(jax.random.key(0), x, t, train=False)
        >>> model.apply(params, x, t, train=True).shape
        (2, 8, 8, 4)
    """

    width: int = 384
    depth: int = 12
    num_heads: int = 6
    patch_size: int = 2
    hidden: int = 4
    out_channels: int | None = None
    in_context: bool = False
    time_features: Callable[[Array, int], Array] = partial(timestep_embedding, endpoint=False)
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    hidden_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Checks the fields as soon as they are given."""
        super().__post_init__()
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a positive multiple of 4, got {self.width}")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"num_heads must divide the width {self.width}, got {self.num_heads}")
        for name in ("depth", "patch_size", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.out_channels is not None and self.out_channels < 1:
            raise ValueError(f"out_channels must be positive, got {self.out_channels}")

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
            condition: Condition of each image, or None for a network without. A vector of zeros
                stands for no condition.
            train: Not used: there is no dropout.

        Returns:
            f32[batch, height, width, out_channels].

        Raises:
            ValueError: if the patches do not divide the image, or a shape is wrong.
        """
        vector, tokens, mask = Condition() if condition is None else condition
        check_inputs(x, t, vector if tokens is None else tokens)
        channels = x.shape[-1] if self.out_channels is None else self.out_channels
        sequence, embedding = self._sequence(x), self._embedding(t, vector)
        num_patches, context = sequence.shape[1], (tokens, mask)
        if tokens is not None and self.in_context:
            joined = nn.Dense(self.width, kernel_init=_xavier, name="tokens")(tokens)
            sequence = jnp.concatenate([sequence, joined], axis=1)
            mask, context = _joint_mask(num_patches, mask), (None, None)
        else:
            mask = None

        loop = nn.scan(
            nn.remat(_step, prevent_cse=False) if self.remat else _step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        fields = (self.num_heads, self.hidden, self.dtype, self.hidden_epsilon)
        blocks = DiTBlock(*fields, name="blocks")
        sequence, _ = loop(blocks, sequence.astype(self.dtype), embedding, mask, *context)

        maps = nn.Dense(2 * self.width, kernel_init=_zeros, name="modulation")(embedding)
        shift, scale = jnp.split(maps[:, None], 2, axis=-1)
        y = modulate(_norm(sequence[:, :num_patches], jnp.float32), shift, scale)
        y = nn.Dense(self.patch_size**2 * channels, kernel_init=_zeros, name="last")(y)
        return unpatchify(y, (x.shape[1], x.shape[2]), self.patch_size)

    def _sequence(self, x: Array) -> Array:
        """The embedded patches, each with its position."""
        patches = patchify(x, self.patch_size)
        height, width = (side // self.patch_size for side in x.shape[1:3])
        embedded = nn.Dense(self.width, kernel_init=_xavier, name="patches")(patches)
        return embedded + sincos_positions(height, width, self.width)[None]

    def _embedding(self, t: Array, vector: Array | None) -> Array:
        """What the blocks are told: of the time and of the condition, after a nonlinearity."""
        dense = partial(nn.Dense, self.width, kernel_init=_normal)
        embedding = dense(name="time1")(embed_times(self.time_features, t, _TIME_FEATURES))
        embedding = dense(name="time2")(nn.silu(embedding))
        if vector is not None:  # of a class: its row of the kernel, a learned embedding
            embedding = embedding + dense(use_bias=False, name="condition")(vector)
        return nn.silu(embedding)


def patchify(
    x: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "batch patches features"]:
    """The patches of images, row by row, each one's values side by side.

    Args:
        x: Images.
        patch_size: Height and width of a patch.

    Raises:
        ValueError: If the patches do not divide the images.
    """
    batch, height, width, channels = x.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"x: an image of {height}x{width} has no whole number of patches of {patch_size}x"
            f"{patch_size}"
        )
    rows, columns = height // patch_size, width // patch_size
    x = x.reshape(batch, rows, patch_size, columns, patch_size, channels).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(
    patches: Float[Array, "batch patches features"], size: tuple[int, int], patch_size: int
) -> Float[Array, "batch height width channels"]:
    """The images of their patches: the inverse of `patchify`.

    Args:
        patches: Patches.
        size: Height and width of the images.
        patch_size: Height and width of a patch.
    """
    height, width = size
    rows, columns = height // patch_size, width // patch_size
    x = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1).swapaxes(2, 3)
    return x.reshape(len(patches), height, width, -1)


def _step(block: DiTBlock, x: Array, *rest: Any) -> tuple[Array, None]:
    return block(x, *rest), None


def _norm(x: Array, dtype: DTypeLike, epsilon: float = 1e-6) -> Array:
    """Layer normalization without parameters, its statistics in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    return (x / jnp.sqrt(variance + epsilon)).astype(dtype)


def _joint_mask(num_patches: int, mask: Array | None) -> Array | None:
    """Which of the patches and tokens count: all patches."""
    return None if mask is None else jnp.pad(mask, ((0, 0), (num_patches, 0)), constant_values=True)


def dit_s(**fields: Any) -> DiT:
    """DiT-S, 32.9M parameters with patches of 2.

    Args:
        fields: Fields of `DiT` in other values than the paper's.
    """
    return DiT(**fields)


def dit_b(**fields: Any) -> DiT:
    """DiT-B, 130M parameters.

    Args:
        fields: Fields of `DiT` in other values than the paper's.
    """
    return DiT(**{"width": 768, "num_heads": 12, **fields})


def dit_l(**fields: Any) -> DiT:
    """DiT-L, 458M parameters.

    Args:
        fields: Fields of `DiT` in other values than the paper's.
    """
    return DiT(**{"width": 1024, "depth": 24, "num_heads": 16, **fields})


def dit_xl(**fields: Any) -> DiT:
    """DiT-XL, 675M parameters.

    Args:
        fields: Fields of `DiT` in other values than the paper's.
    """
    return DiT(**{"width": 1152, "depth": 28, "num_heads": 16, **fields})
