"""Coupling layers: some variables pass unchanged and choose how the others move.

A coupling is three things, each of them free: a *mask*, which says which variables pass; a
*conditioner*, any network; and a *transform*, an increasing function of one number, of which the
conditioner chooses the parameters. The transforms (`Additive`, `Affine`, `ShiftScale`, and `Spline`
of `jaxgen.models.bijectors.splines`) serve autoregressive flows (`jaxgen.models.bijectors.made`) as
well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.bijectors.algebra import Bijector, LogDet, sum_event
from jaxgen.models.bijectors.edges import Edges, LearnedScale

# features -> network(x, condition) -> [..., features]
Conditioner = Callable[..., nn.Module]
Mask = str | np.ndarray


@runtime_checkable
class Transform(Protocol):
    """An increasing function of one number, elementwise. With parameters 0 it is the identity, but
    for `ShiftScale` with a sigmoid.

    Attributes:
        num_params: Number of parameters that choose the function.
    """

    @property
    def num_params(self) -> int: ...

    def __call__(
        self,
        x: Float[Array, "*dims channels"],
        raw: Float[Array, "*dims params channels"],
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*dims channels"]]:
        """`(y, log dy/dx)`, or `(x, log dx/dy)` in reverse."""
        ...


@dataclass(frozen=True)
class Additive:
    """`y = x + t` (Dinh et al. 2015, section 3.2)."""

    num_params: int = 1

    def __call__(
        self,
        x: Float[Array, "*dims channels"],
        raw: Float[Array, "*dims params channels"],
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*dims channels"]]:
        """Shifts there or back; the log-slope is 0."""
        shift = raw[..., 0, :]
        return (x - shift if reverse else x + shift), jnp.zeros_like(x)


@dataclass(frozen=True)
class Affine:
    r"""`y = x e^s + t` (Dinh et al. 2017, eq. 7), with a bounded log-scale.

    $$s = b \tanh(r / b)$$ of the conditioner's output r: near 0 it is r, and it never leaves
    (-b, b), so that no input, however strange, makes a scale overflow or vanish.

    Attributes:
        bound: Greatest size b of the log-scale, in nats.
        num_params: Number of parameters that choose the function.
    """

    bound: float = 3.0
    num_params: int = 2

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound must be positive, got {self.bound}")

    def __call__(
        self,
        x: Float[Array, "*dims channels"],
        raw: Float[Array, "*dims params channels"],
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*dims channels"]]:
        """Scales and shifts, or undoes it."""
        shift = raw[..., 0, :]
        log_scale = self.bound * jnp.tanh(raw[..., 1, :] / self.bound)
        if reverse:
            return (x - shift) * jnp.exp(-log_scale), -log_scale
        return x * jnp.exp(log_scale) + shift, log_scale


@dataclass(frozen=True)
class ShiftScale:
    r"""`y = (x + t) e^s`, shifted first, the log-scale unbounded.

    s is the conditioner's output r, for networks that bound it themselves (`SkipResNet`) and for
    priors (mean -t, deviation $e^{-s}$). With a sigmoid it is the coupling of Glow's code,
    $$e^s = \sigma(r + 2)$$, with slopes in (0, 1), 0.8808 at the start. An extreme r overflows.

    Attributes:
        sigmoid: Whether the scale is a sigmoid.
        num_params: Number of parameters that choose the function.
    """

    sigmoid: bool = False
    num_params: int = 2

    def __call__(
        self,
        x: Float[Array, "*dims channels"],
        raw: Float[Array, "*dims params channels"],
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*dims channels"]]:
        """Shifts and scales, or undoes it."""
        shift, log_scale = raw[..., 0, :], raw[..., 1, :]
        if self.sigmoid:
            log_scale = jax.nn.log_sigmoid(log_scale + 2)
        if reverse:
            return x * jnp.exp(-log_scale) - shift, -log_scale
        return (x + shift) * jnp.exp(log_scale), log_scale


def checkerboard(height: int, width: int) -> Bool[np.ndarray, "height width 1"]:
    """The mask that is True where row plus column is even (Dinh et al. 2017, figure 3)."""
    return (np.add.outer(np.arange(height), np.arange(width)) % 2 == 0)[..., None]


class Coupling(Bijector):
    r"""A coupling layer (Dinh et al. 2017, section 3.2).

    $$y_A = x_A, \quad y_B = T(x_B; \mathrm{conditioner}(x_A, \mathrm{condition}))$$

    Attributes:
        conditioner: Maker of the network, called with `features=...`; `network(x, condition)`
            returns `[..., features]`. Where it starts at 0, the layer starts as the identity.
        transform: Transform T of each variable that moves.
        mask: Variables that pass: "halves", the first half of the last axis; "checkerboard", of
            images, see `checkerboard`; or an array of bools that broadcasts to an example, True
            where they pass.
        swap: Whether the other variables pass instead. It may be traced, as in a loop over
            couplings of either kind.
        tells_mask: Whether the network is called with `mask` too, 1 at positions that pass and 0
            elsewhere; of masks that are the same for all channels.
    """

    conditioner: Conditioner
    transform: Transform = Affine()
    mask: Mask = "halves"
    swap: bool | Bool[Array, ""] = False
    tells_mask: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims channels"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims channels"], LogDet]:
        """Moves the variables that do not pass.

        Raises:
            ValueError: An unknown mask, one that does not fit x, one that leaves nothing to pass or
                nothing to move, or one to be told that differs between channels.
        """
        if isinstance(self.mask, str) and self.mask == "halves" and x.shape[-1] % 2 == 0:
            return self._halves(x, condition, reverse)
        mask = self._mask(x.shape[1:])
        passes = (mask != self.swap)[None]
        pixels = jnp.asarray(passes[..., :1], x.dtype) if self.tells_mask else None
        raw = self._raw(jnp.where(passes, x, 0), condition, x.shape[-1], x.dtype, pixels)
        y, log_slope = self.transform(x, raw, reverse=reverse)
        return jnp.where(passes, x, y), sum_event(jnp.where(passes, 0, log_slope))

    def _halves(self, x: Array, condition: Condition | None, reverse: bool) -> tuple[Array, LogDet]:
        """Equal halves need no mask: the conditioner sees one and moves the other."""
        passing, moved = self._exchanged(*jnp.split(x, 2, axis=-1))
        raw = self._raw(passing, condition, moved.shape[-1], x.dtype)
        moved, log_slope = self.transform(moved, raw, reverse=reverse)
        return jnp.concatenate(self._exchanged(passing, moved), axis=-1), sum_event(log_slope)

    def _exchanged(self, first: Array, second: Array) -> tuple[Array, Array]:
        """The two, in the other order where `swap` is."""
        return jnp.where(self.swap, second, first), jnp.where(self.swap, first, second)

    def _raw(
        self,
        passing: Array,
        condition: Condition | None,
        moved: int,
        dtype: Any,
        pixels: Array | None = None,
    ) -> Array:
        """The transform's parameters `[..., params, moved]`."""
        num = self.transform.num_params
        network = self.conditioner(features=num * moved, name="conditioner")
        raw = network(passing, condition, **({} if pixels is None else {"mask": pixels}))
        return raw.reshape(*raw.shape[:-1], num, moved).astype(dtype)

    def _mask(self, shape: tuple[int, ...]) -> Bool[np.ndarray, "..."]:
        """True where a variable of an example passes, or with `swap` moves."""
        if isinstance(self.mask, str) and self.mask == "halves":
            if shape[-1] < 2:
                raise ValueError(
                    f"mask 'halves' needs 2 channels or more, got examples {list(shape)}"
                )
            half = np.arange(shape[-1]) < shape[-1] // 2
            mask = half.reshape((1,) * (len(shape) - 1) + (-1,))
        elif isinstance(self.mask, str):
            if self.mask != "checkerboard":
                raise ValueError(
                    f"mask must be 'halves', 'checkerboard' or an array, got {self.mask!r}"
                )
            if len(shape) != 3:
                raise ValueError(f"mask 'checkerboard' needs images, got examples {list(shape)}")
            mask = checkerboard(*shape[:2])
        else:
            mask = np.asarray(self.mask)
        fits = mask.ndim == len(shape) and all(
            m in (1, n) for m, n in zip(mask.shape, shape, strict=True)
        )
        if mask.dtype != np.bool_ or not fits:
            raise ValueError(
                f"mask must be bools that broadcast to an example of shape {list(shape)}, got "
                f"{mask.dtype}{list(mask.shape)}"
            )
        if mask.all() or not mask.any():
            raise ValueError("mask must let some variables pass and some move, got all alike")
        if self.tells_mask and mask.shape[-1] > 1 and (mask != mask[..., :1]).any():
            raise ValueError("tells_mask needs a mask that is the same for all channels")
        return np.broadcast_to(mask, shape)


