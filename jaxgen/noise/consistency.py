"""Noise levels of consistency models: their boundary, and the pairs of levels that training draws.

A consistency model says of any point of a path of the probability-flow ODE where it ends, at the
level `sigma_min` next to the data (Song et al. 2023). `boundary` makes it say so exactly at that
level. Training compares what it says at two neighbours of a grid of N levels,

    sigma_i = (sigma_min^(1/rho) + i / (N - 1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho,

i from 0 to N - 1, and N grows with the steps. All is of EDM's process, whose time is the deviation.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen.noise.parametrization import Parametrization
from jaxgen.noise.process import Level, expand, log_snr_of

# step -> the number N of levels of the grid
NumLevels = Callable[[Int[Array, ""]], Int[Array, ""]]
# (key, num, N) -> two neighbouring levels of each example, the cleaner first
Neighbours = Callable[
    [Key[Array, ""], int, Int[Array, ""]], tuple[Float[Array, " num"], Float[Array, " num"]]
]


class Grid(NamedTuple):
    """The ends of the grid of levels and its power.

    Attributes:
        sigma_min: Deviation of the noise next to the data.
        sigma_max: Deviation where sampling starts.
        rho: Power; 1 is evenly spaced.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def check(self) -> None:
        """Raises ValueError where the numbers make no grid."""
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "0 < sigma_min < sigma_max must hold and both be finite, got "
                f"{self.sigma_min}, {self.sigma_max}"
            )
        if not 1 <= self.rho < math.inf:
            raise ValueError(f"rho must be finite and at least 1, got {self.rho}")

    @property
    def ends(self) -> tuple[float, float]:
        """The roots of both ends, between which the grid is even."""
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def at(self, index: Array, num_levels: Array | int) -> Float[Array, "*levels"]:
        """The levels of these indices, 0 the cleanest."""
        low, high = self.ends
        return (low + index / (num_levels - 1) * (high - low)) ** self.rho


EDM_GRID = Grid()
"""EDM's levels, which consistency models keep."""


