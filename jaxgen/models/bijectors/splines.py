"""Monotonic rational-quadratic splines, and the neural spline flow of them."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen.models.bijectors.algebra import ActNorm, Bijector, Repeat, chain
from jaxgen.models.bijectors.conditioners import MLP
from jaxgen.models.bijectors.coupling import Coupling
from jaxgen.models.bijectors.linear import InvertibleLinear

_STEEPEST = 1e3


@dataclass(frozen=True)
class Spline:
    r"""A rational-quadratic spline on [-B, B], the identity outside (Durkan et al. 2019).

    K bins; in bin k, of slope $s = h / w$ and knot derivatives $d_0, d_1$, with
    $\theta = (x - x_k) / w$ in [0, 1],

    $$y = y_k + \frac{h (s \theta^2 + d_0 \theta (1 - \theta))}
    {s + (d_0 + d_1 - 2 s) \theta (1 - \theta)} \quad \text{(eq. 4)}$$

    Widths and heights are softmaxes, inner derivatives softplus, the outermost ones 1. With
    parameters 0 it is the identity.

    It stays finite everywhere: arguments outside are replaced before any arithmetic, bins and
    derivatives have least sizes, and the inverse takes the root of a sum of squares (`_solve`).

    Attributes:
        num_bins: Number K of bins.
        bound: End B of the interval.
        least_bin: Least width and height of a bin, as a share of the interval.
        least_derivative: Least derivative at a knot, in (0, 1).
    """

    num_bins: int = 8
    bound: float = 3.0
    least_bin: float = 1e-3
    least_derivative: float = 1e-3

    def __post_init__(self) -> None:
        if self.num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {self.num_bins}")
        if not self.bound > 0:
            raise ValueError(f"bound must be positive, got {self.bound}")
        if not 1e-5 <= self.least_bin < 1 / self.num_bins:
            raise ValueError(
                f"least_bin must lie in [1e-5, 1 / num_bins), got {self.least_bin} for "
                f"{self.num_bins} bins"
            )
        if not 0 < self.least_derivative < 1:
            raise ValueError(f"least_derivative must lie in (0, 1), got {self.least_derivative}")

    @property
    def num_params(self) -> int:
        """K widths, K heights and K - 1 derivatives."""
        return 3 * self.num_bins - 1

    def __call__(
        self,
        x: Float[Array, "*dims channels"],
        raw: Float[Array, "*dims params channels"],
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*dims channels"]]:
        """Bends, or unbends: `(y, log dy/dx)`, or `(x, log dx/dy)` in reverse."""
        k = self.num_bins
        # The parameters' axis goes first: what follows then works on whole arrays of x's shape.
        raw = jnp.moveaxis(raw, -2, 0)
        x_knots, widths = self._knots(raw[:k])
        y_knots, heights = self._knots(raw[k : 2 * k])
        derivatives = self._derivatives(raw[2 * k :])
        inside = jnp.abs(x) <= self.bound
        # Not jnp.clip, which halves the gradient at the bounds themselves.
        bounded = jnp.where(inside, x, 0.0)

        # The bin is the last whose left knot lies at or below the argument.
        reached = bounded[None] >= (y_knots if reverse else x_knots)[1:]
        edge = jnp.ones_like(reached[:1])
        within = jnp.concatenate([edge, reached]) & ~jnp.concatenate([reached, ~edge])
        left, right = derivatives[:-1], derivatives[1:]
        # One sum each: XLA fuses them, where a stack of the six would be written out first.
        x0, y0, w, h, d0, d1 = (
            jnp.sum(jnp.where(within, values, 0), axis=0)
            for values in (x_knots, y_knots, widths, heights, left, right)
        )
        s = h / w
        if reverse:
            theta = _solve((bounded - y0) / h, s, d0, d1)
            value = x0 + theta * w
        else:
            theta = (bounded - x0) / w
            value = y0 + h * _eased(theta, s, d0, d1)
        log_slope = _log_slope(theta, s, d0, d1)
        value = jnp.where(inside, value, x)
        return value, jnp.where(inside, -log_slope if reverse else log_slope, 0.0)

    def _knots(self, raw: Array) -> tuple[Array, Array]:
        """(left knot of each bin, size of each bin), `[K, ...]`."""
        share = self.least_bin + (1 - self.least_bin * self.num_bins) * jax.nn.softmax(raw, axis=0)
        inner = 2 * self.bound * jnp.cumsum(share, axis=0)[:-1] - self.bound
        end = jnp.full((1, *raw.shape[1:]), self.bound, raw.dtype)
        left, right = jnp.concatenate([-end, inner]), jnp.concatenate([inner, end])
        # Sizes are differences of the rounded knots, so that no argument lies beyond its bin.
        return left, right - left

    def _derivatives(self, raw: Array) -> Array:
        """At the K + 1 knots; 1 at the ends, as in the tails."""
        offset = math.log(math.expm1(1 - self.least_derivative))
        inner = self.least_derivative + jax.nn.softplus(raw + offset)
        end = jnp.ones((1, *raw.shape[1:]), raw.dtype)
        return jnp.concatenate([end, jnp.minimum(inner, _STEEPEST), end])


def _eased(theta: Array, s: Array, d0: Array, d1: Array) -> Array:
    """How much of its bin's height y has climbed, in [0, 1] (eq. 4)."""
    mixed = theta * (1 - theta)
    return (s * jnp.square(theta) + d0 * mixed) / (s + (d0 + d1 - 2 * s) * mixed)