class Split(Bijector):
    r"""Factors half of the channels out, made standard normal given the other half.

    $$x = (h, v) \mapsto (h, z), \quad v = \mu(h, c) + \sigma(h, c) z$$ with c the condition: the
    learned Gaussian prior of Kingma and Dhariwal 2018, as a bijector. Without a conditioner z is v
    (Dinh et al. 2017).

    Attributes:
        conditioner: Maker of the network that chooses the transform, as `Coupling` takes it; None
            for no transform.
        transform: Transform from v to z.
    """

    conditioner: Conditioner | None = None
    transform: Transform = Affine()

    @nn.compact
    def __call__(
        self, x: Any, condition: Condition | None = None, *, reverse: bool = False
    ) -> tuple[Any, LogDet]:
        """`[..., 2 C]` to a pair of `[..., C]`, or back.

        Raises:
            ValueError: An odd number of channels.
        """
        if reverse:
            h, v = x
        else:
            if x.shape[-1] % 2:
                raise ValueError(f"channels must be even to be split, got x of shape {x.shape}")
            h, v = jnp.split(x, 2, axis=-1)
        log_det = jnp.zeros(v.shape[:1], v.dtype)
        if self.conditioner is not None:
            num, channels = self.transform.num_params, v.shape[-1]
            raw = self.conditioner(features=num * channels, name="prior")(h, condition)
            raw = raw.reshape(*raw.shape[:-1], num, channels).astype(v.dtype)
            v, log_slope = self.transform(v, raw, reverse=reverse)
            log_det = sum_event(log_slope)
        return (jnp.concatenate([h, v], axis=-1) if reverse else (h, v)), log_det


