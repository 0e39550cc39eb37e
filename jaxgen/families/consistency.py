"""Consistency models, trained from scratch or distilled from a denoiser, as a `Family`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Family,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.families.denoising import NAME, PHASE, DenoisingNetwork, draw
from jaxgen.families.score import Sampler
from jaxgen.losses.consistency import (
    Distance,
    PairWeighting,
    consistency_loss,
    inverse_width,
    pseudo_huber,
)
from jaxgen.noise.consistency import Neighbours, NumLevels
from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import Denoise, Parametrization, denoiser
from jaxgen.noise.process import Process, q_sample
from jaxgen.sampling.ode_solvers import heun
from jaxgen.sampling.solvers import Step

TARGET, TEACHER = "target", "teacher"
_LAST_STEP = 2**30  # of which a schedule says what it ends with


class Teacher(NamedTuple):
    """A trained denoiser of the same process, for distillation.

    Attributes:
        denoise: `variables -> Denoise`.
        variables: What to call it with; they travel in `Variables.fixed`.
        begins: Whether the network starts from the teacher's parameters, which must be of its own
            tree and shapes.
    """

    denoise: Callable[[Variables], Denoise]
    variables: Variables
    begins: bool = True


def consistency(
    network: nn.Module,
    process: Process,
    parametrization: Parametrization,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    num_levels: NumLevels,
    neighbours: Neighbours,
    sampler: Sampler,
    distance: Distance = pseudo_huber,
    weighting: PairWeighting = inverse_width,
    target_decay: Callable[[Array], Array] | None = None,
    teacher: Teacher | None = None,
    conditioning: Conditioning | None = None,
    condition_dropout: float = 0.0,
) -> Family:
    """The family of a network that says where the path of a noisy example ends.

    Training draws two neighbouring levels and minimizes `consistency_loss` between what the network
    says at the noisier one and, without a gradient and by the same dropout, at the cleaner one. The
    cleaner example has the same noise, or with a teacher is a step of Heun's method on its ODE.
    `evaluate` is the loss of held-out examples by the number of levels that training ends with:
    there is no likelihood. `sample` takes one more option, `sampler`.

    Args:
        network: Module `network(x, time, condition, train=...)`.
        process: Process from data to noise, whose time is its deviation (`edm`).
        parametrization: What the network predicts, with a boundary at the cleanest level
            (`jaxgen.noise.consistency.boundary`).
        optimizer: Optimizer of all parameters.
        image_shape: Shape (H, W, C) of the images.
        num_levels: Number of levels at each step.
        neighbours: Distribution of the pairs of levels.
        sampler: How samples are drawn, by `jaxgen.sampling.consistency.restarts`.
        distance: Distance of the data that the network expects at the two.
        weighting: Weights of the intervals of levels.
        target_decay: Decay of the average of the parameters that says the target, by the number of
            levels; None for the parameters themselves.
        teacher: Denoiser to distil; None to train from scratch.
        conditioning: Kind of condition that the network takes, or None.
        condition_dropout: Probability of training an example without its condition.

    Raises:
        ValueError: An argument is out of its range, or there is dropout or guidance of a condition
            that the network does not take; `init`, where the teacher's parameters do not fit.
    """
    denoising = DenoisingNetwork(network, image_shape, conditioning, condition_dropout)
    denoising.check()
    denoising.check_guidance(sampler.guidance_scale)
    if sampler.num_steps < 1:
        raise ValueError(f"sampler.num_steps must be at least 1, got {sampler.num_steps}")
    arrays = dict(conditions.fixed(conditioning))
    if teacher is not None:
        arrays[TEACHER] = teacher.variables
    plain_init = denoising.init(jnp.zeros)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        variables = plain_init(key, batch, fixed)
        if teacher is not None and teacher.begins:
            begun = _begun(variables.params[NAME], fixed[TEACHER].params[NAME])
            variables = variables._replace(params={**variables.params, NAME: begun})
        if target_decay is None:
            return variables
        copied = jax.tree.map(jnp.copy, variables.params)  # a donated buffer occurs once
        return variables._replace(state={TARGET: copied})

    def pair(
        variables: Variables, x0: Array, key: Key[Array, ""], num: Array, condition: Any
    ) -> tuple[Array, Array, Array, Array]:
        """The two levels, and the examples there."""
        key_levels, key_eps, key_solver = jax.random.split(key, 3)
        low, high = neighbours(key_levels, len(x0), num)
        eps = standard_normal(key_eps, x0.shape)
        noisier = q_sample(x0, eps, process.at(high))
        if teacher is None:
            return low, high, q_sample(x0, eps, process.at(low)), noisier
        denoise = teacher.denoise(variables.fixed[TEACHER])
        step = Step(process.at(high), process.at(low), None, False, jnp.int32(0), jnp.int32(1))
        cleaner, _ = heun().step(
            lambda x, at: denoise(x, at, condition), step, noisier, (), key_solver
        )
        return low, high, jax.lax.stop_gradient(cleaner), noisier

    def compare(
        variables: Variables,
        batch: Batch,
        key: Key[Array, ""],
        num: Array,
        condition: Condition | None,
        dropout: Key[Array, ""] | None,
    ) -> Float[Array, " batch"]:
        low, high, cleaner, noisier = pair(variables, batch["image"], key, num, condition)
        averaged = variables
        if target_decay is not None:
            averaged = variables._replace(params=variables.state[TARGET])

        def says(variables: Variables, x: Array, sigma: Array) -> Array:
            denoise = denoiser(denoising.under(variables, dropout), parametrization)
            return denoise(x, process.at(sigma), condition).x0

        predicted, target = says(variables, noisier, high), says(averaged, cleaner, low)
        return consistency_loss(predicted, target, low, high, distance, weighting)

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        key_pair, key_condition, key_dropout = jax.random.split(key, 3)
        num = num_levels(step)
        condition = denoising.training_condition(variables, batch, key_condition)
        values = compare(variables, batch, key_pair, num, condition, key_dropout)
        if target_decay is None:
            return values, Aux()
        decay = target_decay(num)
        target = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * jax.lax.stop_gradient(new),
            variables.state[TARGET],
            variables.params,
        )
        return values, Aux(state={TARGET: target})

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        condition = conditions.encode_batch(conditioning, variables, batch)
        num = num_levels(jnp.int32(_LAST_STEP))
        return compare(variables, batch, key, num, condition, None), {}

    default = sampler

    def sample(
        variables: Variables,
        key: Key[Array, ""],
        num: int,
        *,
        condition: Any = None,
        sampler: Sampler | None = None,
    ) -> Float[Array, "num height width channels"]:
        sampler = default if sampler is None else sampler
        parts = denoising.parts(
            parametrization=parametrization,
            process=process,
            levels=lambda num_steps: levels_at(process, sampler.times(num_steps)),
            solver=sampler.solver,
            num_steps=sampler.num_steps,
            scale=sampler.guidance_scale,
            clip=sampler.clip,
        )
        return draw(parts, variables, key, num, condition)

    return Family(
        init,
        {PHASE: Optimizer((NAME, *conditions.trains(conditioning)), optimizer)},
        (Phase(PHASE, PHASE, loss),),
        evaluate,
        sample,
        conditioning=conditioning,
        fixed=arrays,
        name="Consistency",
        sampling=Sampling(default.evaluations, "evaluations of the network, each for all pixels"),
    )


def _begun(own: PyTree, others: PyTree) -> PyTree:
    """A copy of the teacher's parameters, where they fit."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (own, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the teacher's parameters must fit the network that starts from them; give the network "
            "the teacher's sizes, or a Teacher with begins=False"
        )
    return jax.tree.map(jnp.copy, others)
