"""Variational diffusion models: a denoising network and a learned noise schedule as a `Family`."""

from collections.abc import Mapping
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
    Family,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.families.denoising import NAME, PHASE, DenoisingNetwork, draw
from jaxgen.losses import vdm as losses
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.schedules import INNER, MonotoneSchedule, ScalarSchedule, gamma_of
from jaxgen.noise.chain import small_variance
from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import EPS, denoiser
from jaxgen.noise.process import Level, expand, log_snr_of, vp
from jaxgen.noise.times import uniform_times
from jaxgen.sampling.solvers import Solver, ancestral

SCHEDULE = "schedule"
_TIMES = 1000.0  # what the network is given as the time of noise


class Sampler(NamedTuple):
    """How samples are drawn: nothing of it is trained, so all of it may change afterwards.

    Attributes:
        num_steps: Number of steps, at evenly spaced times.
        solver: Solver of the reverse process; the paper's has the posterior's variance.
        guidance_scale: Scale of classifier-free guidance; 1 for none.
    """

    num_steps: int = 1000
    solver: Solver = ancestral(small_variance)
    guidance_scale: float = 1.0


_DEFAULT = Sampler()


def vdm(
    network: nn.Module,
    schedule: ScalarSchedule | MonotoneSchedule,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    num_timesteps: int | None = None,
    conditioning: Conditioning | None = None,
    condition_dropout: float = 0.0,
    sampler: Sampler = _DEFAULT,
    bound_draws: int = 1,
) -> Family:
    """The family of Kingma et al. 2021, which trains network and schedule by the bound itself.

    The loss is the bound in nats (`losses.vdm.variational_bound`) at one time an image; in
    continuous time, what is between the schedule's ends is trained for the least variance.
    `evaluate` is the mean of other draws of it, with its terms and `bits_per_dim` as metrics;
    `log_prob` its negative. Samples begin with noise, and end with the bytes nearest to what the
    decoder is given.

    `sample` takes one more option, `sampler`, in the place of the family's own.

    Args:
        network: Module `network(z, time, condition, train=...)` that predicts the noise. The time
            is `1000 (gamma - gamma_min) / (gamma_max - gamma_min)`, with the ends that the
            schedule had at the start.
        schedule: Schedule that is learned, of the negative log-SNR.
        optimizer: Optimizer of all parameters.
        image_shape: Shape (H, W, C) of the images.
        num_timesteps: Number of steps T of the chain whose bound is trained and measured; None for
            continuous time.
        conditioning: Kind of condition that the network takes, or None.
        condition_dropout: Probability of training an example without its condition.
        sampler: How samples are drawn.
        bound_draws: Number of draws of time and noise by which `evaluate` estimates the bound of an
            image.

    Raises:
        ValueError: An argument is out of its range, or there is dropout or guidance of a condition
            that the network does not take.
    """
    denoising = DenoisingNetwork(network, image_shape, conditioning, condition_dropout)
    denoising.check()
    denoising.check_guidance(sampler.guidance_scale)
    counts = {
        "sampler.num_steps": sampler.num_steps,
        "num_timesteps": num_timesteps,
        "bound_draws": bound_draws,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    low, width = schedule.gamma_min, schedule.gamma_max - schedule.gamma_min

    def time(level: Level) -> Float[Array, " batch"]:
        return _TIMES / width * (-log_snr_of(level) - low)

    parametrization = EPS._replace(time=time)

    def gamma(variables: Variables) -> losses.Gamma:
        return gamma_of(schedule, variables.params[SCHEDULE])

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        variables = denoising.init(jnp.zeros)(key, batch, fixed)
        own = schedule.init(jax.random.fold_in(key, 2), jnp.zeros(1))["params"]
        return variables._replace(params={**variables.params, SCHEDULE: own})

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        key_bound, key_condition, key_dropout = jax.random.split(key, 3)
        condition = denoising.training_condition(variables, batch, key_condition)
        ends, inner = _parts(variables.params[SCHEDULE])
        by_variance = num_timesteps is None and inner is not None
        by_bound = gamma_of(schedule, ends) if by_variance else gamma(variables)
        nats, terms = losses.variational_bound(
            denoiser(denoising.under(variables, key_dropout), parametrization),
            by_bound,
            batch["image"],
            key_bound,
            num_timesteps=num_timesteps,
            inner=gamma_of(schedule, inner) if by_variance else None,
            condition=condition,
        )
        values = gamma(variables)(jnp.array([0.0, 1.0]))
        gammas = {f"gamma_{i}": jnp.full_like(nats, values[i]) for i in (0, 1)}
        return nats, Aux({**terms, **gammas})

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        condition = conditions.encode_batch(conditioning, variables, batch)

        def draw(key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
            return losses.variational_bound(
                denoiser(denoising.under(variables), parametrization),
                gamma(variables),
                batch["image"],
                key,
                num_timesteps=num_timesteps,
                condition=condition,
            )

        draws = jax.lax.map(draw, jax.random.split(key, bound_draws))
        nats, terms = jax.tree.map(lambda values: values.mean(axis=0), draws)
        return nats, {"bits_per_dim": bits_per_dim(nats, denoising.num_dims), **terms}

    def log_prob(variables: Variables, batch: Batch, key: Key[Array, ""]) -> Float[Array, " batch"]:
        return -evaluate(variables, batch, key)[0]

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
        process = vp(lambda t: -gamma(variables)(t))
        parts = denoising.parts(
            parametrization=parametrization,
            process=process,
            levels=lambda num_steps: levels_at(process, uniform_times(num_steps)),
            solver=sampler.solver,
            num_steps=sampler.num_steps,
            scale=sampler.guidance_scale,
            clip=False,
        )
        z_0 = draw(parts, variables, key, num, condition)
        return losses.from_points(z_0 / expand(process.at(jnp.zeros(num)).alpha, z_0.ndim))

    return Family(
        init,
        {PHASE: Optimizer((NAME, SCHEDULE, *conditions.trains(conditioning)), optimizer)},
        (Phase(PHASE, PHASE, loss),),
        evaluate,
        sample,
        log_prob,
        Bound(
            "variational bound",
            denoising.num_dims,
            eight_bit=True,
            given=conditions.key_of(conditioning),
        ),
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="VDM",
        sampling=Sampling(default.num_steps, "denoising steps, each for all pixels"),
    )


def _parts(params: Mapping[str, PyTree]) -> tuple[PyTree, PyTree | None]:
    """A schedule's parameters where only its ends have gradients, and where only the inner do.

    None for the latter where there are no inner ones.
    """
    if INNER not in params:
        return params, None
    still = jax.lax.stop_gradient(params)
    return {**params, INNER: still[INNER]}, {**still, INNER: params[INNER]}
