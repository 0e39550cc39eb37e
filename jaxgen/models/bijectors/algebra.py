"""The algebra of normalizing flows: invertible layers, and what puts them together.

A bijector is a Linen module that maps data x to latents y, batch by batch, and knows how much it
stretches space there:

    y, log_det = bijector.apply(variables, x, condition)                     # data to latents
    x, log_det = bijector.apply(variables, y, condition, method="inverse")   # latents to data

`log_det[i]` is `log |det dy/dx|` of example i in nats, and on the way back `log |det dx/dy|`.
`condition` is a `jaxgen.conditioning.base.Condition` or None: compositions hand it on, and the
networks that choose the maps take its vector. Bijectors compose: `chain` one after another,
`Repeat` one many times over in a compiled loop, `Invert` turned round, `MultiScale` with latents
factored out on the way. As everywhere in Flax, one instance is one set of parameters: put it in two
places, and they share them.

Fixed random choices (permutations and signs) are kept in the collection `constants`, which a family
carries in `Variables.state`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxgen.checks import check_choice
from jaxgen.conditioning.base import Condition

CONSTANTS = "constants"

LogDet = Float[Array, " batch"]


def sum_event(x: Float[Array, "batch *dims"]) -> Float[Array, " batch"]:
    """Sums all but the first axis, at least in float32."""
    return jnp.sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=tuple(range(1, x.ndim)))


def constant_log_det(x: Array, value: Array | float) -> LogDet:
    """The same log-determinant for every example of x."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.broadcast_to(jnp.asarray(value, dtype), x.shape[:1])


def _trailing(values: Array, x: Array) -> Array:
    """Per-channel values with the rank and the type of x."""
    return values.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Bijector(nn.Module):
    """An invertible map; subclasses write `__call__(x, condition=None, *, reverse=False)`."""

    def forward(self, x: Any, condition: Condition | None = None) -> tuple[Any, LogDet]:
        """Data to latents: `(y, log |det dy/dx|)`, the latter f32[B] in nats."""
        return self(x, condition)

    def inverse(self, y: Any, condition: Condition | None = None) -> tuple[Any, LogDet]:
        """Latents to data: `(x, log |det dx/dy|)`, the latter f32[B] in nats."""
        return self(y, condition, reverse=True)


class Chain(Bijector):
    """One bijector after another: forward from the first to the last.

    Attributes:
        bijectors: Bijectors in the order from data to latents, at least one.
    """

    bijectors: tuple[Bijector, ...]

    @nn.compact
    def __call__(
        self, x: Any, condition: Condition | None = None, *, reverse: bool = False
    ) -> tuple[Any, LogDet]:
        """Runs through them, in order or back."""
        if not self.bijectors:
            raise ValueError("bijectors must hold at least one bijector, got none")
        total: Any = 0.0
        for bijector in reversed(self.bijectors) if reverse else self.bijectors:
            x, log_det = bijector(x, condition, reverse=reverse)
            total = total + log_det
        return x, total


def chain(*bijectors: Bijector) -> Bijector:
    """Composes bijectors: `chain(f, g)` maps x to `g(f(x))`.

    Examples:
        >>> flow = chain(ActNorm(), Reverse())
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> (y, log_det), variables = flow.init_with_output(jax.random.key(1), x)
    """
    return Chain(bijectors)


class Invert(Bijector):
    """A bijector turned round: its inverse is the way from data to latents.

    Attributes:
        bijector: Bijector to turn round.
    """

    bijector: Bijector

    @nn.compact
    def __call__(
        self, x: Any, condition: Condition | None = None, *, reverse: bool = False
    ) -> tuple[Any, LogDet]:
        """Runs the bijector in the other direction."""
        return self.bijector(x, condition, reverse=not reverse)


