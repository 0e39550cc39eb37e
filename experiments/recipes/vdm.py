"""What the recipes of variational diffusion models share: their flags, the way to an experiment.

The recipe is `vdm_cifar`.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from jaxgen.core import Family
from jaxgen.data.sources import Source
from jaxgen.families.vdm import Sampler, vdm
from jaxgen.models.schedules import MonotoneSchedule, ScalarSchedule
from jaxgen.models.vdm import VDMNetwork
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

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


@dataclass(frozen=True)
class VDMModelConfig:
    """The network."""

    channels: int = 128
    """Number of channels of every block."""
    num_res_blocks: int = 32
    """Number of residual blocks on the way down; one more on the way up."""
    attends: bool = False
    """Let each of them be followed by self-attention; the middle always has one."""
    dropout: float = 0.1
    """Dropout rate inside residual blocks."""
    exponents: tuple[int, ...] = (6, 7)
    """Exponents n of the features sin(2 pi 2^n z), cos(2 pi 2^n z) that the network sees."""
    condition: Conditions = "none"
    """Condition that the network takes."""
    condition_dropout: float = 0.1
    """Share of examples that are trained without their condition (classifier-free guidance)."""
    remat: bool = operational(False)
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule, which is learned."""

    kind: Literal["scalar", "monotone"] = "scalar"
    """Form of the schedule: a line whose ends are learned, or a monotone network between them that
    in continuous time is trained for the least variance of the loss."""
    gamma_min: float = -13.3
    """Negative log signal-to-noise ratio of data, at the start."""
    gamma_max: float = 5.0
    """Negative log signal-to-noise ratio of noise, at the start."""
    features: int = 1024
    """Number of hidden units of the monotone network."""
    num_timesteps: int | None = None
    """Number of steps of the chain whose bound is trained and measured; None for continuous
    time."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    num_steps: int = 1000
    """Number of ancestral steps."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance for a conditional model; 1 for none."""
    preview_steps: int = 100
    """Number of steps of the pictures that training writes."""


@dataclass(frozen=True)
class VDMEvaluationConfig(EvaluationConfig):
    """How `evaluate` estimates the bound."""

    num_draws: int = 1
    """Number of draws of time and noise per example."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every VDM recipe."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    model: VDMModelConfig = VDMModelConfig()
    text: TextConfig = TextConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=2e-4)
    average: AverageConfig = AverageConfig(decay=0.9999)
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: VDMEvaluationConfig = operational(VDMEvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, schedule, family, data."""
    train, held_out = load_splits(config)
    family = make_family(config, train)
    sample, flags = family.sample, config.sampler
    assert sample is not None
    preview = Sampler(flags.preview_steps, guidance_scale=flags.guidance_scale)
    experiment = image_experiment(
        config,
        family,
        train,
        held_out,
        bits_per_dim="variational upper bound of the 8-bit data",
        draws=config.evaluation.num_draws,
        noise_levels=config.schedule.num_timesteps or "continuous",
        preprocessing="2 (u + 1/2) / 256 - 1",
    )
    return experiment._replace(
        preview=lambda variables, key, num, *, condition=None: sample(
            variables, key, num, condition=condition, sampler=preview
        )
    )


def make_family(config: Config, train: Source) -> Family:
    """The network and the schedule of the flags."""
    model, schedule, sampler = config.model, config.schedule, config.sampler
    conditioning = make_conditioning(model.condition, train, config.text)
    height, width, channels = train.spec["image"][0]
    if sampler.guidance_scale != 1 and conditioning is None:
        raise ValueError("--sampler.guidance-scale needs --model.condition")
    counts = {
        "sampler.num-steps": sampler.num_steps,
        "sampler.preview-steps": sampler.preview_steps,
        "evaluation.num-draws": config.evaluation.num_draws,
    }
    for flag, count in counts.items():
        if count < 1:
            raise ValueError(f"--{flag} must be at least 1, got {count}")
    return vdm(
        VDMNetwork(
            channels=model.channels,
            num_res_blocks=model.num_res_blocks,
            attends=model.attends,
            dropout=model.dropout,
            exponents=model.exponents,
            remat=model.remat,
            dtype=jnp.dtype(config.precision),
        ),
        make_schedule(schedule),
        make_adam(config.optimizer),
        image_shape=(height, width, channels),
        num_timesteps=schedule.num_timesteps,
        conditioning=conditioning,
        condition_dropout=model.condition_dropout if conditioning else 0.0,
        sampler=Sampler(sampler.num_steps, guidance_scale=sampler.guidance_scale),
        bound_draws=config.evaluation.num_draws,
    )


def make_schedule(config: ScheduleConfig) -> ScalarSchedule | MonotoneSchedule:
    """The schedule of the flags."""
    if config.kind == "scalar":
        return ScalarSchedule(config.gamma_min, config.gamma_max)
    return MonotoneSchedule(config.gamma_min, config.gamma_max, config.features)
