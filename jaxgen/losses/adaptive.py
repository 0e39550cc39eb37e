"""An adversarial term beside a reconstruction: its weight, and verdicts on patches.

    weight = adaptive_weight(
        lambda kernel: distance(pixels(kernel), x),
        lambda kernel: game.generator(judge(pixels(kernel)), real_logits),
        last_kernel,
    )
    loss = distance(...) + 0.5 * weight * game.generator(...)

The weight is measured anew in every step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgen.losses.gan import Adversarial
from jaxgen.losses.reduce import weighted_sum

_Loss = Callable[[Any], Float[Array, " batch"]]


def adaptive_weight(
    reconstruction: _Loss,
    adversarial: _Loss,
    parameters: Any,
    weight: Array | None = None,
    *,
    ceiling: float = 1e4,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`min(|grad R| / (|grad A| + 1e-4), ceiling)`: as much gradient from each of two losses.

    Esser et al. 2021, eq. 7, with the constants of the authors' code (1e-6 in the paper). R and A
    are the weighted means over the batch, and the gradients those by the parameters that are given,
    in the paper the kernel of the decoder's last layer. So it is a property of the batch, as batch
    statistics are: of micro-batches each has its own. The published models multiply it by 0.5 to
    0.8 outside.

    Args:
        reconstruction: Function from the parameters to the first loss of each example.
        adversarial: Function from the parameters to the second loss of each example.
        parameters: Parameters by which is differentiated, a pytree.
        weight: Weight of each example; None for 1.
        ceiling: Greatest result.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.

    Returns:
        A scalar without a gradient.

    Raises:
        ValueError: If `ceiling` is not positive, or there are no parameters.
    """
    if not ceiling > 0:
        raise ValueError(f"ceiling must be positive, got {ceiling}")
    if not jax.tree.leaves(parameters):
        raise ValueError("parameters must hold at least one array, got none")

    def norm(loss: _Loss) -> Array:
        def total(parameters: Any) -> tuple[Array, Array]:
            return weighted_sum(loss(parameters), weight)

        gradient, count = jax.grad(total, has_aux=True)(parameters)
        if axis_name is not None:
            gradient, count = lax.psum((gradient, count), axis_name)
        squares = sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient))
        return jnp.sqrt(squares) / jnp.maximum(count, 1)

    parameters = lax.stop_gradient(parameters)
    ratio = norm(reconstruction) / (norm(adversarial) + 1e-4)
    return lax.stop_gradient(jnp.minimum(ratio, ceiling))


def over_patches(game: Adversarial) -> Adversarial:
    """The game on maps of logits [B, ...]: its losses averaged over an example's patches.

    Args:
        game: Game of single logits, such as `jaxgen.losses.gan.hinge`.

    Returns:
        A game whose two functions take maps of one shape and give f32[B].
    """

    def averaged(loss: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
        def on_maps(first: Array, second: Array) -> Float[Array, " batch"]:
            if first.shape != second.shape or not first.size:
                raise ValueError(
                    f"logits must be of one shape [B, ...], got {first.shape} and {second.shape}"
                )
            values = loss(first.reshape(-1), second.reshape(-1))
            return values.reshape(first.shape[0], -1).mean(axis=1)

        return on_maps

    return Adversarial(averaged(game.discriminator), averaged(game.generator))