class Repeat(Bijector):
    """The same kind of step many times, each with parameters of its own: a compiled loop.

    The parameters of all steps are stacked along the first axis. The stack compiles in the time of
    one step, and data-dependent initialization sees each step's true input.

    Attributes:
        step: Bijector whose output has its input's shape.
        num: Number of steps, at least 1.
        remat: Whether to keep only the steps' inputs for the gradient, and compute the rest again.
        alternate: Whether to call the steps with one more argument, `swap`: False, True, False and
            so on.
    """

    step: Bijector
    num: int
    remat: bool = False
    alternate: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims"], LogDet]:
        """Runs the steps, in order or back.

        Raises:
            ValueError: Fewer steps than one.
        """
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")

        def body(
            step: Any, carry: tuple[Array, Array], swap: Array
        ) -> tuple[tuple[Array, Array], None]:
            x, total = carry
            options = {"swap": swap} if self.alternate else {}
            x, log_det = step(x, condition, reverse=reverse, **options)
            return (x, total + log_det), None

        loop = nn.scan(
            nn.remat(body, prevent_cse=False) if self.remat else body,
            variable_axes={"params": 0, CONSTANTS: 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num,
            reverse=reverse,
        )
        swaps = jnp.arange(self.num) % 2 == 1
        (x, total), _ = loop(self.step, (x, constant_log_det(x, 0.0)), swaps)
        return x, total


class ActNorm(Bijector):
    r"""A scale and a shift for each channel (Kingma and Dhariwal 2018, section 3.1).

    $$y = (x + b) e^s, \quad \log|\det| = n \sum_c s_c$$ over n positions. Initialized from the
    data, so that each channel of the first output (in the direction that `init` runs) has mean 0
    and deviation 1. `init` sees the global batch, on one device as on eight.

    Attributes:
        least_deviation: Least deviation of a channel; one that varies less is scaled as if it
            varied so much.
        log_scale_factor: Factor f of the parameters of which the log-scales are made, s = f p; a
            step of the optimizer moves s so much further. The code of Kingma and Dhariwal has 3.
    """

    least_deviation: float = 1e-3
    log_scale_factor: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims channels"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims channels"], LogDet]:
        """Normalizes by what was learned."""
        flat = x.reshape(-1, x.shape[-1])

        def mean() -> Array:
            return jnp.mean(flat, axis=0).astype(jnp.float32)

        def deviation() -> Array:
            return jnp.maximum(jnp.std(flat, axis=0), self.least_deviation).astype(jnp.float32)

        bias = self.param("bias", lambda _: mean() / deviation() if reverse else -mean())
        sign = 1.0 if reverse else -1.0
        log_scale = self.log_scale_factor * self.param(
            "log_scale", lambda _: jnp.log(deviation()) * (sign / self.log_scale_factor)
        )
        positions = x[0].size // x.shape[-1]
        log_det = constant_log_det(x, positions * jnp.sum(log_scale))
        scale = jnp.exp(log_scale)
        if reverse:
            return x * _trailing(1 / scale, x) - _trailing(bias, x), -log_det
        return (x + _trailing(bias, x)) * _trailing(scale, x), log_det


class Permute(Bijector):
    """Permutes the last axis at random, the same way for ever; `log_det` 0."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims width"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims width"], LogDet]:
        """Permutes, or puts back."""
        order = self.variable(
            CONSTANTS,
            "order",
            lambda: jax.random.permutation(self.make_rng("params"), x.shape[-1]),
        ).value
        return jnp.take(x, jnp.argsort(order) if reverse else order, axis=-1), constant_log_det(
            x, 0.0
        )


class Reverse(Bijector):
    """Turns the last axis round; `log_det` 0."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims width"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims width"], LogDet]:
        """Turns round; it is its own inverse."""
        return jnp.flip(x, axis=-1), constant_log_det(x, 0.0)


_DIAGONAL = np.array([0, 3, 1, 2])  # a block's pixels (0, 0), (1, 1), (0, 1), (1, 0), row by row


