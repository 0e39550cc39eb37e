"""What the recipes of continuous processes share: their flags, and the way to an experiment.

The recipes are `edm_digits`, `edm_mnist`, `edm_cifar`, `flow_digits`, `flow_cifar`, `ncsnpp_cifar`
and `ddpmpp_cifar`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxgen.augmentation.edm_augment import NUM_LABELS, edm_augment
from jaxgen.core import Family
from jaxgen.data.sources import Source
from jaxgen.families.score import Augment, Sampler, score_based
from jaxgen.models import score_unet
from jaxgen.noise import parametrization, process, times
from jaxgen.noise.log_snr import log_snr_cosine, log_snr_linear
from jaxgen.noise.parametrization import Parametrization
from jaxgen.noise.process import Level, Process
from jaxgen.noise.times import Times
from jaxgen.sampling.ode_solvers import dpm_solver, heun, unipc
from jaxgen.sampling.probability_flow import Tolerance
from jaxgen.sampling.sde_solvers import (
    dpm_solver_sde,
    euler_maruyama,
    predictor_corrector,
    reverse_diffusion,
)
from jaxgen.sampling.solvers import Solver, ancestral, euler
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment

from .diffusion import READERS, ModelConfig
from .diffusion import make_network as make_plain_network
from .images import image_experiment, load_splits
from .shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_conditioning,
)
from .text import TextConfig

NETWORKS = {
    "ncsnpp": score_unet.ncsnpp,
    "ddpmpp": score_unet.ddpmpp,
    "edm_ncsnpp": score_unet.edm_ncsnpp,
    "edm_ddpmpp": score_unet.edm_ddpmpp,
    "adm": score_unet.adm,
}
# Sinusoids are for times of a thousand steps, Song et al.'s for one less; Fourier features for any.
TIME_SCALES = {
    "ddpm": 1000.0,
    "dit": 1000.0,
    "ldm": 1000.0,
    "ddpmpp": 999.0,
    "edm_ddpmpp": 999.0,
    "adm": 1000.0,
}

Networks = Literal["ddpm", "dit", "ldm", "ncsnpp", "ddpmpp", "edm_ncsnpp", "edm_ddpmpp", "adm"]

PROCESSES: dict[str, Callable[[], Process]] = {
    "edm": process.edm,
    "rectified": process.rectified,
    "trigonometric": process.trigonometric,
    "linear": lambda: process.vp(log_snr_linear),
    "cosine": lambda: process.vp(log_snr_cosine),
    "ve": lambda: process.ve(0.02, 100.0),
    "sub_vp": process.sub_vp,
}


@dataclass(frozen=True)
class ScoreModelConfig(ModelConfig):
    """The network."""

    network: Networks = "ddpm"  # type: ignore[assignment]  # more than the base class has
    """Network: DDPM's U-Net; the transformer of `--model.dit`, to which only `condition`,
    `condition_dropout` and `remat` apply besides; latent diffusion's U-Net, whose positions read
    the condition; NCSN++ or DDPM++, as they were or in EDM's form, or ADM."""


@dataclass(frozen=True)
class ProcessConfig:
    """The process, what the network predicts of it, and which times are trained."""

    name: Literal["edm", "rectified", "trigonometric", "linear", "cosine", "ve", "sub_vp"] = "edm"
    """Process from data to noise: EDM's, straight lines, the quarter circle, variance preserving
    (linear or cosine), variance exploding (deviations from 0.02 to 100), sub-VP."""
    prediction: Literal["edm", "velocity", "eps", "negative_eps", "x0", "v"] = "edm"
    """Prediction of the network: with EDM's preconditioning, the velocity, the noise, its negative
    (the score times the deviation), the data, or v."""
    sigma_data: float = 0.5
    """Deviation of the data, for EDM's preconditioning."""
    times: Literal["log_normal", "logit_normal", "uniform"] = "log_normal"
    """Distribution of the times in training; log-normal of the ratio of noise to signal."""
    times_mean: float = -1.2
    """Mean of the log-normal or logit-normal distribution, in its log or logit."""
    times_std: float = 1.2
    """Deviation of the log-normal or logit-normal distribution, in its log or logit."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    solver: Literal[
        "heun",
        "euler",
        "dpm",
        "unipc",
        "dpm_sde",
        "euler_maruyama",
        "reverse_diffusion",
        "predictor_corrector",
        "ancestral",
    ] = "heun"
    """Solver: Heun's (two evaluations a step), Euler's, DPM-Solver++ or UniPC for the ODE;
    DPM-Solver++, Euler-Maruyama, reverse diffusion, that after a Langevin step (two evaluations a
    step) or the ancestral one for the SDE."""
    num_steps: int = 18
    """Number of steps."""
    grid: Literal["karras", "uniform", "log_snr"] = "karras"
    """Levels that are visited: EDM's, evenly spaced times, or evenly spaced log signal-to-noise
    ratios."""
    sigma_min: float = 0.002
    """Least ratio of noise to signal of EDM's levels."""
    sigma_max: float = 80.0
    """Greatest ratio of noise to signal of EDM's levels."""
    rho: float = 7.0
    """Power of EDM's levels."""
    last_time: float = 0.0
    """Last time of evenly spaced ones; evenly spaced ratios need a positive one."""
    snr: float = 0.16
    """Signal-to-noise ratio of the Langevin steps of the predictor-corrector solver."""
    clip: bool = False
    """Clip the data that the network expects to their range at every step."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance for a conditional model; 1 for none."""


