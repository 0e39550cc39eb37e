"""What the diffusion recipes share: their flags, and the way from flags to an experiment.

The recipes are `ddpm_cifar`, `ddpm_digits` and `iddpm_cifar`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from jaxgen.core import Family
from jaxgen.data.sources import Source
from jaxgen.families.diffusion import Sampler, diffusion
from jaxgen.losses import diffusion as losses
from jaxgen.losses.diffusion import Weighting
from jaxgen.models.unet import UNet, iddpm, ldm
from jaxgen.noise import chain as chains
from jaxgen.noise import spacing
from jaxgen.noise.chain import Variance
from jaxgen.noise.importance import LossResampler
from jaxgen.noise.parametrization import EPS, X0, Parametrization, V
from jaxgen.noise.spacing import Spacing
from jaxgen.sampling.solvers import ancestral, ddim
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .dit import DiTConfig, make_dit
from .images import image_experiment, load_splits
from .shared import (
    AdamConfig,
    AverageConfig,
    Conditions,
    EvaluationConfig,
    make_adam,
    make_conditioning,
)
from .text import TextConfig

PREDICTIONS: dict[str, Parametrization] = {"eps": EPS, "x0": X0, "v": V}
WEIGHTINGS: dict[str, Weighting] = {
    "simple": losses.simple,
    "snr": losses.snr,
    "snr_plus_one": losses.snr_plus_one,
    "truncated_snr": losses.truncated_snr,
    "min_snr": losses.min_snr(),
}
SPACINGS: dict[str, Spacing] = {
    "linspace": spacing.linspace,
    "leading": spacing.leading,
    "trailing": spacing.trailing,
    "quadratic": spacing.quadratic,
}
BOUND_VARIANCES: dict[str, Variance] = {
    "small": chains.small_variance,
    "large": chains.large_variance,
}
VARIANCES: dict[str, Variance | None] = {
    "default": None,
    **BOUND_VARIANCES,
    "learned": chains.learned_variance,
}


READERS = ("dit", "ldm")
"""The networks that read the tokens of a text, one by one."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    network: Literal["ddpm", "dit", "ldm"] = "ddpm"
    """Network: DDPM's U-Net; the transformer of `--model.dit`, to which only `condition`,
    `condition_dropout` and `remat` apply besides; latent diffusion's U-Net, whose positions read
    the condition."""
    channels: int = 128
    """Number of channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level, in units of the first's; each level halves the image."""
    num_res_blocks: int = 2
    """Number of residual blocks of a level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes at which there is self-attention."""
    num_heads: int = 1
    """Number of heads of the attention."""
    head_width: int | None = None
    """Width of the heads, in the place of their number."""
    scale_shift: bool = False
    """Let the time scale and shift what norms give, as in the networks of Improved DDPM."""
    dropout: float = 0.1
    """Dropout rate inside residual blocks."""
    condition: Conditions = "none"
    """Condition that the network takes."""
    condition_dropout: float = 0.1
    """Share of examples that are trained without their condition (classifier-free guidance)."""
    remat: bool = operational(False)
    """Recompute activations in the backward pass: less memory, a third more time."""
    dit: DiTConfig = DiTConfig()


@dataclass(frozen=True)
class DiffusionConfig:
    """The chain and its objective."""

    num_timesteps: int = 1000
    """Number of steps of the chain."""
    schedule: Literal["linear", "cosine", "sigmoid", "root_linear"] = "linear"
    """Schedule of the betas: linear, a cosine, a sigmoid, or with linear roots (latent
    diffusion)."""
    first_beta: float = 1e-4
    """First beta of a chain of a thousand steps; not of a cosine."""
    last_beta: float = 0.02
    """Last beta of a chain of a thousand steps; not of a cosine."""
    zero_terminal_snr: bool = False
    """Move the schedule so that its last level is noise alone; with prediction v or x0."""
    prediction: Literal["eps", "x0", "v"] = "eps"
    """Prediction of the network: the noise, the data, or v."""
    weighting: Literal["simple", "snr", "snr_plus_one", "truncated_snr", "min_snr"] = "simple"
    """Weighting of the noise levels in the loss."""
    learned_variance: bool = False
    """Let the network learn the variance of the reverse steps."""
    objective: Literal["simple", "bound"] = "simple"
    """Loss: of the denoised data (hybrid with a learned variance), or the variational bound."""
    importance: bool = False
    """Draw the timesteps as often as their losses are large, and weigh these accordingly."""
    scaled_times: bool = False
    """Give the network times of a thousand steps, however many the chain has."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    name: Literal["ancestral", "ddim"] = "ancestral"
    """Solver of the reverse process: DDPM's, or DDIM (Song et al. 2021)."""
    num_steps: int | None = None
    """Number of steps; None for all of the chain (ancestral) or 50 (ddim)."""
    spacing: Literal["default", "linspace", "leading", "trailing", "quadratic"] = "default"
    """Choice of the timesteps where they are fewer than all; by default trailing (ancestral) or
    leading (ddim)."""
    variance: Literal["default", "small", "large", "learned"] = "default"
    """Variance of the ancestral steps; by default the learned one where there is one, else the
    large one, but the small one at long steps to almost clean data."""
    eta: float = 0.0
    """Share of the noise of DDIM: 0 deterministic, 1 ancestral."""
    clip: bool = True
    """Clip the data that the network expects to their range at every step."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance for a conditional model; 1 for none."""
    preview_steps: int = 50
    """Number of DDIM steps of the pictures that training writes."""


