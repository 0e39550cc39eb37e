"""Denoising diffusion: a network, a chain and an optimizer become a `Family`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
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
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.families.denoising import (
    NAME,
    PHASE,
    DenoisingNetwork,
    completion,
    draw,
    inversion,
    zeros_of_steps,
)
from jaxgen.losses import diffusion as losses
from jaxgen.losses.diffusion import Weighting, simple
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.noise.chain import Chain, Variance, large_variance, learned_variance, levels_of
from jaxgen.noise.importance import LossResampler
from jaxgen.noise.parametrization import EPS, Parametrization, ask, denoiser
from jaxgen.noise.process import Level, q_sample
from jaxgen.noise.spacing import Spacing, trailing
from jaxgen.sampling.guidance import clip_x0
from jaxgen.sampling.solvers import Solver, ancestral


class Sampler(NamedTuple):
    """How samples are drawn: nothing of it is trained, so all of it may change afterwards.

    Attributes:
        solver: The solver of the reverse process.
        num_steps: Number of steps; None for all of the chain.
        spacing: Choice of the timesteps, where they are fewer than all.
        clip: Whether the data that the network expects are clipped to [-1, 1] at every step.
        guidance_scale: Scale of classifier-free guidance; 1 for none.
    """

    solver: Solver = ancestral()
    num_steps: int | None = None
    spacing: Spacing = trailing
    clip: bool = True
    guidance_scale: float = 1.0


_DEFAULT = Sampler()
HISTORY = "loss_history"


def diffusion(
    network: nn.Module,
    chain: Chain,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    parametrization: Parametrization = EPS,
    weighting: Weighting = simple,
    learns_variance: bool = False,
    trains_bound: bool = False,
    resampler: LossResampler | None = None,
    conditioning: Conditioning | None = None,
    condition_dropout: float = 0.0,
    sampler: Sampler = _DEFAULT,
    bound_timesteps: int | None = None,
    bound_variance: Variance = large_variance,
) -> Family:
    """The family of Ho et al. 2020 and its descendants on a discrete chain.

    Training draws t and minimizes `denoising_loss`, `hybrid_loss` where the variance is learned, or
    `bound_loss`. `log_prob` is the variational lower bound of the 8-bit data in nats, `evaluate`
    its negative, with the bound's terms and `bits_per_dim` as metrics.

    `sample` takes one more option, `sampler`, in the place of the family's own.

    Args:
        network: Module `network(x_t, t, condition, train=...)`; its output has twice the channels
            where the variance is learned.
        chain: Chain of T steps.
        optimizer: Optimizer of all parameters.
        image_shape: Shape (H, W, C) of the images.
        parametrization: What the network predicts.
        weighting: Weights of the noise levels in the loss, see `jaxgen.losses.diffusion.of_x0`.
        learns_variance: Whether the network learns the variance of the reverse steps (Nichol &
            Dhariwal 2021).
        trains_bound: Whether the loss is the variational bound in nats, L_vlb, by one of its terms
            an image.
        resampler: Importance sampling of the timesteps, by what the model's state remembers of
            their losses; None for uniform ones.
        conditioning: Kind of condition that the network takes, or None.
        condition_dropout: Probability of training an example without its condition, for
            classifier-free guidance.
        sampler: How samples are drawn.
        bound_timesteps: Number of noise levels at which `evaluate` and `log_prob` estimate the
            bound; None for all T.
        bound_variance: Variance of the reverse steps in the bound, where it is not learned.

    Raises:
        ValueError: An argument is out of its range, EPS is predicted of a chain that ends in noise
            alone, or there is dropout or guidance of a condition
            that the network does not take.
    """
    denoising = DenoisingNetwork(network, image_shape, conditioning, condition_dropout)
    denoising.check()
    if parametrization is EPS and not np.min(np.asarray(chain.alphas_cumprod)) > 0:
        raise ValueError(
            "a chain that ends in noise alone (zero terminal SNR) needs parametrization V or X0: "
            "of EPS nothing follows about the data there"
        )
    if learns_variance:
        bound_variance = learned_variance
    if resampler is not None:
        resampler.check()

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        variables = denoising.init(zeros_of_steps)(key, batch, fixed)
        if resampler is None:
            return variables
        history = resampler.init(chain.num_timesteps)
        return variables._replace(state={**variables.state, HISTORY: history})

    def training_loss(
        output: Array, x0: Array, eps: Array, t: Array, level: Level
    ) -> Float[Array, " batch"]:
        if trains_bound:
            return losses.bound_loss(
                chain, output, x0, eps, t, parametrization, variance=bound_variance
            )
        if learns_variance:
            return losses.hybrid_loss(chain, output, x0, eps, t, parametrization, weighting)
        return losses.denoising_loss(output, x0, eps, level, parametrization, weighting)

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        x0 = batch["image"]
        key_t, key_eps, key_condition, key_dropout = jax.random.split(key, 4)
        if resampler is None:
            t = jax.random.randint(key_t, x0.shape[:1], 0, chain.num_timesteps)
        else:
            t, weight = resampler.draw(key_t, variables.state[HISTORY], len(x0))
        level, eps = chain.at(t), standard_normal(key_eps, x0.shape)
        condition = denoising.training_condition(variables, batch, key_condition)
        training = denoising.under(variables, key_dropout)
        output = ask(training, parametrization, q_sample(x0, eps, level), level, condition)
        value = training_loss(output, x0, eps, t, level)
        if resampler is None:
            return value, Aux()
        history = resampler.update(variables.state[HISTORY], t, value)
        return weight * value, Aux(state={**variables.state, HISTORY: history})

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        nats, terms = losses.variational_bound(
            clip_x0(denoiser(denoising.under(variables), parametrization)),
            chain,
            batch["image"],
            key,
            num_timesteps=bound_timesteps,
            variance=bound_variance,
            condition=conditions.encode_batch(conditioning, variables, batch),
        )
        return nats, {"bits_per_dim": bits_per_dim(nats, denoising.num_dims), **terms}

    def log_prob(variables: Variables, batch: Batch, key: Key[Array, ""]) -> Float[Array, " batch"]:
        return -evaluate(variables, batch, key)[0]

    default = sampler

    def parts(sampler: Sampler) -> Denoising:
        all_steps = chain.num_timesteps
        return denoising.parts(
            parametrization=parametrization,
            process=chain,
            levels=lambda num_steps: levels_of(chain, num_steps, sampler.spacing),
            solver=sampler.solver,
            num_steps=all_steps if sampler.num_steps is None else sampler.num_steps,
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
        init,
        {PHASE: Optimizer((NAME, *conditions.trains(conditioning)), optimizer)},
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
        encode=encode,
        decode=decode,
        complete=completion(own),
        latents=latents,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Diffusion",
        sampling=Sampling(
            default.num_steps or chain.num_timesteps, "denoising steps, each for all pixels"
        ),
        denoising=own,
    )
