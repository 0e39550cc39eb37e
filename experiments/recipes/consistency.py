"""What the recipes of consistency models share: their flags, and the way to an experiment.

The recipe is `consistency_digits`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxgen.core import Family, Variables
from jaxgen.data.sources import Source
from jaxgen.families.consistency import Teacher, consistency
from jaxgen.families.denoising import DenoisingNetwork
from jaxgen.families.score import Sampler
from jaxgen.losses import consistency as losses
from jaxgen.losses.consistency import Distance, PairWeighting
from jaxgen.noise import consistency as levels
from jaxgen.noise.consistency import Grid, Neighbours, NumLevels
from jaxgen.noise.parametrization import Denoise, Parametrization, denoiser
from jaxgen.noise.process import edm
from jaxgen.sampling.consistency import restarts
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.runs import open_run

from . import score
from .images import image_experiment, load_splits
from .score import ProcessConfig, ScoreModelConfig
from .shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_conditioning,
)
from .text import TextConfig

DISTANCES: dict[str, Distance] = {
    "pseudo_huber": losses.pseudo_huber,
    "mean_squared": losses.mean_squared,
}
WEIGHTINGS: dict[str, PairWeighting] = {
    "inverse_width": losses.inverse_width,
    "alike": losses.alike,
}


@dataclass(frozen=True)
class ConsistencyConfig:
    """The levels of noise and the objective."""

    sigma_data: float = 0.5
    """Deviation of the data."""
    sigma_min: float = 0.002
    """Deviation of the noise next to the data."""
    sigma_max: float = 80.0
    """Deviation of the noise where sampling starts."""
    rho: float = 7.0
    """Power of the levels between."""
    schedule: Literal["doubling", "square_root", "fixed"] = "doubling"
    """Number of the levels: doubled at even distances (improved training), growing like the root
    of the steps, or the last one throughout (distillation)."""
    first: int = 10
    """Number of intervals of levels at the start."""
    last: int = 1280
    """Number of intervals of levels at the end."""
    intervals: Literal["log_normal", "uniform"] = "log_normal"
    """Intervals in training: as a log-normal level falls into them, or each alike."""
    intervals_mean: float = -1.1
    """Mean of the log-normal level's log."""
    intervals_std: float = 2.0
    """Deviation of the log-normal level's log."""
    distance: Literal["pseudo_huber", "mean_squared"] = "pseudo_huber"
    """Distance of what is said at two neighbouring levels."""
    weighting: Literal["inverse_width", "alike"] = "inverse_width"
    """Weight of an interval: the inverse of its width, or 1."""
    target_decay: float | None = None
    """Decay at the start of the average of the parameters that says the target; None for the
    parameters themselves."""