@dataclass(frozen=True)
class DiffusionEvaluationConfig(EvaluationConfig):
    """How `evaluate` estimates the bound."""

    num_timesteps: int | None = None
    """Number of noise levels per example, stratified and unbiased; None for the whole chain."""
    variance: Literal["small", "large"] = "large"
    """Variance of the reverse steps in the bound, where it is not learned."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every diffusion recipe."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
    average: AverageConfig = AverageConfig(decay=0.9999)
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: DiffusionEvaluationConfig = operational(DiffusionEvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    train, held_out = load_splits(config)
    family = make_family(config, train)
    experiment = image_experiment(
        config,
        family,
        train,
        held_out,
        bits_per_dim="variational upper bound of the 8-bit data (discretized decoder)",
        noise_levels=config.evaluation.num_timesteps or config.diffusion.num_timesteps,
        variance="learned" if config.diffusion.learned_variance else config.evaluation.variance,
        preprocessing="2 u / 255 - 1",
    )
    return experiment._replace(preview=make_preview(config, family))


def make_preview(config: Config, family: Family) -> Callable[..., Array]:
    """The quicker sampler of the pictures that training writes.

    Args:
        config: Flags.
        family: Family of these flags.
    """
    flags = config.sampler
    preview = make_sampler(SamplerConfig("ddim", flags.preview_steps, clip=flags.clip))
    preview = preview._replace(guidance_scale=flags.guidance_scale)
    sample = family.sample
    assert sample is not None
    return lambda variables, key, num, *, condition=None: sample(
        variables, key, num, condition=condition, sampler=preview
    )


def make_family(
    config: Config, train: Source, image_shape: tuple[int, int, int] | None = None
) -> Family:
    """The network of the flags on its chain.

    Args:
        config: Flags.
        train: Examples to train on.
        image_shape: Shape of what is denoised, where it is not the images.
    """
    model, process = config.model, config.diffusion
    conditioning = make_conditioning(
        model.condition, train, config.text, with_tokens=model.network in READERS
    )
    height, width, channels = image_shape or train.spec["image"][0]
    outputs = channels * (2 if process.learned_variance else 1)
    if process.objective == "bound" and process.weighting != "simple":
        raise ValueError(
            f"--diffusion.weighting must be simple with --diffusion.objective bound, got "
            f"{process.weighting}"
        )
    network = make_network(model, outputs, config.precision)
    if config.sampler.guidance_scale != 1 and conditioning is None:
        raise ValueError("--sampler.guidance-scale needs --model.condition")
    if config.sampler.variance == "learned" and not process.learned_variance:
        raise ValueError("--sampler.variance learned needs --diffusion.learned-variance")
    return diffusion(
        network,
        chains.chain(make_betas(process)),
        make_adam(config.optimizer),
        image_shape=(height, width, channels),
        parametrization=make_parametrization(process),
        weighting=WEIGHTINGS[process.weighting],
        learns_variance=process.learned_variance,
        trains_bound=process.objective == "bound",
        resampler=LossResampler() if process.importance else None,
        conditioning=conditioning,
        condition_dropout=model.condition_dropout if conditioning else 0.0,
        sampler=make_sampler(config.sampler),
        bound_timesteps=config.evaluation.num_timesteps,
        bound_variance=BOUND_VARIANCES[config.evaluation.variance],
    )


def make_parametrization(process: DiffusionConfig) -> Parametrization:
    """What the network predicts, and the time in the unit that it is given."""
    plain = PREDICTIONS[process.prediction]
    if not process.scaled_times:
        return plain
    scale = 1000 / process.num_timesteps
    return plain._replace(time=lambda level: scale * level.time.astype(jnp.float32))


def make_network(model: ModelConfig, out_channels: int, precision: str) -> nn.Module:
    """The network of the flags.

    Raises:
        ValueError: Of flags that the network does not have.
    """
    if model.network == "dit":
        return make_dit(model.dit, out_channels, precision, remat=model.remat)
    options: dict[str, Any] = {
        "channels": model.channels,
        "multipliers": model.multipliers,
        "num_res_blocks": model.num_res_blocks,
        "attention_resolutions": model.attention_resolutions,
        "num_heads": model.num_heads,
        "head_width": model.head_width,
        "dropout": model.dropout,
        "out_channels": out_channels,
        "remat": model.remat,
        "dtype": jnp.dtype(precision),
    }
    if model.network == "ldm":
        if model.scale_shift:
            raise ValueError("--model.scale-shift must be false with --model.network ldm")
        return ldm(**options, transformer_depth=0 if model.condition == "none" else 1)
    return (iddpm if model.scale_shift else UNet)(**options)


def make_betas(process: DiffusionConfig) -> np.ndarray:
    """The betas of the flags."""
    betas = _scheduled(process)
    return chains.zero_terminal_snr(betas) if process.zero_terminal_snr else betas


def _scheduled(process: DiffusionConfig) -> np.ndarray:
    """The betas of the chosen schedule; all but the cosine's scaled to the chain's length."""
    num_steps = process.num_timesteps
    if process.schedule == "cosine":
        return chains.cosine_betas(num_steps)
    scale = 1000 / num_steps
    ends = (min(scale * beta, 0.999) for beta in (process.first_beta, process.last_beta))
    curves = {
        "linear": chains.linear_betas,
        "sigmoid": chains.sigmoid_betas,
        "root_linear": chains.root_linear_betas,
    }
    return curves[process.schedule](num_steps, *ends)


def make_sampler(sampler: SamplerConfig) -> Sampler:
    """The sampler of the flags."""
    is_ddim = sampler.name == "ddim"
    default = spacing.leading if is_ddim else spacing.trailing
    return Sampler(
        ddim(sampler.eta) if is_ddim else ancestral(VARIANCES[sampler.variance]),
        sampler.num_steps or (50 if is_ddim else None),
        SPACINGS.get(sampler.spacing, default),
        sampler.clip,
        sampler.guidance_scale,
    )