class Squeeze(Bijector):
    """Blocks of 2x2 pixels into channels (Dinh et al. 2017, section 3.6); `log_det` 0.

    `[height, width, C]` becomes `[height / 2, width / 2, 4 C]`. The order of the new channels
    matters where half of them is told from the other half.

    Attributes:
        order: Order of the new channels: "pixels", by row, column and old channel; "channels", by
            old channel, row and column; "diagonal", the four pixels' channels in the order (0, 0),
            (1, 1), (0, 1), (1, 0), so that the first half is the block's diagonal.
    """

    order: str = "pixels"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch h2 w2 c2"], LogDet]:
        """Squeezes, or spreads out.

        Raises:
            ValueError: An odd height or width, on the way back channels not divisible by 4, or an
                unknown order.
        """
        check_choice("order", self.order, ("pixels", "channels", "diagonal"))
        batch, height, width, channels = x.shape
        if reverse:
            if channels % 4:
                raise ValueError(f"channels must be divisible by 4, got x of shape {x.shape}")
            y = self._spread(x).transpose(0, 1, 3, 2, 4, 5)
            return y.reshape(batch, 2 * height, 2 * width, channels // 4), constant_log_det(x, 0.0)
        if height % 2 or width % 2:
            raise ValueError(f"height and width must be even, got x of shape {x.shape}")
        y = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return self._gathered(y), constant_log_det(x, 0.0)

    def _gathered(self, blocks: Array) -> Array:
        """Blocks [batch, h, w, 2, 2, c] to channels [batch, h, w, 4 c]."""
        shape = blocks.shape[:3]
        if self.order == "channels":
            blocks = jnp.moveaxis(blocks, -1, 3)
        if self.order == "diagonal":
            blocks = blocks.reshape(*shape, 4, -1)[..., _DIAGONAL, :]
        return blocks.reshape(*shape, -1)

    def _spread(self, x: Array) -> Array:
        """Channels [batch, h, w, 4 c] to blocks [batch, h, w, 2, 2, c]."""
        shape = x.shape[:3]
        if self.order == "channels":
            return jnp.moveaxis(x.reshape(*shape, -1, 2, 2), 3, -1)
        if self.order == "diagonal":
            x = x.reshape(*shape, 4, -1)[..., np.argsort(_DIAGONAL), :]
        return x.reshape(*shape, 2, 2, -1)


class Logit(Bijector):
    r"""From [0, 1] to the real line (Dinh et al. 2017, section 4.1).

    $$y = \mathrm{logit}(p), \quad p = \alpha + (1 - 2\alpha) x, \quad
    \log|\det| = \sum_i \log(1 - 2\alpha) - \log p_i - \log(1 - p_i)$$

    p and 1 - p are held above 0, so that data outside [0, 1] gives finite, if wrong, numbers.

    Attributes:
        alpha: Distance of the ends from 0 and 1: 0.05 for RealNVP's images, 1e-6 for MAF's MNIST.
    """

    alpha: float = 0.05

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims"], LogDet]:
        """Logits, or probabilities.

        Raises:
            ValueError: Alpha outside (0, 0.5).
        """
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 0.5), got {self.alpha}")
        width = 1 - 2 * self.alpha
        least = jnp.finfo(x.dtype).eps
        y = x
        if not reverse:
            # Both from the nearer end: 1 - p would lose the digits of an alpha near 0.
            p, rest = self.alpha + width * x, self.alpha + width * (1 - x)
            y = jnp.log(jnp.maximum(p, least)) - jnp.log(jnp.maximum(rest, least))
        # -log p = softplus(-y) and -log(1 - p) = softplus(y).
        log_det = sum_event(np.log(width) + jax.nn.softplus(y) + jax.nn.softplus(-y))
        if reverse:
            return (jax.nn.sigmoid(y) - self.alpha) / width, -log_det
        return y, log_det


class MultiScale(Bijector):
    r"""Levels, between which half of the variables is factored out (Dinh et al. 2017, eq. 14).

    Level 1 maps the data to h1, split 1 maps h1 to (h1', z1), level 2 maps h1' to h2, and so on;
    the latents are the tuple (z1, ..., zL), the last level's output being zL. Nothing is lost: as
    the splits give standard normal latents, so does the whole.

    Attributes:
        levels: Bijectors of the L levels.
        splits: Bijectors `h -> (kept, factored out)` between the levels, L - 1 of them.
    """

    levels: tuple[Bijector, ...]
    splits: tuple[Bijector, ...]

    @nn.compact
    def __call__(
        self, x: Any, condition: Condition | None = None, *, reverse: bool = False
    ) -> tuple[Any, LogDet]:
        """Data to a tuple of latents, or back.

        Raises:
            ValueError: A number of splits that does not fit the levels, or of latents.
        """
        if len(self.splits) != len(self.levels) - 1:
            raise ValueError(
                f"splits must be one fewer than the {len(self.levels)} levels, "
                f"got {len(self.splits)}"
            )
        *levels, last = self.levels
        if reverse:
            return self._back(x, condition)
        latents, total = [], constant_log_det(x, 0.0)
        for level, split in zip(levels, self.splits, strict=True):
            x, log_det = level(x, condition)
            (x, z), log_det_split = split(x, condition)
            latents.append(z)
            total = total + log_det + log_det_split
        z, log_det = last(x, condition)
        return (*latents, z), total + log_det

    def _back(self, latents: Any, condition: Condition | None) -> tuple[Any, LogDet]:
        if len(latents) != len(self.levels):
            raise ValueError(f"y must be {len(self.levels)} latents, got {len(latents)}")
        *levels, last = self.levels
        h, total = last(latents[-1], condition, reverse=True)
        for level, split, z in reversed(list(zip(levels, self.splits, latents[:-1], strict=True))):
            h, log_det_split = split((h, z), condition, reverse=True)
            h, log_det = level(h, condition, reverse=True)
            total = total + log_det + log_det_split
        return h, total
