"""Contrastive losses of pairs: pictures and the captions that say what they show."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def contrastive(
    a: Float[Array, "batch width"],
    b: Float[Array, "batch width"],
    scale: Float[Array, ""] | float,
    alike: Bool[Array, "batch batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""The symmetric cross-entropy of a batch of pairs (Radford et al. 2021, figure 3).

    $$\ell_i = -\tfrac12 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
               -\tfrac12 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}},
      \qquad s_{ij} = \tau \frac{a_i^\top b_j}{|a_i||b_j|}$$

    The other pairs of the batch are what a pair is told apart from: so micro-batches, and under
    `pmap` the devices' parts, make the task easier, not only the noise larger.

    Args:
        a: Vectors of one kind, of any length but zero.
        b: Vectors of the other kind.
        scale: Factor tau of the cosines.
        alike: Where i and j say the same, so that j is left out of what i is told apart from; None
            for nowhere.

    Returns:
        Loss of each pair, nats.

    Examples:
        >>> contrastive(jnp.eye(2), jnp.eye(2), 0.0)
        Array([0.6931472, 0.6931472], dtype=float32)
    """
    logits = scale * jnp.matmul(_unit(a), _unit(b).T, preferred_element_type=jnp.float32)
    if alike is not None:
        others = alike & ~jnp.eye(len(a), dtype=bool)
        logits = jnp.where(others, -jnp.inf, logits)
    own = jnp.diagonal(logits)
    both = [jax.nn.logsumexp(logits, axis=axis) for axis in (0, 1)]
    return (both[0] + both[1]) / 2 - own


def _unit(x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=1, keepdims=True), 1e-24))
