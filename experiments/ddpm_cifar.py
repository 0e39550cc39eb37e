"""DDPM on CIFAR-10 (Ho et al. 2020).

The paper's recipe: a U-Net of 35.7M parameters, 1000 linear steps, L_simple, 800k updates of 128
images, average of the parameters 0.9999. The paper reports FID 3.17 (training set, 50k samples,
1000 ancestral steps) and 3.75 bits/dim (variational bound, test set). What this code has measured
stands in docs/results.md.

    python -m experiments.ddpm_cifar --data.dir DIR          trains, or resumes
    python -m experiments.ddpm_cifar sample --num 64 --out grid.png
    python -m experiments.ddpm_cifar evaluate
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxgen import schedules
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import load
from jaxgen.data.transforms import prepare_images, to_uint8
from jaxgen.families.diffusion import Sampler, ddpm
from jaxgen.models.unet import UNet
from jaxgen.sampling.diffusion import ancestral, ddim
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.optim import adam


@dataclass(frozen=True)
class ModelConfig:
    """The U-Net."""

    channels: int = 128
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level, in units of the first's; each level halves the image."""
    num_res_blocks: int = 2
    """Residual blocks a level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes at which there is self-attention."""
    num_heads: int = 1
    """Of the attention."""
    dropout: float = 0.1
    """Inside residual blocks."""
    remat: bool = operational(False)
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The chain and its objective."""

    num_timesteps: int = 1000
    """Steps of the chain."""
    schedule: Literal["linear", "cosine", "sigmoid"] = "linear"
    """Of the betas."""
    prediction: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts."""
    weighting: Literal["simple", "snr", "snr_plus_one", "truncated_snr", "min_snr"] = "simple"
    """Of the noise levels in the loss."""
    variance: Literal["small", "large", "learned_range"] = "large"
    """Of the reverse steps."""
    class_conditional: bool = False
    """Tell the network the label."""
    label_dropout: float = 0.1
    """Share of examples trained without it (classifier-free guidance)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: float = 2e-4
    """After warm-up."""
    warmup_steps: int = 5000
    """Steps of linear warm-up."""
    clip_norm: float = 1.0
    """Greatest global norm of the gradient."""
    ema: float = 0.9999
    """Decay of the parameters' average, which is what samples and evaluations use."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    name: Literal["ancestral", "ddim"] = "ancestral"
    """The paper's sampler, or DDIM (Song et al. 2021)."""
    num_steps: int | None = None
    """Fewer steps than the chain has; None for all (ancestral) or 50 (ddim)."""
    eta: float = 0.0
    """Noise of DDIM: 0 deterministic, 1 ancestral."""
    guidance_scale: float | None = None
    """Of classifier-free guidance, for a class-conditional model."""
    preview_steps: int = 50
    """DDIM steps of the grids that training writes."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How `evaluate` estimates the bound."""

    num_examples: int | None = None
    """The first so many of the held-out examples; None for all."""
    num_timesteps: int | None = None
    """Noise levels per example, stratified and unbiased; None for the whole chain."""


@dataclass(frozen=True)
class Config(RunConfig):
    """The paper's hyper-parameters."""

    run_dir: str = operational("runs/ddpm_cifar")
    steps: int = operational(800_000)
    batch_size: int = 128
    log_every: int = operational(100)
    sample_every: int = operational(10_000)
    checkpoint_every: int = operational(5000)
    data: DataConfig = DataConfig(name="cifar10")
    flip: bool = True
    """Mirror half of the training images left to right."""
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: model, family, data."""
    data, diffusion, optimizer = config.data, config.diffusion, config.optimizer
    train = load(data.name, data.split, data.dir, resize=data.resize)
    held_out = load(data.name, data.held_out, data.dir, resize=data.resize)
    height, width, channels = train.spec["image"][0]
    num_classes = train.num_classes if diffusion.class_conditional else None
    if diffusion.class_conditional and num_classes is None:
        raise ValueError(f"--diffusion.class-conditional needs labels; {data.name} has none")

    model = UNet(
        channels=config.model.channels,
        multipliers=config.model.multipliers,
        num_res_blocks=config.model.num_res_blocks,
        attention_resolutions=config.model.attention_resolutions,
        num_heads=config.model.num_heads,
        dropout=config.model.dropout,
        out_channels=channels * (2 if diffusion.variance == "learned_range" else 1),
        num_classes=num_classes,
        remat=config.model.remat,
        dtype=jnp.dtype(config.precision),
    )
    schedule = schedules.discrete_schedule(make_betas(diffusion))
    family = functools.partial(
        ddpm,
        model,
        schedule,
        adam(
            optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            clip_norm=optimizer.clip_norm,
        ),
        image_shape=(height, width, channels),
        prediction=diffusion.prediction,
        weighting=diffusion.weighting,
        variance=diffusion.variance,
        null_label=num_classes,
        label_dropout=diffusion.label_dropout if num_classes else 0.0,
        bound_timesteps=config.evaluation.num_timesteps,
    )

    preview = SamplerConfig(
        "ddim", config.sampler.preview_steps, guidance_scale=config.sampler.guidance_scale
    )
    return Experiment(
        family=family(sampler=make_sampler(diffusion, config.sampler)),
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare_images(flip=config.flip),
        to_images=to_uint8,
        preview=family(sampler=make_sampler(diffusion, preview)).sample,
        ema=optimizer.ema,
        sample_condition=None if num_classes is None else lambda num: jnp.arange(num) % num_classes,
        num_evaluated=config.evaluation.num_examples,
        protocol={
            "bits_per_dim": "variational upper bound of the 8-bit data (discretized decoder)",
            "noise_levels": config.evaluation.num_timesteps or diffusion.num_timesteps,
            "data": held_out.protocol,
            "num_examples": min(len(held_out), config.evaluation.num_examples or len(held_out)),
            "preprocessing": "2 u / 255 - 1",
        },
    )


def make_betas(diffusion: DiffusionConfig) -> np.ndarray:
    """The betas of the chosen schedule; the linear ones scaled to the chain's length."""
    num_steps = diffusion.num_timesteps
    if diffusion.schedule == "cosine":
        return schedules.cosine_betas(num_steps)
    scale = 1000 / num_steps
    curve = {"linear": schedules.linear_betas, "sigmoid": schedules.sigmoid_betas}
    return curve[diffusion.schedule](num_steps, min(1e-4 * scale, 0.999), min(0.02 * scale, 0.999))


def make_sampler(diffusion: DiffusionConfig, sampler: SamplerConfig) -> Sampler:
    """The sampler of the flags."""
    options: dict[str, Any] = {"prediction": diffusion.prediction}
    draw: Sampler = ancestral
    if sampler.name == "ddim":
        draw = ddim
        options |= {"num_steps": sampler.num_steps or 50, "eta": sampler.eta}
    else:
        options |= {"num_steps": sampler.num_steps, "variance": diffusion.variance}
    if sampler.guidance_scale is None:
        return lambda *args, null_condition, **kwargs: draw(*args, **kwargs, **options)
    if not diffusion.class_conditional:
        raise ValueError("--sampler.guidance-scale needs --diffusion.class-conditional")
    return functools.partial(draw, guidance_scale=sampler.guidance_scale, **options)


if __name__ == "__main__":
    main(Config, build)
