"""A scheduler of diffusers as our chain, parametrization and sampler.

    scheduler = from_config(json.loads(Path("ddpm/scheduler/scheduler_config.json").read_text()))
    family = diffusion(
        network, scheduler.chain(), optimizer, image_shape=(32, 32, 3),
        parametrization=scheduler.parametrization(), sampler=scheduler.sampler(50),
    )

Of the same noise its samples are those of diffusers' pipelines, step for step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxgen.checks import check_choice
from jaxgen.convert.diffusers_config import check_options
from jaxgen.core import PyTree
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.families.diffusion import Sampler
from jaxgen.noise.chain import (
    Chain,
    Variance,
    chain,
    cosine_betas,
    large_variance,
    learned_variance,
    linear_betas,
    root_linear_betas,
    sigmoid_betas,
    small_variance,
    zero_terminal_snr,
)
from jaxgen.noise.parametrization import EPS, X0, Parametrization, V
from jaxgen.noise.process import expand
from jaxgen.noise.spacing import NumSteps, Spacing, linspace, trailing
from jaxgen.sampling.solvers import Solver, Step, ancestral, check_falling, data_and_noise

DDPM, DDIM = "DDPMScheduler", "DDIMScheduler"
# (number of steps, first beta, last beta) -> betas
SCHEDULES: Mapping[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": linear_betas,
    "scaled_linear": root_linear_betas,
    "squaredcos_cap_v2": lambda num_steps, start, end: cosine_betas(num_steps),
    "sigmoid": sigmoid_betas,
}
PREDICTIONS: Mapping[str, Parametrization] = {"epsilon": EPS, "sample": X0, "v_prediction": V}
VARIANCES: Mapping[str, Variance] = {
    "fixed_small": small_variance,
    "fixed_small_log": small_variance,  # the same number by way of its logarithm
    "fixed_large": large_variance,
    "learned_range": learned_variance,
}
# What a config may say that our samplers do not do, and what it must say instead.
_FIXED = {"clip_sample_range": 1.0, "set_alpha_to_one": True, "thresholding": False}
# Options of the thresholding, which is off, and of a scheduler that the config was made from.
_UNUSED = ("dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps")


@dataclass(frozen=True)
class Scheduler:
    """A scheduler: its options by their names, with diffusers' defaults."""

    kind: str = DDPM
    """Class of the scheduler: `DDPMScheduler` (ancestral sampling) or `DDIMScheduler`."""
    num_train_timesteps: int = 1000
    """Number of steps of the chain."""
    beta_start: float = 1e-4
    """First beta, of the schedules that are told it."""
    beta_end: float = 0.02
    """Last beta, of the schedules that are told it."""
    beta_schedule: str = "linear"
    """Name of the schedule: `linear`, `scaled_linear`, `squaredcos_cap_v2` or `sigmoid`."""
    trained_betas: tuple[float, ...] | None = None
    """The betas themselves, in the place of a schedule; None for a schedule."""
    rescale_betas_zero_snr: bool = False
    """Whether the betas are changed so that the chain ends in noise alone."""
    prediction_type: str = "epsilon"
    """What the network predicts: `epsilon`, `sample` or `v_prediction`."""
    variance_type: str = "fixed_small"
    """Variance of ancestral steps: `fixed_small`, `fixed_small_log`, `fixed_large` or
    `learned_range`."""
    clip_sample: bool = True
    """Whether the data that the network expects are clipped to [-1, 1] at every step."""
    timestep_spacing: str = "leading"
    """Which timesteps are visited, where they are fewer than all: `leading`, `trailing` or
    `linspace`."""
    steps_offset: int = 0
    """Number that is added to each visited timestep, of the leading spacing."""

    def __post_init__(self) -> None:
        check_choice("scheduler._class_name", self.kind, (DDPM, DDIM))
        check_choice("scheduler.beta_schedule", self.beta_schedule, tuple(SCHEDULES))
        check_choice("scheduler.prediction_type", self.prediction_type, tuple(PREDICTIONS))
        check_choice("scheduler.variance_type", self.variance_type, tuple(VARIANCES))
        check_choice(
            "scheduler.timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace")
        )
        if self.num_train_timesteps < 1:
            raise ValueError(
                f"scheduler.num_train_timesteps must be at least 1, got {self.num_train_timesteps}"
            )
        given = self.trained_betas
        if given is not None and len(given) != self.num_train_timesteps:
            raise ValueError(
                f"scheduler.trained_betas must be num_train_timesteps {self.num_train_timesteps}, "
                f"got {len(given)}"
            )

    def chain(self) -> Chain:
        """The chain of the betas.

        Raises:
            ValueError: If they are no betas.
        """
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float64)
        else:
            betas = SCHEDULES[self.beta_schedule](
                self.num_train_timesteps, self.beta_start, self.beta_end
            )
        return chain(zero_terminal_snr(betas) if self.rescale_betas_zero_snr else betas)

    def parametrization(self) -> Parametrization:
        """What the network predicts."""
        return PREDICTIONS[self.prediction_type]

    def variance(self) -> Variance:
        """The variance of ancestral steps."""
        return VARIANCES[self.variance_type]

    def sampler(
        self, num_steps: int | None = None, *, eta: float = 0.0, guidance_scale: float = 1.0
    ) -> Sampler:
        """How samples are drawn.

        Of `fixed_large` or `learned_range` and timesteps that leave 0 out theirs adds noise to the
        samples at the end; ours never does.

        Args:
            num_steps: Number of steps; None for all of the chain.
            eta: Share of the noise in DDIM's steps, from 0 to 1.
            guidance_scale: Scale of classifier-free guidance; 1 for none.

        Raises:
            ValueError: If a number is out of range; if DDIM's steps would not lead from one visited
                timestep to the next, as theirs do not for some numbers; or if ancestral steps are
                given an `eta`.
        """
        total = self.num_train_timesteps
        if num_steps is not None and not 1 <= num_steps <= total:
            raise ValueError(f"num_steps must be from 1 to {total}, got {num_steps}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {eta}")
        if self.kind == DDPM and eta:
            raise ValueError(f"eta must be 0 of a {DDPM}, got {eta}")
        self._check_visited(total if num_steps is None else num_steps)
        solver, clip = ancestral(self.variance()), self.clip_sample
        if self.kind == DDIM:
            solver, clip = _ddim(eta, clips=self.clip_sample), False
        return Sampler(solver, num_steps, self.spacing(), clip, guidance_scale)

    def spacing(self) -> Spacing:
        """The choice of the timesteps."""
        spacings = {"linspace": linspace, "trailing": trailing}
        return spacings.get(self.timestep_spacing, _leading(self.steps_offset))

    def _check_visited(self, num_steps: int) -> None:
        total = self.num_train_timesteps
        last = (num_steps - 1) * (total // num_steps) + self.steps_offset
        if self.timestep_spacing == "leading" and not 0 <= self.steps_offset <= last < total:
            raise ValueError(
                f"scheduler.steps_offset must keep {num_steps} timesteps below {total}, got "
                f"{self.steps_offset}"
            )
        gap = total // num_steps  # which is how far each step of theirs leads
        leads_on = (
            num_steps == total
            or {
                "leading": self.steps_offset < gap,
                "trailing": total % num_steps == 0,
                "linspace": False,
            }[self.timestep_spacing]
        )
        if self.kind == DDIM and not leads_on:
            raise ValueError(
                f"scheduler.timestep_spacing {self.timestep_spacing!r} of a {DDIM} does not go "
                f"with {num_steps} steps of {total} and steps_offset {self.steps_offset}: theirs "
                "would lead elsewhere than to the next timestep that they visit, and to the data "
                "from the last. `trailing` needs a divisor, `leading` at least a step's length "
                f"above steps_offset, and that is {gap}"
            )


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a config.

    Args:
        config: Content of a `scheduler_config.json`.

    Raises:
        ValueError: If it is of another class, or has an option that is not known here, or of a
            value that our samplers do not do; names the option and the value.
    """
    known = {field.name for field in fields(Scheduler)} - {"kind"}
    check_options(config, {*known, *_UNUSED}, fixed=_FIXED, prefix="scheduler.")
    given = {name: value for name, value in config.items() if name in known}
    for field in fields(Scheduler):
        value, kind = given.get(field.name, field.default), type(field.default)
        accepted = (float, int) if kind is float else kind
        is_flag = isinstance(value, bool) and kind is not bool
        if field.default is not None and (is_flag or not isinstance(value, accepted)):
            raise ValueError(f"scheduler.{field.name} must be {kind.__name__}, got {value!r}")
    if (betas := given.get("trained_betas")) is not None:
        if not isinstance(betas, list | tuple) or not all(
            isinstance(b, float | int) for b in betas
        ):
            raise ValueError(f"scheduler.trained_betas must be a list of numbers, got {betas!r}")
        given["trained_betas"] = tuple(map(float, betas))
    return Scheduler(kind=config.get("_class_name", DDPM), **given)


def _leading(offset: int) -> Spacing:
    """`i floor(T / K) + offset`, i in 0..K-1: not `jaxgen.noise.spacing.leading` where K does not
    divide T."""

    def spacing(num_timesteps: int, num_steps: NumSteps) -> Int[Array, " num_timesteps"]:
        i, last = jnp.arange(num_timesteps), num_timesteps - 1
        visited = jnp.minimum(i * (num_timesteps // num_steps) + offset, last)
        return jnp.where(i < num_steps, visited, last).astype(jnp.int32)

    return spacing


def _ddim(eta: float, *, clips: bool) -> Solver:
    """DDIM whose noise is what the network says also where the data are clipped.

    `jaxgen.sampling.solvers.ddim` of a denoiser that clips takes the noise that leads from the
    clipped data to x, which they call `use_clipped_model_output`.
    """

    def step(denoise: Any, step: Step, x: Array, state: PyTree, key: Key[Array, ""]) -> Any:
        check_falling(step, "DDIM as diffusers has it")
        assert step.posterior is not None
        start, end = step.start, step.end
        x0, eps = data_and_noise(denoise, x, step)
        x0 = jnp.clip(x0, -1, 1) if clips else x0
        share = eta**2 * step.posterior.added / jnp.square(start.sigma)
        kept, drawn = (end.sigma * jnp.sqrt(jnp.maximum(part, 0)) for part in (1 - share, share))
        x = expand(end.alpha, x.ndim) * x0 + expand(kept, x.ndim) * eps
        if eta:
            x = x + expand(drawn, x.ndim) * standard_normal(key, x.shape)
        return x, state

    return Solver(lambda x: (), step)