@dataclass(frozen=True)
class ScoreEvaluationConfig(EvaluationConfig):
    """How `evaluate` solves the probability-flow ODE."""

    tolerance: float = 1e-4
    """Relative and absolute error of a step of the solver."""
    first_time: float = 1e-3
    """Time next to the data, where the ODE starts."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of a continuous process."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    dequantize: bool = False
    """Train on dequantized images, of which alone there is a density: for bits/dim."""
    augment: float | None = None
    """Probability of each of EDM's augmentations, of which the network is informed, beside mirrored
    images; None for none. Not with --model.network ddpm, dit or ldm."""
    model: ScoreModelConfig = ScoreModelConfig()
    text: TextConfig = TextConfig()
    process: ProcessConfig = ProcessConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3)
    average: AverageConfig = AverageConfig(decay=0.9999)
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: ScoreEvaluationConfig = operational(ScoreEvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    train, held_out = load_splits(config)
    return image_experiment(
        config,
        make_family(config, train),
        train,
        held_out,
        bits_per_dim="density under the probability-flow ODE, uniformly dequantized",
        tolerance=config.evaluation.tolerance,
        first_time=config.evaluation.first_time,
        preprocessing="2 u / 255 - 1",
    )


def make_family(
    config: Config, train: Source, image_shape: tuple[int, int, int] | None = None
) -> Family:
    """The network of the flags on its process.

    Args:
        config: Flags.
        train: Examples to train on.
        image_shape: Shape of what is denoised, where it is not the images.
    """
    model, path = config.model, PROCESSES[config.process.name]()
    conditioning = make_conditioning(
        model.condition, train, config.text, with_tokens=model.network in READERS
    )
    height, width, channels = image_shape or train.spec["image"][0]
    if config.sampler.guidance_scale != 1 and conditioning is None:
        raise ValueError("--sampler.guidance-scale needs --model.condition")
    evaluation = config.evaluation
    if not 0 < evaluation.tolerance < 1:
        raise ValueError(f"--evaluation.tolerance must lie in (0, 1), got {evaluation.tolerance:g}")
    if not 0 < evaluation.first_time < last_time(path):
        raise ValueError(
            f"--evaluation.first-time must lie in (0, {last_time(path):g}), got "
            f"{evaluation.first_time:g}"
        )
    return score_based(
        make_network(model, channels, config.precision, informed=config.augment is not None),
        path,
        make_parametrization(config, path),
        make_adam(config.optimizer),
        image_shape=(height, width, channels),
        times=make_times(config.process, path),
        sampler=make_sampler(config.sampler, path),
        dequantizes=config.dequantize,
        augment=make_augment(config.augment),
        conditioning=conditioning,
        condition_dropout=model.condition_dropout if conditioning else 0.0,
        tolerance=Tolerance(
            evaluation.tolerance,
            evaluation.tolerance,
            evaluation.first_time,
            last_time(path),
        ),
    )


def last_time(path: Process) -> float:
    """The last time at which something of the data is left, so that every prediction is defined."""
    return path.last_time if path.prior_std > 1 else 1 - 1e-4


def make_augment(probability: float | None) -> Augment | None:
    """The augmentation of the flags."""
    if probability is None:
        return None
    if not 0 <= probability <= 1:
        raise ValueError(f"--augment must lie in [0, 1], got {probability:g}")
    return lambda key, images: edm_augment(key, images, probability)


def make_network(
    model: ScoreModelConfig, channels: int, precision: str, *, informed: bool = False
) -> nn.Module:
    """The network of the flags, and whether it is informed of its images' augmentation."""
    if model.network not in NETWORKS:
        if informed:
            raise ValueError(f"--augment must be None with --model.network {model.network}")
        return make_plain_network(model, channels, precision)
    if model.scale_shift:
        raise ValueError(f"--model.scale-shift must be false with --model.network {model.network}")
    if model.num_heads != 1:
        raise ValueError(f"--model.num-heads must be 1 with --model.network {model.network}")
    return NETWORKS[model.network](
        channels=model.channels,
        multipliers=model.multipliers,
        num_res_blocks=model.num_res_blocks,
        attention_resolutions=model.attention_resolutions,
        head_width=model.head_width,
        dropout=model.dropout,
        out_channels=channels,
        augmentation_labels=NUM_LABELS if informed else 0,
        remat=model.remat,
        dtype=jnp.dtype(precision),
    )