class LearnedPrior(Bijector):
    r"""A learned Gaussian for each channel, which may depend on the condition.

    $$x = \mu(c) + \sigma(c) z$$, `x -> z`, with c the condition: the prior of Glow's last latents
    ("learned top").

    Attributes:
        transform: Transform from x to z.
        edges: Whether it may differ at the edges of an image, as of a convolution of zeros there,
            see `Edges`.
        log_scale_factor: Factor of a learned scale of its parameters, see `LearnedScale`; None for
            no such scale.
    """

    transform: Transform = Affine()
    edges: bool = False
    log_scale_factor: float | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims channels"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims channels"], LogDet]:
        """Takes the mean and the deviation out, or puts them in."""
        num, channels = self.transform.num_params, x.shape[-1]
        raw = self.param("bias", nn.initializers.zeros, (num * channels,))[None]
        e = vector_of(condition)
        if e is not None:
            shift = nn.Dense(
                num * channels, use_bias=False, kernel_init=nn.initializers.zeros, name="condition"
            )
            raw = raw + shift(e)
        raw = raw.reshape(-1, *(1,) * (x.ndim - 2), num * channels)
        if self.edges:
            raw = Edges(name="edges")(jnp.broadcast_to(raw, (*x.shape[:-1], num * channels)))
        if self.log_scale_factor is not None:
            raw = LearnedScale(self.log_scale_factor, name="scale")(raw)
        raw = jnp.broadcast_to(raw, (*x.shape[:-1], num * channels))
        raw = raw.reshape(*x.shape[:-1], num, channels).astype(x.dtype)
        y, log_slope = self.transform(x, raw, reverse=reverse)
        return y, sum_event(log_slope)
