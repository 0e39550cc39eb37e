"""Score-based models of continuous processes: EDM, flow matching, score SDEs as a `Family`.

One family for all of them: which process, what the network predicts, which times are trained and
how they are weighted are arguments.

    EDM                 edm(),         edm(0.5),            log_normal(-1.2, 1.2)
    rectified flow      rectified(),   velocity(process),   uniform()
    VP score SDE        vp(log_snr_linear), EPS,            uniform(1e-5, 1)
    VE score SDE        ve(),          NEGATIVE_EPS,        uniform(1e-5, 1)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Bound,
    Denoising,
    Family,
    Metrics,
    Optimizer,
    Phase,
    Sampling,
    Variables,
)
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.families.denoising import NAME, PHASE, DenoisingNetwork, completion, draw, inversion
from jaxgen.losses.diffusion import Weighting, denoising_loss, simple
from jaxgen.losses.flow import BYTE, dequantize, dequantized_bound, from_unit
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import Parametrization, ask, denoiser
from jaxgen.noise.process import Process, q_sample
from jaxgen.noise.times import Times
from jaxgen.sampling.probability_flow import Tolerance, encode_with_log_det
from jaxgen.sampling.solvers import Solver

# (key, images) -> (images, labels [B, L] of what was done to each, zero for nothing)
Augment = Callable[[Array, Array], tuple[Array, Array]]

_STRETCH = math.log(BYTE / 127.5)  # nats a dimension from [0, 1] to model space


class Sampler(NamedTuple):
    """How samples are drawn: nothing of it is trained, so all of it may change afterwards.

    Attributes:
        solver: The solver of the reverse process.
        times: The grid of times, `num_steps -> f32[num_steps + 1]`, see `jaxgen.noise.times`.
        num_steps: Number of steps.
        evaluations: Number of evaluations of the network that a sample takes.
        clip: Whether the data that the network expects are clipped to [-1, 1] at every step.
        guidance_scale: Scale of classifier-free guidance; 1 for none.
    """

    solver: Solver
    times: Callable[[int], Float[Array, " points"]]
    num_steps: int
    evaluations: int
    clip: bool = False
    guidance_scale: float = 1.0


def score_based(
    network: nn.Module,
    process: Process,
    parametrization: Parametrization,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    times: Times,
    sampler: Sampler,
    weighting: Weighting = simple,
    dequantizes: bool = False,
    augment: Augment | None = None,
    conditioning: Conditioning | None = None,
    condition_dropout: float = 0.0,
    tolerance: Tolerance | None = None,
) -> Family:
    """The family of a network that denoises along a continuous process.

    Training draws a time and noise for each image and minimizes `denoising_loss`, the mean over its
    dimensions. `log_prob` is the density under the probability-flow ODE of uniformly dequantized
    data in nats, by one probe an image (Song et al. 2021, SDE, section 4.3); `evaluate` is its
    negative, with the bound's terms and `bits_per_dim` as metrics.

    `sample` takes one more option, `sampler`, in the place of the family's own.

    Args:
        network: Module `network(x, time, condition, train=...)`.
        process: Process from data to noise.
        parametrization: What the network predicts.
        optimizer: Optimizer of all parameters.
        image_shape: Shape (H, W, C) of the images.
        times: Distribution of the times in training, see `jaxgen.noise.times`.
        sampler: How samples are drawn.
        weighting: Weights of the levels in the loss, see `jaxgen.losses.diffusion.of_x0`.
        dequantizes: Whether training too sees dequantized data, of which alone there is a density;
            without it the bound is a poor one.
        augment: Augmentation of the training images, `(key, images) -> (images, labels)`, such as
            `edm_augment`, of which the network is informed: it takes `augmentation=labels`. None
            for none.
        conditioning: Kind of condition that the network takes, or None.
        condition_dropout: Probability of training an example without its condition.
        tolerance: Tolerances and times of the ODE; None for the defaults.

    Raises:
        ValueError: An argument is out of its range, or there is dropout or guidance of a condition
            that the network does not take.
    """
    denoising = DenoisingNetwork(network, image_shape, conditioning, condition_dropout)
    denoising.check()
    if sampler.num_steps < 1:
        raise ValueError(f"sampler.num_steps must be at least 1, got {sampler.num_steps}")
    tolerance = Tolerance() if tolerance is None else tolerance

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        key_t, key_eps, key_condition, key_dropout = jax.random.split(key, 4)
        x0 = batch["image"]
        if dequantizes:
            x0 = from_unit(dequantize(jax.random.fold_in(key, 4), x0)[0])
        labels = None
        if augment is not None:
            x0, labels = augment(jax.random.fold_in(key, 5), x0)
        level, eps = process.at(times(key_t, len(x0))), standard_normal(key_eps, x0.shape)
        condition = denoising.training_condition(variables, batch, key_condition)
        training = denoising.under(variables, key_dropout, labels)
        output = ask(training, parametrization, q_sample(x0, eps, level), level, condition)
        return denoising_loss(output, x0, eps, level, parametrization, weighting), Aux()

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        condition = conditions.encode_batch(conditioning, variables, batch)
        denoise = denoiser(denoising.under(variables), parametrization)
        key_noise, key_probe = jax.random.split(key)

        def flow(x: Array) -> tuple[Array, Array]:
            solution, log_det = encode_with_log_det(
                denoise,
                process,
                from_unit(x),
                key_probe,
                condition=condition,
                tolerance=tolerance,
            )
            # From [0, 1] to model space, and from noise of the process's deviation to that of 1.
            stretch = denoising.num_dims * (_STRETCH - math.log(process.prior_std))
            return solution.x / process.prior_std, log_det + stretch

        nats, terms = dequantized_bound(flow, batch["image"], key_noise)
        return nats, {"bits_per_dim": bits_per_dim(nats, denoising.num_dims), **terms}

    def log_prob(variables: Variables, batch: Batch, key: Key[Array, ""]) -> Float[Array, " batch"]:
        return -evaluate(variables, batch, key)[0]

    default = sampler

    def parts(sampler: Sampler) -> Denoising:
        return denoising.parts(
            parametrization=parametrization,
            process=process,
            levels=lambda num_steps: levels_at(process, sampler.times(num_steps)),
            solver=sampler.solver,
            num_steps=sampler.num_steps,
            scale=sampler.guidance_scale,
            clip=sampler.clip,
        )

    own = parts(default)
    encode, decode, latents = inversion(own, conditioning)

    def sample(
        variables: Variables,
        key: Key[Array, ""],
        num: int,
        *,
        condition: Any = None,
        sampler: Sampler | None = None,
    ) -> Float[Array, "num height width channels"]:
        by = own if sampler is None else parts(sampler)
        return draw(by, variables, key, num, condition)

    return Family(
        denoising.init(jnp.zeros),
        {PHASE: Optimizer((NAME, *conditions.trains(conditioning)), optimizer)},
        (Phase(PHASE, PHASE, loss),),
        evaluate,
        sample,
        log_prob,
        Bound(
            "probability-flow ODE",
            denoising.num_dims,
            eight_bit=True,
            dequantization="uniform",
            given=conditions.key_of(conditioning),
        ),
        encode=encode,
        decode=decode,
        complete=completion(own),
        latents=latents,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Score-based",
        sampling=Sampling(default.evaluations, "evaluations of the network, each for all pixels"),
        denoising=own,
    )
