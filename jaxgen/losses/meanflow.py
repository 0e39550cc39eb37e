"""MeanFlow: the average velocity of a path, by the identity that it satisfies (Geng et al. 2025).

The average of the velocity v along the path from time t back to r, at z on the path at time t,

    u(z, r, t) = 1 / (t - r) integral_r^t v(z_s, s) ds

leads from t to r in one step, `z_r = z_t - (t - r) u`. Differentiated by t it says (eq. 6)

    u = v - (t - r) du/dt,    du/dt = v . grad_z u + d_t u

in which no integral is left: a network is trained to agree with the right side, its derivative
taken in forward mode and without a gradient. At r = t it is the velocity itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.checks import check_batch, check_same_shape
from jaxgen.noise.parametrization import MeanVelocity
from jaxgen.noise.process import expand


def identity_error(
    mean_velocity: MeanVelocity,
    z: Float[Array, "batch *dims"],
    velocity: Float[Array, "batch *dims"],
    r: Float[Array, " batch"],
    t: Float[Array, " batch"],
) -> Float[Array, "batch *dims"]:
    """What the identity leaves, `u - stop_gradient(v - (t - r) du/dt)` (eq. 10 and 11).

    Args:
        mean_velocity: The network.
        z: Noisy data at time t.
        velocity: Velocity of the path there: of the example's own, `alpha' x0 + sigma' eps`, whose
            expectation is the field's.
        r: Earlier time of each example.
        t: Later time of each example.

    Raises:
        ValueError: Noisy data and velocity of different shapes, or other numbers of times than
            examples.
    """
    check_same_shape(z=z, velocity=velocity)
    check_batch(len(z), r=r, t=t)

    def along(z: Array, t: Array) -> Array:
        return mean_velocity(z, r, t).astype(jnp.float32)

    u, rate = jax.jvp(along, (z, t), (velocity, jnp.ones_like(t)))
    return u - jax.lax.stop_gradient(velocity - expand(t - r, z.ndim) * rate)


def adaptive(
    squared: Float[Array, " batch"], power: float = 1.0, offset: float = 1e-3
) -> Float[Array, " batch"]:
    """Squared errors weighted by `stop_gradient((error + offset)^-power)` (eq. 22).

    Args:
        squared: Squared error of each example, summed over its dimensions.
        power: The power: 0 is the squared error itself, 1/2 like its root.
        offset: Number that keeps the weight finite, positive.

    Raises:
        ValueError: If the power is negative or the offset not positive.
    """
    if not power >= 0:
        raise ValueError(f"power must be at least 0, got {power}")
    if not offset > 0:
        raise ValueError(f"offset must be positive, got {offset}")
    return squared * jax.lax.stop_gradient((squared + offset) ** -power)


def guided_velocity(
    velocity: Float[Array, "batch *dims"],
    conditional: Float[Array, "batch *dims"],
    unconditional: Float[Array, "batch *dims"],
    scale: float,
    mixing: float = 0.0,
) -> Float[Array, "batch *dims"]:
    """The velocity of a field with guidance in it: `w v + k c + (1 - w - k) u` (eq. 21).

    A network trained on it needs no guidance when samples are drawn. As c tends to the guided field
    itself, the guidance is that of the scale `w / (1 - k)`.

    Args:
        velocity: Velocity v of the example's path.
        conditional: What the network says of it at r = t with the condition, c.
        unconditional: What it says without one, u.
        scale: The scale w; 1, with a mixing of 0, is no guidance.
        mixing: The mixing k.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(velocity=velocity, conditional=conditional, unconditional=unconditional)
    return scale * velocity + mixing * conditional + (1 - scale - mixing) * unconditional