def _log_slope(theta: Array, s: Array, d0: Array, d1: Array) -> Array:
    """`log dy/dx` (eq. 5)."""
    rest = 1 - theta
    mixed = theta * rest
    top = d1 * jnp.square(theta) + 2 * s * mixed + d0 * jnp.square(rest)
    return 2 * jnp.log(s) + jnp.log(top) - 2 * jnp.log(s + (d0 + d1 - 2 * s) * mixed)


def _solve(eta: Array, s: Array, d0: Array, d1: Array) -> Array:
    r"""The theta in [0, 1] at which `_eased` is eta, the root of the paper's eqs. 6 to 8.

    The discriminant $b^2 - 4 a c$ cancels badly beside steep knots. It equals
    $D^2 + 4 s^2 \eta (1 - \eta)$ with $D = d_0 (1 - \eta) - d_1 \eta$, which cannot be negative,
    and the root is then a quotient of sums of positive numbers.
    """
    rest = 1 - eta
    product = 4 * jnp.square(s) * eta * rest
    difference = d0 * rest - d1 * eta
    size = jnp.sqrt(jnp.square(difference) + product) + jnp.abs(difference)
    remainder = jnp.where(difference >= 0, size, product / size)
    return 2 * s * eta / (2 * s * eta + remainder)


def neural_spline_flow(
    num_couplings: int = 8,
    hidden: tuple[int, ...] = (64, 64),
    *,
    num_bins: int = 8,
    bound: float = 3.0,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """The coupling flow of Durkan et al. 2019 on vectors, RQ-NSF (C).

    The data is normalized (`ActNorm`), then each step is a linear map (LU) and a spline coupling of
    one half given the other.

    Args:
        num_couplings: Number of steps.
        hidden: Widths of each conditioner's hidden layers.
        num_bins: Number of bins of each spline.
        bound: End of each spline's interval, in deviations of the normalized data.
        remat: Whether to recompute within steps for the gradient, to save memory.
        dtype: Type of the conditioners' layers but the first and the last; None for the data's.

    Returns:
        A bijector of f32[B, D], D at least 2.

    Raises:
        ValueError: An argument out of its range.

    Examples:
        >>> flow = neural_spline_flow(2, (16,))
        >>> x = jax.random.normal(jax.random.key(0), (8, 2))
        >>> (z, log_det), variables = flow.init_with_output(jax.random.key(1), x)
    """
    conditioner = partial(MLP, hidden=hidden, dtype=dtype)
    step = chain(InvertibleLinear(), Coupling(conditioner, Spline(num_bins, bound)))
    return chain(ActNorm(), Repeat(step, num_couplings, remat))
