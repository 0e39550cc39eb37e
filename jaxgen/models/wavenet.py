"""WaveNet (van den Oord et al. 2016): dilated causal convolutions over raw audio, and its cache."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.blocks.causal_conv import CausalConv1D
from jaxgen.models.conv.layers import Conv

Values = Shaped[Array, "batch time"]
Frames = Float[Array, "batch frames features"]
Outputs = Float[Array, "batch time outputs"]
Cache = tuple[Float[Array, "_ batch channels"], ...]


class Conditions(NamedTuple):
    """The conditions of a whole sequence, as far as they can be computed beforehand.

    Attributes:
        shifts: Vectors [B, 2 channels] that each layer adds before its gates; or None.
        local: Features at the rate of the audio, [B, T, F]; or None.
    """

    shifts: tuple[Float[Array, "batch gates"], ...] | None = None
    local: Float[Array, "batch time features"] | None = None


UNCONDITIONED = Conditions()


class GatedLayer(nn.Module):
    r"""A residual layer with gates (van den Oord et al. 2016, eq. 2, and eq. 3 with conditions).

    $$z = \tanh(W_f * h + V_f e + U_f l) \odot \sigma(W_g * h + V_g e + U_g l)$$

    and, by 1x1 convolutions of z, the next layer's input and the layer's part of the output.

    Attributes:
        channels: Channels of the input h.
        skip_channels: Channels of the part of the output.
        kernel_size: Taps of the causal convolution.
        dilation: Dilation of the causal convolution.
        is_last: Whether no layer follows, so that only the part of the output is computed.
        dtype: Type of the computation; None for the input's.
    """

    channels: int
    skip_channels: int
    kernel_size: int
    dilation: int
    is_last: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        gates = 2 * self.channels
        self.conv = CausalConv1D(gates, self.kernel_size, self.dilation, dtype=self.dtype)
        self.condition = nn.Dense(gates, use_bias=False, dtype=self.dtype, name="told")
        self.local = Conv(gates, (1,), use_bias=False, dtype=self.dtype)
        residual = 0 if self.is_last else self.channels
        self.out = Conv(residual + self.skip_channels, (1,), dtype=self.dtype)

    def __call__(self, h: Array, shift: Array | None, local: Array | None) -> tuple[Array, Array]:
        """`[B, T, channels]` -> the next h, and the part of the output `[B, T, skip_channels]`."""
        return self._gate(h, self.conv(h), None if shift is None else shift[:, None], local)

    def step(
        self, cache: Array, h: Array, t: Array | int, shift: Array | None, local: Array | None
    ) -> tuple[tuple[Array, Array], Array]:
        """The same of position t alone, `[B, channels]`, and the convolution's cache."""
        y, cache = self.conv.step(cache, h, t)
        return self._gate(h, y, shift, local), cache

    def _gate(self, h: Array, y: Array, shift: Array | None, local: Array | None):
        if shift is not None:
            y = y + shift
        if local is not None:
            y = y + self.local(local)
        # By split, whose gradient is one concatenation: that of slices takes many times longer.
        filtered, gate = jnp.split(y, 2, axis=-1)
        out = self.out(jnp.tanh(filtered) * nn.sigmoid(gate))
        if self.is_last:
            return h, out
        residual, part = jnp.split(out, [self.channels], axis=-1)
        return h + residual, part