def make_parametrization(flags: Config, path: Process) -> Parametrization:
    """What the network predicts, by the flags, and the time in the unit that the network knows."""
    config = flags.process
    predictions: dict[str, Callable[[], Parametrization]] = {
        "edm": partial(parametrization.edm, config.sigma_data),
        "velocity": partial(parametrization.velocity, path),
        "eps": lambda: parametrization.EPS,
        "negative_eps": lambda: parametrization.NEGATIVE_EPS,
        "x0": lambda: parametrization.X0,
        "v": lambda: parametrization.V,
    }
    if config.prediction == "v" and config.name in ("edm", "ve", "rectified", "sub_vp"):
        raise ValueError(
            "--process.prediction v is of a variance-preserving --process.name (linear, cosine, "
            f"trigonometric), got {config.name}"
        )
    plain = predictions[config.prediction]()
    return plain._replace(time=make_time(config, flags.model.network, plain))


def make_time(
    config: ProcessConfig, network: str, plain: Parametrization
) -> Callable[[Level], Array]:
    """The time that a network is given: in the unit in which its paper gives it."""
    if config.prediction == "edm" and network in NETWORKS:
        return plain.time  # ln(sigma) / 4
    if network in TIME_SCALES:
        return lambda level: TIME_SCALES[network] * plain.time(level)
    if config.name in ("ve", "edm"):
        return lambda level: jnp.log(0.5 * level.sigma)  # their data lie in [0, 1], ours in [-1, 1]
    return plain.time


def make_times(config: ProcessConfig, path: Process) -> Times:
    """The distribution of the times in training, by the flags."""
    mean, std = config.times_mean, config.times_std
    if config.times == "log_normal":
        return times.log_normal(mean, std, process=None if config.name == "edm" else path)
    if config.name == "edm":
        raise ValueError("--process.times must be log_normal with --process.name edm")
    if config.times == "logit_normal":
        return times.logit_normal(mean, std)
    return times.uniform(1e-5, last_time(path))


def make_sampler(config: SamplerConfig, path: Process) -> Sampler:
    """The sampler of the flags."""
    solvers: dict[str, Callable[[], Solver]] = {
        "heun": heun,
        "euler": euler,
        "dpm": dpm_solver,
        "unipc": unipc,
        "dpm_sde": dpm_solver_sde,
        "euler_maruyama": partial(euler_maruyama, path),
        "reverse_diffusion": reverse_diffusion,
        "predictor_corrector": partial(predictor_corrector, reverse_diffusion(), snr=config.snr),
        "ancestral": ancestral,
    }
    if config.grid == "log_snr" and not config.last_time > 0:
        raise ValueError(
            f"--sampler.last-time must be positive with --sampler.grid log_snr, got "
            f"{config.last_time:g}"
        )

    def grid(num_steps: int) -> Array:
        if config.grid == "karras":
            return times.karras_times(
                num_steps,
                sigma_min=config.sigma_min,
                sigma_max=config.sigma_max,
                rho=config.rho,
                process=path,
            )
        last = config.last_time
        if config.grid == "uniform":
            return times.uniform_times(num_steps, first=path.last_time, last=last)
        return times.log_snr_times(path, num_steps, last=last)

    noisiest = path.at(jnp.float32(path.last_time))
    if config.grid == "karras" and config.sigma_max * noisiest.alpha > noisiest.sigma * 1.001:
        raise ValueError(
            f"--sampler.sigma-max must be at most the process's greatest ratio of noise to signal, "
            f"{float(noisiest.sigma / noisiest.alpha):g}, got {config.sigma_max:g}"
        )
    if config.num_steps < 1:
        raise ValueError(f"--sampler.num-steps must be at least 1, got {config.num_steps}")
    evaluations = config.num_steps
    if config.solver == "heun":  # the step to the data is Euler's
        evaluations += config.num_steps - (config.grid == "karras" or config.last_time == 0)
    elif config.solver == "predictor_corrector":
        evaluations *= 2
    grid(1)  # its arguments are checked before anything is compiled
    return Sampler(
        solvers[config.solver](),
        grid,
        config.num_steps,
        evaluations,
        config.clip,
        config.guidance_scale,
    )
