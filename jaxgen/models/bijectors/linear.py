"""An invertible matrix on the channels: Glow's 1x1 convolution, and a linear layer for vectors."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.scipy.linalg import lu, solve_triangular
from jaxtyping import Array, Float

from jaxgen.conditioning.base import Condition
from jaxgen.models.bijectors.algebra import CONSTANTS, Bijector, LogDet, constant_log_det

_LARGEST_CONDITION_NUMBER = 1e6


class InvertibleLinear(Bijector):
    r"""An invertible matrix on the channels: on images the 1x1 convolution of Glow.

    $$y = x W, \quad \log|\det| = n \log|\det W|$$ over n positions (Kingma and Dhariwal 2018,
    section 3.2). W starts as a random rotation. As an LU product `W = P L (U + diag(s))` (eq. 10;
    P a fixed permutation, the signs of s fixed too) it can never become singular, and its
    determinant costs nothing.

    Attributes:
        lu: Whether the matrix is kept as the product; False for a plain matrix.
    """

    lu: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims channels"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "batch *dims channels"], LogDet]:
        """Multiplies every position's channels by the matrix, or by its inverse."""
        weight, log_abs_det = self._product(x.shape[-1]) if self.lu else self._plain(x.shape[-1])
        log_det = constant_log_det(x, x[0].size // x.shape[-1] * log_abs_det)
        matrix = weight(reverse).astype(x.dtype)
        y = jnp.matmul(x.reshape(-1, x.shape[-1]), matrix, precision=lax.Precision.HIGHEST)
        return y.reshape(x.shape), -log_det if reverse else log_det

    def _plain(self, channels: int) -> tuple[Callable[[bool], Array], Array]:
        matrix = self.param("matrix", nn.initializers.orthogonal(), (channels, channels))
        _, log_abs_det = jnp.linalg.slogdet(matrix)
        return lambda reverse: jnp.linalg.inv(matrix) if reverse else matrix, log_abs_det

    def _product(self, channels: int) -> tuple[Callable[[bool], Array], Array]:
        """(the matrix or its inverse, log |det|)."""
        if self.is_initializing():
            start = _rotation(self.make_rng("params"), channels)
        else:  # only the shapes count
            start = {"triangles": jnp.zeros((channels, channels)), "log_scale": jnp.zeros(channels)}
        rows, sign = (
            self.variable(CONSTANTS, name, lambda name=name: start[name]).value
            for name in ("rows", "sign")
        )
        triangles = self.param("triangles", lambda _: start["triangles"])
        log_scale = self.param("log_scale", lambda _: start["log_scale"])
        eye = jnp.eye(channels, dtype=triangles.dtype)
        lower = jnp.tril(triangles, -1) + eye
        upper = jnp.triu(triangles, 1) + eye * (sign * jnp.exp(log_scale))[None]

        def weight(inverse: bool) -> Array:
            if not inverse:
                return jnp.matmul(lower, upper, precision=lax.Precision.HIGHEST)[rows]
            half = solve_triangular(lower, eye, lower=True, unit_diagonal=True)
            return solve_triangular(upper, half)[:, rows]

        return weight, jnp.sum(log_scale)


def _rotation(key: Array, channels: int) -> dict[str, Array]:
    """A random rotation W as `W = (L U)[rows]`, U's diagonal apart."""
    p, lower, upper = lu(nn.initializers.orthogonal()(key, (channels, channels)))
    diagonal = jnp.diagonal(upper)
    return {
        "rows": jnp.argmax(p, axis=1),
        "sign": jnp.sign(diagonal),
        "triangles": jnp.tril(lower, -1) + jnp.triu(upper, 1),
        "log_scale": jnp.log(jnp.abs(diagonal)),
    }


def check_invertible(params: Mapping[str, Any]) -> None:
    """Checks every matrix of `InvertibleLinear` in a tree of parameters, say of a checkpoint.

    It fits every flow: where there is no such matrix, it checks no more than that the scales of
    `ActNorm` are finite, whose name is that of the product's scales.

    Args:
        params: Parameters of a flow, or of any module that holds flows; concrete arrays.

    Raises:
        ValueError: A matrix or scale that is not finite, or a matrix so close to singular that
            float32 cannot invert it (condition number above 1e6).
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kind = name.rsplit("/", 1)[-1]
        if kind not in ("matrix", "triangles", "log_scale"):
            continue
        values = np.asarray(leaf, np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"params: {name} holds values that are not finite")
        worst = np.max(np.linalg.cond(values)) if kind == "matrix" else 1.0
        if not worst <= _LARGEST_CONDITION_NUMBER:
            raise ValueError(
                f"params: {name} is singular or nearly so: its condition number is {worst:.3g}, "
                f"at most {_LARGEST_CONDITION_NUMBER:.0e} can be inverted in float32"
            )