@dataclass(frozen=True)
class SamplerConfig:
    """How `sample` draws."""

    num_steps: int = 1
    """Number of steps, each an evaluation of the network."""
    clip: bool = False
    """Clip what the network says to the data's range at every step."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance for a conditional model; 1 for none."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of every recipe of a consistency model."""

    flip: bool = False
    """Mirror half of the training images left to right."""
    teacher: str | None = operational(None)
    """Run directory of the denoiser to distil; None to train from scratch. It may move, but not be
    trained on."""
    model: ScoreModelConfig = ScoreModelConfig()
    text: TextConfig = TextConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-4)
    average: AverageConfig = AverageConfig(decay=0.9999)
    sampler: SamplerConfig = operational(SamplerConfig())
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, teacher, family, data."""
    train, held_out = load_splits(config)
    return image_experiment(
        config,
        make_family(config, train),
        train,
        held_out,
        loss="distance of what is said at neighbouring levels of the last grid, weighted",
        preprocessing="2 u / 255 - 1",
    )


def make_family(config: Config, train: Source) -> Family:
    """The family of the flags."""
    flags, model = config.consistency, config.model
    conditioning = make_conditioning(model.condition, train, config.text)
    height, width, channels = train.spec["image"][0]
    if config.sampler.guidance_scale != 1 and conditioning is None:
        raise ValueError("--sampler.guidance-scale needs --model.condition")
    grid = Grid(flags.sigma_min, flags.sigma_max, flags.rho)
    grid.check()
    decay = flags.target_decay
    return consistency(
        score.make_network(model, channels, config.precision),
        edm(flags.sigma_max),
        make_parametrization(config),
        make_adam(config.optimizer),
        image_shape=(height, width, channels),
        num_levels=make_num_levels(flags, config.steps),
        neighbours=make_neighbours(flags, grid),
        sampler=make_sampler(config.sampler, grid),
        distance=DISTANCES[flags.distance],
        weighting=WEIGHTINGS[flags.weighting],
        target_decay=None if decay is None else levels.adaptive_decay(decay, flags.first),
        teacher=None if config.teacher is None else make_teacher(config, train),
        conditioning=conditioning,
        condition_dropout=model.condition_dropout if conditioning else 0.0,
    )


def make_parametrization(config: Config) -> Parametrization:
    """EDM's with the boundary; the network is told what EDM's is."""
    flags = config.consistency
    process = ProcessConfig(name="edm", prediction="edm", sigma_data=flags.sigma_data)
    plain = score.make_parametrization(score.Config(model=config.model, process=process), edm())
    return levels.boundary(flags.sigma_data, flags.sigma_min)._replace(time=plain.time)


def make_num_levels(flags: ConsistencyConfig, steps: int) -> NumLevels:
    """The number of levels by the flags."""
    schedules: dict[str, Callable[[], NumLevels]] = {
        "doubling": partial(levels.doubling, steps, flags.first, flags.last),
        "square_root": partial(levels.square_root, steps, flags.first, flags.last),
        "fixed": partial(levels.fixed, flags.last + 1),
    }
    return schedules[flags.schedule]()


def make_neighbours(flags: ConsistencyConfig, grid: Grid) -> Neighbours:
    """The distribution of the intervals by the flags."""
    if flags.intervals == "uniform":
        return levels.uniform_neighbours(grid)
    return levels.log_normal_neighbours(flags.intervals_mean, flags.intervals_std, grid)


def make_sampler(config: SamplerConfig, grid: Grid) -> Sampler:
    """The sampler of the flags."""
    times = partial(levels.restart_times, grid=grid)
    times(config.num_steps)  # it is checked before anything is compiled
    return Sampler(
        restarts(grid.sigma_min),
        times,
        config.num_steps,
        config.num_steps,
        config.clip,
        config.guidance_scale,
    )


def make_teacher(config: Config, train: Source) -> Teacher:
    """The denoiser of a run on EDM's process.

    Raises:
        ValueError: If the run is of another kind, or is told something else than the model.
    """
    assert config.teacher is not None
    run = open_run(config.teacher, data=config.data)
    flags = run.config
    if not isinstance(flags, score.Config) or flags.process.name != "edm":
        raise ValueError(
            "--teacher must be a run of a recipe with --process.name edm, such as edm_digits, got "
            f"one of {run.name}"
        )
    if flags.model.condition != config.model.condition:
        raise ValueError(
            f"--model.condition must be that of the teacher, {flags.model.condition}, got "
            f"{config.model.condition}"
        )
    height, width, channels = train.spec["image"][0]
    network = score.make_network(flags.model, channels, flags.precision)
    shape = (height, width, channels)
    denoising = DenoisingNetwork(network, shape, run.family.conditioning, 0.0)
    predicts = score.make_parametrization(flags, edm())

    def denoise(variables: Variables) -> Denoise:
        return denoiser(denoising.under(variables), predicts)

    alike = flags.model == config.model and flags.process.prediction == "edm"
    return Teacher(denoise, run.variables._replace(fixed={}), begins=alike)
