"""The networks and the codebook of the VQ-VAE (van den Oord et al. 2017), and a quantizer without
a codebook, `FiniteScalars`.

The first and the last layer of each network are float32 whatever `dtype` is.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jaxgen.models.conv.layers import Conv, ConvTranspose

Outputs = Float[Array, "batch rows columns dims"]
Codes = Float[Array, "num_codes dims"]
Indices = Int[Array, "batch rows columns"]

_FSQ_MARGIN = 1e-3  # of the outermost values' way, so that they are reached by finite numbers
_LEAST_SHARE = 1e-6  # of an even share: what a code that nobody chooses keeps


class Encoder(nn.Module):
    """From images to a map of vectors: 4x4 convolutions of stride 2, then residual blocks.

    With the defaults the published network for CIFAR-10: 32x32 pixels to 8x8 vectors.

    Attributes:
        code_dim: D, the width of the vectors.
        channels: The channels of all hidden layers.
        num_halvings: The number of convolutions of stride 2.
        num_res_blocks: The number of blocks of ReLU, 3x3, ReLU, 1x1 with a shortcut.
        codes_per_position: The number of vectors at each position, side by side in a row; the
            paper has ten on CIFAR-10.
        dtype: The type of the computation; parameters and results are float32.
    """

    code_dim: int = 64
    channels: int = 256
    num_halvings: int = 2
    num_res_blocks: int = 2
    codes_per_position: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Outputs:
        """`[B, H / 2^num_halvings, W / 2^num_halvings codes_per_position, code_dim]`.

        Raises:
            ValueError: If the height or width cannot be halved so often, or there is no code at a
                position.
        """
        num = _positive(self.codes_per_position)
        check_size(x.shape[1:3], self.num_halvings)
        h = x
        for level in range(self.num_halvings):
            down = Conv(
                self.channels,
                (4, 4),
                strides=(2, 2),
                padding=((1, 1), (1, 1)),
                dtype=self.dtype if level else jnp.float32,
                name=f"down{level + 1}",
            )
            h = nn.relu(down(h).astype(self.dtype))
        h = _res_blocks(h, self.num_res_blocks, self.dtype)
        h = Conv(num * self.code_dim, (1, 1), dtype=jnp.float32, name="out")(h)
        return h.reshape(*h.shape[:2], -1, self.code_dim)


class Decoder(nn.Module):
    """From a map of codes to a likelihood's parameters: residual blocks, transposed convolutions.

    Attributes:
        num_params: The numbers a pixel, `likelihood.num_params(channels)`.
        channels: The channels of all hidden layers.
        num_halvings: The number of transposed convolutions of stride 2, the encoder's.
        num_res_blocks: The number of residual blocks, see `Encoder`.
        codes_per_position: The number of vectors at each position, the encoder's.
        dtype: The type of the computation; parameters and results are float32.
    """

    num_params: int
    channels: int = 256
    num_halvings: int = 2
    num_res_blocks: int = 2
    codes_per_position: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Outputs) -> Float[Array, "batch height width params"]:
        """`[B, H, W, num_params]` of codes `[B, H / 2^num_halvings, ..., D]`, the encoder's.

        Raises:
            ValueError: If the codes of a row are no multiple of those of a position.
        """
        num = _positive(self.codes_per_position)
        if z.shape[2] % num:
            raise ValueError(
                f"codes_per_position must divide the {z.shape[2]} codes of a row, got {num}"
            )
        z = z.reshape(*z.shape[:2], z.shape[2] // num, num * z.shape[3])
        h = Conv(self.channels, (3, 3), dtype=jnp.float32, name="in")(z)
        h = _res_blocks(h.astype(self.dtype), self.num_res_blocks, self.dtype)
        for level in range(1, self.num_halvings + 1):
            last = level == self.num_halvings
            h = ConvTranspose(
                self.num_params if last else self.channels,
                (4, 4),
                strides=(2, 2),
                dtype=jnp.float32 if last else self.dtype,
                name=f"up{level}",
            )(h)
            if not last:
                h = nn.relu(h)
        return h


class Codebook(NamedTuple):
    """Codes as moving averages of the encoder's outputs (the paper's appendix A.1).

    Shares, not counts: both are linear in the batch's positions, so that averages over devices are
    those of the whole batch.

    Attributes:
        shares: The averaged share of all positions that chose each code, f32[K].
        sums: The averaged share times output, f32[K, D]: a code is `sums / shares`.
    """

    shares: Float[Array, " num_codes"]
    sums: Codes

    @property
    def codes(self) -> Codes:
        """f32[K, D], the vectors."""
        return self.sums / jnp.maximum(self.shares, 1e-20)[:, None]


def check_size(image_size: tuple[int, ...], num_halvings: int) -> None:
    """Raise ValueError unless images can be halved so often, and there is anything to halve."""
    if num_halvings < 1:
        raise ValueError(f"num_halvings must be at least 1, got {num_halvings}")
    if any(side % 2**num_halvings for side in image_size):
        raise ValueError(
            f"height and width must be multiples of {2**num_halvings}, to be halved "
            f"{num_halvings} times, got {'x'.join(map(str, image_size))}: resize the images"
        )


def draw_codebook(key: Key[Array, ""], encoded: Outputs, num_codes: int) -> Codebook:
    """A codebook of `num_codes` of a batch's outputs, different positions where there are enough.

    Args:
        key: PRNG key.
        encoded: The encoder's outputs.
        num_codes: K, at least 2.

    Raises:
        ValueError: If `num_codes` is below 2.
    """
    if num_codes < 2:
        raise ValueError(f"num_codes must be at least 2, got {num_codes}")
    share = 1.0 / num_codes
    return Codebook(
        jnp.full((num_codes,), share, jnp.float32), share * draw_outputs(key, encoded, num_codes)
    )


def draw_outputs(key: Key[Array, ""], encoded: Outputs, num: int) -> Codes:
    """f32[num, D], outputs at random positions of a batch.

    Args:
        key: PRNG key.
        encoded: The encoder's outputs.
        num: The number of outputs to draw.
    """
    flat = encoded.reshape(-1, encoded.shape[-1])
    return flat[jax.random.choice(key, flat.shape[0], (num,), replace=flat.shape[0] < num)]


def nearest(codes: Codes, encoded: Outputs) -> Indices:
    """`argmin_k |z_e - e_k|^2`, the index of the nearest code at each position (eq. 1).

    Args:
        codes: The vectors e_k.
        encoded: The encoder's outputs z_e.

    Returns:
        i32[B, h, w].
    """
    # |z_e|^2 is the same for all codes. The product must be exact enough to tell near codes apart.
    product = jnp.einsum("bhwd,kd->bhwk", encoded, codes, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.square(codes).sum(axis=1).reshape(1, 1, 1, -1) - 2 * product
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def update(
    codebook: Codebook,
    encoded: Outputs,
    indices: Indices,
    decay: float,
    weight: Float[Array, " batch"] | None = None,
) -> Codebook:
    """The moving averages after a batch: `a <- decay a + (1 - decay) (the batch's)`.

    A code that is never chosen stays where it is, as long as it may: both of its averages shrink
    alike, down to a least share from which they do not vanish.

    Args:
        codebook: The averages before.
        encoded: The encoder's outputs; no gradient flows.
        indices: The indices of the codes that they chose.
        decay: The decay of the averages, 0.99 in the paper.
        weight: Weight of each example; None for 1.
    """
    encoded, codebook = jax.lax.stop_gradient(encoded), _held(codebook)
    chosen = jax.nn.one_hot(indices, codebook.shares.shape[0])
    if weight is not None:
        chosen = chosen * weight.reshape(-1, 1, 1, 1)
    chosen = chosen / indices.size
    exact: Any = jax.lax.Precision.HIGHEST
    sums = jnp.einsum("bhwk,bhwd->kd", chosen, encoded, precision=exact)
    return Codebook(
        decay * codebook.shares + (1 - decay) * chosen.sum(axis=(0, 1, 2)),
        decay * codebook.sums + (1 - decay) * sums,
    )


def _held(codebook: Codebook) -> Codebook:
    """The same codes, none of so small a share that it would underflow, and the code with it."""
    least = _LEAST_SHARE / codebook.shares.shape[0]
    idle = codebook.shares < least
    return Codebook(
        jnp.where(idle, least, codebook.shares),
        jnp.where(idle[:, None], codebook.codes * least, codebook.sums),
    )


def revive(codebook: Codebook, replacements: Codes, least_share: float) -> tuple[Codebook, Array]:
    """Gives codes that are hardly chosen any more the place of an output that exists.

    Such a code is nobody's nearest and would stay where it is for ever. It starts anew with the
    share of a codebook that is used evenly.

    Args:
        codebook: The averages before.
        replacements: Outputs of the current batch, one for each code.
        least_share: The part of the even share, 1 / K, below which a code is dead.

    Returns:
        The codebook and bool[K], which codes were dead.
    """
    even = 1.0 / codebook.shares.shape[0]
    dead = codebook.shares < least_share * even
    fresh = jax.lax.stop_gradient(replacements) * even
    return Codebook(
        jnp.where(dead, even, codebook.shares), jnp.where(dead[:, None], fresh, codebook.sums)
    ), dead


class FiniteScalars(NamedTuple):
    """Finite scalar quantization (Mentzer et al. 2024, FSQ): every number rounded by itself.

    The codes are all the products of the numbers' levels, so there is nothing to learn, to commit
    to, or to revive. The paper's levels (table 1): (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for
    2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14.

    Attributes:
        levels: L, the number of values of each of a code's numbers, at least 2 each.

    Examples:
        >>> fsq = FiniteScalars((8, 5, 5, 5))
        >>> fsq.num_codes
        1000
        >>> int(fsq.indices(fsq.vectors(jnp.array([623])))[0])
        623
    """

    levels: tuple[int, ...]

    @property
    def num_codes(self) -> int:
        """The number of codes, the product of the levels."""
        return math.prod(self.levels)

    def quantize(self, encoded: Float[Array, "*shape dims"]) -> Float[Array, "*shape dims"]:
        r"""`round(f(z)) / floor(L / 2)`, of gradient `f'(z) / floor(L / 2)` (the paper's
        section 3 and appendix A).

        $$f(z) = h \tanh(z + \tan(o / h)) - o, \quad h = (1 - 10^{-3}) (L - 1) / 2$$

        where o is 1/2 where L is even, else 0: the L values are spaced evenly in [-1, 1], those
        of an even number without the 1.

        Args:
            encoded: The encoder's outputs z.

        Raises:
            ValueError: If the outputs have another width than there are levels, or a number of
                levels is below 2.
        """
        levels = self._checked(encoded)
        halves = (levels - 1) * (1 - _FSQ_MARGIN) / 2
        offsets = np.where(levels % 2 == 0, 0.5, 0.0)
        rows = (halves, offsets, np.tan(offsets / halves))
        half, offset, shift = (self._row(row, encoded) for row in rows)
        bounded = half * jnp.tanh(encoded + shift) - offset
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        return rounded / self._row(levels // 2, encoded)

    def indices(self, quantized: Float[Array, "*shape dims"]) -> Int[Array, "*shape"]:
        """The code of each vector, `sum_i (floor(L_i / 2) (q_i + 1)) prod_(j < i) L_j`, i32.

        Args:
            quantized: Vectors as `quantize` gives them.

        Raises:
            ValueError: As `quantize`.
        """
        levels = self._checked(quantized)
        half = self._row(levels // 2, quantized)
        digits = jnp.round(half * quantized + half).astype(jnp.int32)
        return (digits * self._row(self._places, digits)).sum(axis=-1)

    def vectors(self, indices: Int[Array, "*shape"]) -> Float[Array, "*shape dims"]:
        """The vector of each code; NaN where there is no such code.

        Args:
            indices: Codes, as `indices` gives them.
        """
        levels, codes = np.asarray(self.levels), indices[..., None]
        half = self._row(levels // 2, codes)
        digits = codes // self._row(self._places, codes) % self._row(levels, codes)
        known = (codes >= 0) & (codes < self.num_codes)
        return jnp.where(known, (digits - half) / half, jnp.nan)

    @property
    def _places(self) -> np.ndarray:
        """What a step of each number adds to the index."""
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)

    def _checked(self, vectors: Array) -> np.ndarray:
        if not self.levels or min(self.levels) < 2 or self.num_codes >= 2**31:
            raise ValueError(
                f"levels must be at least 2 each, and their product below 2^31, got {self.levels}"
            )
        if vectors.shape[-1] != len(self.levels):
            raise ValueError(
                f"levels: {len(self.levels)} are for codes of as many numbers, got "
                f"{vectors.shape[-1]}"
            )
        return np.asarray(self.levels)

    def _row(self, values: np.ndarray, like: Array) -> Array:
        """One value for each of a code's numbers, with as many axes as `like`."""
        return jnp.asarray(values).reshape((1,) * (like.ndim - 1) + (-1,))


def _positive(codes_per_position: int) -> int:
    if codes_per_position < 1:
        raise ValueError(f"codes_per_position must be at least 1, got {codes_per_position}")
    return codes_per_position


def _res_blocks(h: Array, num_blocks: int, dtype: DTypeLike) -> Array:
    """`num_blocks` times ReLU, 3x3, ReLU, 1x1 beside a shortcut, and a last ReLU."""
    channels = h.shape[-1]
    for i in range(num_blocks):
        y = Conv(channels, (3, 3), dtype=dtype, name=f"block{i + 1}_3x3")(nn.relu(h))
        h = h + Conv(channels, (1, 1), dtype=dtype, name=f"block{i + 1}_1x1")(nn.relu(y))
    return nn.relu(h)