class WaveNet(nn.Module):
    """Each sample's distribution from those before it (van den Oord et al. 2016, figures 3 and 4).

    `stacks` times the dilations 1, 2, 4, ..., 2^(layers - 1); the layers' parts of the output are
    summed and go through ReLU, a 1x1 convolution, ReLU and another one. The network shifts its
    input by one inside: outputs at t depend on the samples before t, and on no other. Inputs are
    classes, which are embedded, or numbers. Before the first sample there are zeros in the place
    of its embedding.

    It takes a condition's vector e for the whole of a sequence (global conditioning: a speaker, a
    word) and features at a lower rate (local conditioning), of which one frame stands for `hop`
    samples. Outputs at t depend on the frame of t, number `t // hop`, and on those before, not on
    later ones: what should be known ahead belongs into the frame.

    `step` does the work of one position (Le Paine et al. 2016): each layer keeps a ring buffer of
    the inputs that its dilation reaches back to. It gives what the whole network gives, up to
    rounding.

    Attributes:
        num_outputs: Numbers a position: logits of a softmax, or three for each logistic.
        num_values: Number of classes of the input; None for an input of numbers.
        stacks: Number of times that the dilations are gone through.
        layers: Number of layers of a stack.
        channels: Channels of the residual layers.
        skip_channels: Channels of the sum and of the last two convolutions.
        kernel_size: Taps of each causal convolution.
        hop: Samples a frame of local features.
        upsample: Way from frames to samples: "repeat" each frame hop times, or "learned", a
            transposed convolution of stride and kernel size hop, by which each frame has features
            for its own samples.
        dtype: Type of the computation; None for float32, as the first and the last layer are.

    Examples:
        >>> network = WaveNet(num_outputs=256, stacks=2, layers=4, channels=16)
        >>> audio = jnp.zeros((1, 100), jnp.int32)
        >>> variables = network.init(jax.random.key(0), audio)
        >>> network.apply(variables, audio).shape
        (1, 100, 256)
        >>> network.receptive_field
        31
    """

    num_outputs: int
    num_values: int | None = 256
    stacks: int = 3
    layers: int = 10
    channels: int = 64
    skip_channels: int = 256
    kernel_size: int = 2
    hop: int = 1
    upsample: str = "repeat"
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        least = {"num_outputs": 1, "stacks": 1, "layers": 1, "channels": 1, "skip_channels": 1}
        for name, at_least in {**least, "kernel_size": 2, "hop": 1}.items():
            if getattr(self, name) < at_least:
                raise ValueError(f"{name} must be at least {at_least}, got {getattr(self, name)}")
        if self.num_values is not None and self.num_values < 2:
            raise ValueError(f"num_values must be at least 2 or None, got {self.num_values}")
        if self.upsample not in ("repeat", "learned"):
            raise ValueError(f"upsample must be 'repeat' or 'learned', got {self.upsample!r}")
        super().__post_init__()

    @property
    def dilations(self) -> tuple[int, ...]:
        """The dilations of the layers, in order."""
        return tuple(2**i for i in range(self.layers)) * self.stacks

    @property
    def receptive_field(self) -> int:
        """How many samples before t the outputs at t depend on."""
        return 1 + (self.kernel_size - 1) * sum(self.dilations)

    def setup(self) -> None:
        if self.num_values is None:
            self.embed: nn.Module = nn.Dense(self.channels)
        else:
            unit = nn.initializers.normal(1.0)
            self.embed = nn.Embed(self.num_values, self.channels, embedding_init=unit)
        last = len(self.dilations) - 1
        self.residual = [
            GatedLayer(
                self.channels, self.skip_channels, self.kernel_size, dilation, i == last, self.dtype
            )
            for i, dilation in enumerate(self.dilations)
        ]
        self.head = Conv(self.skip_channels, (1,), dtype=self.dtype)
        self.out = Conv(self.num_outputs, (1,), dtype=jnp.float32)

    def __call__(
        self, values: Values, condition: Condition | None = None, local: Frames | None = None
    ) -> Outputs:
        """The parameters of each sample's distribution.

        Args:
            values: Classes i32[B, T], or numbers f32[B, T] where `num_values` is None.
            condition: Condition of one vector a sequence, or None; always or never, as in the
                first call.
            local: Features [B, ceil(T / hop), F], or None; always or never, likewise.

        Returns:
            f32[B, T, num_outputs]; those of position t by `values[:, :t]` alone.

        Raises:
            ValueError: Local features of another number of frames, or a condition with tokens.
            TypeError: Numbers where classes are taken, or the other way round.
        """
        conditions = self.conditions(values.shape[1], condition, local)
        h = self._embed(values)
        h = jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        total = jnp.zeros((), h.dtype)
        for i, layer in enumerate(self.residual):
            shift = None if conditions.shifts is None else conditions.shifts[i]
            h, part = layer(h, shift, conditions.local)
            total = part if i == 0 else total + part
        return self._finish(total)

    def conditions(
        self, num_samples: int, condition: Condition | None, local: Frames | None
    ) -> Conditions:
        """The conditions as `step` takes them, computed once for a sequence.

        Args:
            num_samples: Length T of the whole sequence.
            condition: Condition of one vector a sequence, or None.
            local: Features [B, ceil(T / hop), F], or None.

        Raises:
            ValueError: Local features of another number of frames, or a condition with tokens.
        """
        e = vector_of(condition)
        shifts = None if e is None else tuple(layer.condition(e) for layer in self.residual)
        if local is None:
            return Conditions(shifts)
        frames = -(-num_samples // self.hop)
        if local.ndim != 3 or local.shape[1] != frames:
            raise ValueError(
                f"local must be [B, {frames}, F], a frame for each {self.hop} of {num_samples} "
                f"samples, got {list(local.shape)}"
            )
        if self.upsample == "repeat":
            fine = jnp.repeat(local, self.hop, axis=1)
        else:
            fine = self._upsample(local)
        return Conditions(shifts, fine[:, :num_samples])

    def init_cache(self, batch: int) -> Cache:
        """The cache of `step` before the first position: a ring buffer of zeros for each layer."""
        dtype = jnp.dtype(self.dtype or jnp.float32)
        sizes = [(self.kernel_size - 1) * dilation + 1 for dilation in self.dilations]
        return tuple(jnp.zeros((size, batch, self.channels), dtype) for size in sizes)

    def step(
        self,
        cache: Cache,
        previous: Shaped[Array, " batch"],
        t: Int[Array, ""] | int,
        conditions: Conditions = UNCONDITIONED,
    ) -> tuple[Float[Array, "batch outputs"], Cache]:
        """The parameters of position t's distribution: a turn of `jaxgen.sampling.autoregressive`.

        Args:
            cache: Cache of `init_cache`, or from the step of position t - 1.
            previous: Sample at t - 1; at t = 0 anything.
            t: Position, from 0.
            conditions: Conditions of the sequence, from the method `conditions`.

        Returns:
            f32[B, num_outputs], and the cache.
        """
        h = self._embed(previous)
        h = jnp.where(t > 0, h, jnp.zeros_like(h))
        local = conditions.local
        if local is not None:
            local = lax.dynamic_index_in_dim(local, t, 1, False)
        total, caches = jnp.zeros((), h.dtype), []
        for i, (layer, past) in enumerate(zip(self.residual, cache, strict=True)):
            shift = None if conditions.shifts is None else conditions.shifts[i]
            (h, part), past = layer.step(past, h, t, shift, local)
            total = part if i == 0 else total + part
            caches.append(past)
        return self._finish(total), tuple(caches)

    def _embed(self, values: Array) -> Array:
        takes_classes = self.num_values is not None
        if jnp.issubdtype(values.dtype, jnp.integer) != takes_classes:
            wanted = "classes (integers)" if takes_classes else "numbers (floating point)"
            raise TypeError(f"values must be {wanted}, got {values.dtype}")
        h: Array = self.embed(values if takes_classes else values[..., None])
        return h.astype(self.dtype or jnp.float32)

    def _finish(self, total: Array) -> Array:
        return self.out(nn.relu(self.head(nn.relu(total))))

    @nn.compact
    def _upsample(self, local: Array) -> Array:
        """Each frame to its own hop frames: a transposed convolution whose taps do not overlap."""
        batch, frames, width = local.shape
        fine = nn.Dense(self.hop * width, dtype=self.dtype, name="upsampling")(local)
        return fine.reshape(batch, frames * self.hop, width)
