"""Denoising diffusion: a network, a schedule and an optimizer become a `Family`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxgen.core import Aux, Batch, Bound, Family, Params, Phase, PyTree
from jaxgen.gaussian_diffusion import Denoise, q_sample
from jaxgen.losses.diffusion import denoising_loss, hybrid_loss, variational_bound
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.primitives import standard_normal
from jaxgen.sampling.diffusion import ancestral
from jaxgen.schedules import DiscreteSchedule

NAME = "denoiser"
Sampler = Callable[..., Float[Array, "num height width channels"]]


def ddpm(
    model: nn.Module,
    schedule: DiscreteSchedule,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    prediction: str = "eps",
    weighting: str = "simple",
    variance: str = "large",
    null_label: int | None = None,
    label_dropout: float = 0.0,
    sampler: Sampler | None = None,
    bound_timesteps: int | None = None,
) -> Family:
    """The family of Ho et al. 2020 and its descendants on a discrete chain.

    Training draws t uniformly and minimizes `denoising_loss` (or `hybrid_loss` where the variance
    is learned). `log_prob` is the variational lower bound of the 8-bit data in nats, `evaluate` its
    negative with the bound's terms and `bits_per_dim` as metrics.

    Args:
        model: `model(x_t, t, condition, train=...)`, a Linen module; its output has twice the
            channels where the variance is learned.
        schedule: the chain of T steps.
        optimizer: trains the one network.
        image_shape: (H, W, C) of the samples.
        prediction: what the network predicts: "eps", "x0" or "v".
        weighting: of the denoising loss, see `jaxgen.losses.diffusion.loss_weight`.
        variance: "small", "large" or "learned_range".
        null_label: the label that stands for "no condition", for classifier-free guidance; None
            where the model is not conditioned on the batch's `label`.
        label_dropout: probability of training an example with the null label.
        sampler: `(denoise, schedule, key, shape, condition=..., null_condition=...) -> x0` with its
            own options bound; ancestral sampling over all steps by default.
        bound_timesteps: noise levels at which `evaluate` and `log_prob` estimate the bound; None
            for all T.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout must lie in [0, 1), got {label_dropout}")
    if label_dropout and null_label is None:
        raise ValueError("label_dropout needs a null_label to put in the labels' place")
    if sampler is None:
        sampler = _default_sampler(prediction, variance)
    num_dims = math.prod(image_shape)
    (num_timesteps,) = schedule.betas.shape
    options: dict[str, Any] = {"prediction": prediction, "variance": variance}

    def denoiser(params: Params, key: Key[Array, ""] | None = None) -> Denoise:
        rngs = None if key is None else {"dropout": key}

        def denoise(x_t, t, condition):
            variables = {"params": params[NAME]}
            return model.apply(variables, x_t, t, condition, train=key is not None, rngs=rngs)

        return denoise

    def condition_of(batch: Batch) -> Array | None:
        return None if null_label is None else batch["label"]

    def init(key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        x0 = batch["image"]
        if x0.shape[1:] != tuple(image_shape):
            raise ValueError(f"image_shape is {image_shape}, but the data has {x0.shape[1:]}")
        t = jnp.zeros(x0.shape[:1], jnp.int32)
        variables = model.init(key, x0, t, condition_of(batch), train=False)
        return {NAME: variables["params"]}, {}

    def loss(params: Params, model_state: PyTree, batch: Batch, key: Key[Array, ""], *, train):
        x0 = batch["image"]
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        t = jax.random.randint(key_t, x0.shape[:1], 0, num_timesteps)
        eps = standard_normal(key_eps, x0.shape)
        condition = condition_of(batch)
        if null_label is not None and condition is not None and train and label_dropout:
            drop = jax.random.bernoulli(key_label, label_dropout, condition.shape)
            condition = jnp.where(drop, null_label, condition)
        denoise = denoiser(params, key_dropout if train else None)
        output = denoise(q_sample(schedule, x0, t, eps), t, condition)
        objective = hybrid_loss if variance == "learned_range" else denoising_loss
        value = objective(schedule, output, x0, t, eps, prediction=prediction, weighting=weighting)
        return value, Aux({}, model_state)

    def evaluate(params: Params, model_state: PyTree, batch: Batch, key, *, train=False):
        nats, terms = variational_bound(
            denoiser(params),
            schedule,
            batch["image"],
            key,
            num_timesteps=bound_timesteps,
            condition=condition_of(batch),
            **options,
        )
        metrics = {"bits_per_dim": bits_per_dim(nats, num_dims), **terms}
        return nats, Aux(metrics, model_state)

    def log_prob(params: Params, model_state: PyTree, batch: Batch, key) -> Array:
        return -evaluate(params, model_state, batch, key)[0]

    def sample(params: Params, model_state: PyTree, key, num: int, *, condition=None) -> Array:
        if (condition is None) != (null_label is None):
            raise ValueError(
                "condition must be given (a label for each sample) exactly where the model is "
                f"conditional: got {condition} for null_label {null_label}"
            )
        null = None if null_label is None else jnp.full_like(condition, null_label)
        shape = (num, *image_shape)
        return sampler(
            denoiser(params), schedule, key, shape, condition=condition, null_condition=null
        )

    phase = Phase("denoise", (NAME,), loss, optimizer)
    bound = Bound(
        "variational bound",
        num_dims,
        eight_bit=True,
        given=None if null_label is None else "label",
    )
    return Family(init, (phase,), evaluate, sample, log_prob, bound=bound)


def _default_sampler(prediction: str, variance: str) -> Sampler:
    def sampler(denoise, schedule, key, shape, *, condition, null_condition):
        return ancestral(
            denoise,
            schedule,
            key,
            shape,
            condition=condition,
            prediction=prediction,
            variance=variance,
        )

    return sampler
