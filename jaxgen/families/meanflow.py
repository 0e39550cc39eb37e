"""MeanFlow: a network of average velocities, one evaluation a sample, as a `Family`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import Aux, Batch, Family, Metrics, Optimizer, Phase, Sampling, Variables
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.families.denoising import NAME, PHASE, DenoisingNetwork
from jaxgen.losses.meanflow import adaptive, guided_velocity, identity_error
from jaxgen.noise.parametrization import MeanVelocity, Network, velocity
from jaxgen.noise.process import Process, q_sample
from jaxgen.noise.times import TimePairs, uniform_times
from jaxgen.sampling.meanflow import jump


class Adaptive(NamedTuple):
    """The weight of an example's squared error in the loss, `(error + offset)^-power`.

    Attributes:
        power: The power.
        offset: Number that keeps the weight finite.
    """

    power: float = 1.0
    offset: float = 1e-3


class Guidance(NamedTuple):
    """Classifier-free guidance that the network is trained to contain.

    Attributes:
        scale: Factor w of the example's own velocity; 1 for no guidance.
        mixing: Factor k of what the network says with the condition; with it the scale of the
            guidance is `scale / (1 - mixing)`.
    """

    scale: float = 1.0
    mixing: float = 0.0


def meanflow(
    network: nn.Module,
    process: Process,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    times: TimePairs,
    num_steps: int = 1,
    weight: Adaptive | None = None,
    guidance: Guidance | None = None,
    time_scale: float = 1.0,
    conditioning: Conditioning | None = None,
    condition_dropout: float = 0.0,
) -> Family:
    """The family of a network that says a path's average velocity (Geng et al. 2025, MeanFlow).

    Training minimizes the squared error of `jaxgen.losses.meanflow.identity_error`, summed over an
    image's dimensions and weighted by `adaptive`; the metric `squared_error` is its mean over them,
    unweighted. `evaluate` gives that of held-out images, without dropout and without guidance:
    there is no likelihood.

    The network is told two times, `(t, t - r)`, and must allow forward-mode derivatives by the data
    and by the first of them (those of `jaxgen.models` do). `sample` takes one more option,
    `num_steps`.

    Args:
        network: Module `network(x, times, condition, train=...)`, times f32[batch, 2].
        process: Process from data to noise; straight lines (`rectified`) in the paper.
        optimizer: Optimizer of all parameters.
        image_shape: Shape (H, W, C) of the images.
        times: Distribution of the pairs of times in training, `jaxgen.noise.times.pairs`.
        num_steps: Number of steps, and of evaluations, of a sample.
        weight: Weight of an example's error; None for the default.
        guidance: Guidance that the network contains; None for none.
        time_scale: Factor of the times as the network is told them.
        conditioning: Kind of condition that the network takes, or None.
        condition_dropout: Probability of training an example without its condition; with guidance
            its velocity then is the example's own.

    Raises:
        ValueError: An argument is out of its range, or there is dropout or guidance of a condition
            that the network does not take.
    """
    denoising = DenoisingNetwork(network, image_shape, conditioning, condition_dropout)
    denoising.check()
    weight, guidance = weight or Adaptive(), guidance or Guidance()
    guides = guidance != Guidance()
    if guides and conditioning is None:
        raise ValueError(f"guidance needs a conditioning, got {guidance} without one")
    if not guidance.scale > 0 or not 0 <= guidance.mixing < 1:
        raise ValueError(
            f"guidance.scale must be positive and guidance.mixing lie in [0, 1), got {guidance}"
        )
    _check_steps(num_steps)
    adaptive(jnp.ones(1), *weight)  # its numbers are checked before anything is trained

    def means(network: Network, condition: Condition | None) -> MeanVelocity:
        def mean_velocity(z: Array, r: Array, t: Array) -> Array:
            return network(z, time_scale * jnp.stack([t, t - r], axis=-1), condition)

        return mean_velocity

    def guided(variables: Variables, z: Array, v: Array, t: Array, given: Condition) -> Array:
        """The guided velocity, without a gradient."""
        assert conditioning is not None
        network, null = denoising.under(variables), conditioning.null(variables, len(z))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), given, null)
        twice, times = jnp.concatenate([z, z]), jnp.concatenate([t, t])
        said = jax.lax.stop_gradient(means(network, both)(twice, times, times))
        with_it, without = jnp.split(said.astype(jnp.float32), 2)
        return guided_velocity(v, with_it, without, guidance.scale, guidance.mixing)

    def noised(key: Key[Array, ""], x0: Array) -> tuple[Array, Array, Array, Array]:
        """Two times, the noisy data at the later one, and the velocity there."""
        key_t, key_eps = jax.random.split(key)
        t, r = times(key_t, len(x0))
        level, eps = process.at(t), standard_normal(key_eps, x0.shape)
        return t, r, q_sample(x0, eps, level), velocity(process).target(x0, eps, level)

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        key_noise, key_condition, key_dropout = jax.random.split(key, 3)
        t, r, z, v = noised(key_noise, batch["image"])
        condition = conditions.encode_batch(conditioning, variables, batch)
        replaces = condition_dropout > 0 or guides
        if conditioning is not None and condition is not None and replaces:
            left_out = jax.random.bernoulli(key_condition, condition_dropout, t.shape)
            if guides:
                own = left_out.reshape(-1, 1, 1, 1)
                v = jnp.where(own, v, guided(variables, z, v, t, condition))
            null = conditioning.null(variables, len(t))
            condition = conditions.replace(left_out, condition, null)
        trained = means(denoising.under(variables, key_dropout), condition)
        squared = _sum(jnp.square(identity_error(trained, z, v, r, t)))
        return adaptive(squared, *weight), Aux({"squared_error": squared / denoising.num_dims})

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        t, r, z, v = noised(key, batch["image"])
        condition = conditions.encode_batch(conditioning, variables, batch)
        error = identity_error(means(denoising.under(variables), condition), z, v, r, t)
        return _sum(jnp.square(error)) / denoising.num_dims, {}

    default = num_steps

    def sample(
        variables: Variables,
        key: Key[Array, ""],
        num: int,
        *,
        condition: Any = None,
        num_steps: int = default,
    ) -> Float[Array, "num height width channels"]:
        _check_steps(num_steps)
        encoded = conditions.encode(conditioning, variables, condition)
        start = process.prior_std * standard_normal(key, (num, *image_shape))
        times = uniform_times(num_steps, first=process.last_time)
        return jump(means(denoising.under(variables), encoded), times, start)

    return Family(
        denoising.init(lambda num: jnp.zeros((num, 2))),
        {PHASE: Optimizer((NAME, *conditions.trains(conditioning)), optimizer)},
        (Phase(PHASE, PHASE, loss),),
        evaluate,
        sample,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Mean flow",
        sampling=Sampling(num_steps, "evaluations of the network, each for all pixels"),
    )


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")


def _sum(values: Array) -> Float[Array, " batch"]:
    return values.reshape(len(values), -1).sum(axis=1)
