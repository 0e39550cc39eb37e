"""Timesteps of a chain drawn as often as their losses are large: less variance of their sum.

Nichol & Dhariwal (2021), section 3.3. What is remembered of the losses is a pytree of arrays, a
part of a model's state:

    history = resampler.init(chain.num_timesteps)
    t, weight = resampler.draw(key, history, batch)
    history = resampler.update(history, t, loss(t))      # the loss is weight * loss(t)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxgen.checks import check_same_shape


class LossHistory(NamedTuple):
    """The squares of the last H losses of each of T timesteps.

    All are floats: where each device has a history of its own examples, their mean is one again.

    Attributes:
        squares: The squares, in no order; 0 where there were fewer losses.
        counts: The number of losses that there were, over all time.
    """

    squares: Float[Array, "num_timesteps length"]
    counts: Float[Array, " num_timesteps"]


class LossResampler(NamedTuple):
    """Importance sampling of timesteps by the second moment of their losses.

    `p(t) = (1 - u) sqrt(E[loss(t)^2]) / Z + u / T` once there are H losses of every t, and uniform
    before (Nichol & Dhariwal 2021, eq. 18). With the weight `1 / (T p(t))` the mean over draws is
    that of uniform ones, whatever the history.

    Attributes:
        length: Number H of the last losses of a timestep that count.
        uniform: Share u of the draws that are uniform, in (0, 1].
    """

    length: int = 10
    uniform: float = 1e-3

    def check(self) -> None:
        """Raises ValueError where a field is out of its range."""
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if not 0 < self.uniform <= 1:
            raise ValueError(f"uniform must lie in (0, 1], got {self.uniform}")

    def init(self, num_timesteps: int) -> LossHistory:
        """The history before the first loss.

        Args:
            num_timesteps: Number of timesteps T.
        """
        return LossHistory(jnp.zeros((num_timesteps, self.length)), jnp.zeros(num_timesteps))

    def probabilities(self, history: LossHistory) -> Float[Array, " num_timesteps"]:
        """The share of each timestep in the draws.

        Args:
            history: Losses so far.
        """
        size = jnp.sqrt(jnp.mean(history.squares, axis=1))
        warm = (history.counts >= self.length).all() & (size.sum() > 0)
        size = jnp.where(warm, size, 1.0)
        return (1 - self.uniform) * size / size.sum() + self.uniform / len(size)

    def draw(
        self, key: Key[Array, ""], history: LossHistory, num: int
    ) -> tuple[Int[Array, " num"], Float[Array, " num"]]:
        """Timesteps, and the weights of their losses.

        Args:
            key: PRNG key.
            history: Losses so far.
            num: Number of draws.
        """
        shares = self.probabilities(history)
        t = jax.random.choice(key, len(shares), (num,), p=shares)
        return t, 1 / (len(shares) * shares[t])

    def update(
        self, history: LossHistory, t: Int[Array, " num"], losses: Float[Array, " num"]
    ) -> LossHistory:
        """The history after some losses, of which each takes the place of its timestep's oldest.

        Args:
            history: Losses so far.
            t: Timesteps.
            losses: Loss of each, without its weight.

        Raises:
            ValueError: Other numbers of losses than of timesteps.
        """
        check_same_shape(t=t, losses=losses)
        same = t[:, None] == t[None, :]
        before = jnp.tril(same, -1).sum(axis=1)  # losses of this timestep ahead of it in the batch
        after = jnp.triu(same, 1).sum(axis=1)
        place = (history.counts[t].astype(jnp.int32) + before) % self.length
        # Of more losses than there are places the last ones stay.
        row = jnp.where(after < self.length, t, len(history.counts))
        squares = jnp.square(jax.lax.stop_gradient(losses))
        return LossHistory(
            history.squares.at[row, place].set(squares, mode="drop"),
            history.counts.at[t].add(1.0),
        )