def boundary(sigma_data: float = 0.5, sigma_min: float = 0.002) -> Parametrization:
    """EDM's preconditioning with `x0 = x` at `sigma_min` (Song et al. 2023, appendix C).

    `skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)`, `out = (sigma - sigma_min)
    sigma_data / sqrt(sigma^2 + sigma_data^2)`; what the network sees is EDM's. The target, for
    which `out` is divided by, is infinite at `sigma_min`.

    Args:
        sigma_data: Deviation of the data, positive.
        sigma_min: Level of the boundary, at least 0; 0 is EDM's.

    Raises:
        ValueError: if a number is out of its range.
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")
    if not 0 <= sigma_min < math.inf:
        raise ValueError(f"sigma_min must be finite and at least 0, got {sigma_min}")

    def above(level: Level) -> Array:
        return level.sigma - sigma_min

    def root(level: Level) -> Array:
        return jnp.sqrt(jnp.square(level.sigma) + sigma_data**2)

    def skip(level: Level) -> Array:
        return sigma_data**2 / (jnp.square(above(level)) + sigma_data**2)

    def out(level: Level) -> Array:
        return above(level) * sigma_data / root(level)

    def target(x0: Array, eps: Array, level: Level) -> Array:
        skipped = expand(skip(level), x0.ndim) * (x0 + expand(level.sigma, x0.ndim) * eps)
        return (x0 - skipped) / expand(out(level), x0.ndim)

    return Parametrization(
        skip=skip,
        out=out,
        scale_in=lambda level: 1 / root(level),
        time=lambda level: -log_snr_of(level) / 8,
        target=target,
    )


def fixed(num_levels: int) -> NumLevels:
    """The same number of levels at all steps, as in distillation (18 on CIFAR-10).

    Args:
        num_levels: The number N, at least 2.

    Raises:
        ValueError: if it is less.
    """
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
    return lambda step: jnp.int32(num_levels)


def square_root(total_steps: int, first: int = 2, last: int = 150) -> NumLevels:
    """Levels that grow like the root of the steps (Song et al. 2023, appendix C).

    `N = ceil(sqrt(k / K ((last + 1)^2 - first^2) + first^2) - 1) + 1` at step k of K.

    Args:
        total_steps: The steps K of the training.
        first: The number of intervals at the start, the paper's s_0.
        last: The number of intervals at the end, s_1.

    Raises:
        ValueError: if the numbers are not in order.
    """
    _check_growth(total_steps, first, last)

    def at(step: Int[Array, ""]) -> Int[Array, ""]:
        share = jnp.minimum(step, total_steps) / total_steps
        intervals = jnp.ceil(jnp.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1)
        return jnp.maximum(intervals, 1).astype(jnp.int32) + 1

    return at


def doubling(total_steps: int, first: int = 10, last: int = 1280) -> NumLevels:
    """Levels that double at even distances (Song & Dhariwal 2023, section 3.4).

    `N = min(first 2^floor(k / K'), last) + 1`, `K' = floor(K / (log2(floor(last / first)) + 1))`.

    Args:
        total_steps: The steps K of the training.
        first: The number of intervals at the start, the paper's s_0.
        last: The number of intervals at the end, s_1.

    Raises:
        ValueError: if the numbers are not in order, or the steps are too few to double so often.
    """
    _check_growth(total_steps, first, last)
    ratio = math.log2(last // first)
    period = int(total_steps / (ratio + 1))
    if period < 1:
        raise ValueError(f"total_steps must be more than {ratio:g}, got {total_steps}")

    def at(step: Int[Array, ""]) -> Int[Array, ""]:
        stage = jnp.minimum(step // period, math.ceil(math.log2(last / first)))
        return jnp.minimum(first * 2**stage, last).astype(jnp.int32) + 1

    return at


def adaptive_decay(first_decay: float = 0.9, first: int = 2) -> Callable[[Array], Array]:
    """Decay of the target's average, `exp(first ln(first_decay) / (N - 1))` of N levels.

    Song et al. 2023, appendix C.

    Args:
        first_decay: The decay at the start, in (0, 1), the paper's mu_0.
        first: The number of intervals at the start, s_0.

    Raises:
        ValueError: if the decay is out of range.
    """
    if not 0 < first_decay < 1:
        raise ValueError(f"first_decay must lie in (0, 1), got {first_decay}")
    return lambda num_levels: jnp.exp(first * math.log(first_decay) / (num_levels - 1))


def uniform_neighbours(grid: Grid = EDM_GRID) -> Neighbours:
    """Each interval of the grid alike (Song et al. 2023, algorithms 2 and 3).

    Args:
        grid: Grid of levels.

    Raises:
        ValueError: if its numbers make no grid.
    """
    grid.check()

    def draw(
        key: Key[Array, ""], num: int, num_levels: Int[Array, ""]
    ) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        index = jax.random.randint(key, (num,), 0, num_levels - 1)
        return grid.at(index, num_levels), grid.at(index + 1, num_levels)

    return draw


def log_normal_neighbours(
    mean: float = -1.1,
    std: float = 2.0,
    grid: Grid = EDM_GRID,
) -> Neighbours:
    """Intervals as often as a log-normal level falls into them (Song & Dhariwal 2023, eq. 10).

    Args:
        mean: Mean of the level's log.
        std: Deviation of it, positive.
        grid: Grid of levels; levels beyond it are not drawn.

    Raises:
        ValueError: if a number is out of its range.
    """
    grid.check()
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive and finite, got {std}")
    low, high = ((math.log(end) - mean) / std for end in (grid.sigma_min, grid.sigma_max))

    def draw(
        key: Key[Array, ""], num: int, num_levels: Int[Array, ""]
    ) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        sigma = jnp.exp(mean + std * jax.random.truncated_normal(key, low, high, (num,)))
        least, most = grid.ends
        place = (sigma ** (1 / grid.rho) - least) / (most - least) * (num_levels - 1)
        index = jnp.clip(jnp.floor(place), 0, num_levels - 2)
        return grid.at(index, num_levels), grid.at(index + 1, num_levels)

    return draw


def restart_times(num_steps: int, grid: Grid = EDM_GRID) -> Float[Array, " points"]:
    """Times of a sampler of a consistency model: evenly from the noisiest, and last clean data.

    `sigma_i` of a grid of `num_steps + 1` levels without its cleanest, from which nothing could be
    gained, and 0.

    Args:
        num_steps: Number of steps K, at least 1.
        grid: Grid of levels.

    Raises:
        ValueError: if an argument is out of its range.
    """
    grid.check()
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    kept = grid.at(jnp.arange(num_steps, 0, -1), num_steps + 1)
    return jnp.append(kept, 0.0)


def _check_growth(total_steps: int, first: int, last: int) -> None:
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if not 1 <= first <= last:
        raise ValueError(f"1 <= first <= last must hold, got {first} and {last}")
