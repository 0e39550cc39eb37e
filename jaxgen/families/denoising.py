"""What the families of denoising networks share: the network under its parameters, conditions."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key

from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import Batch, Denoising, LatentSpace, PyTree, Variables
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.chain import Chain
from jaxgen.noise.levels import Levels
from jaxgen.noise.parametrization import Denoise, Network, Parametrization, denoiser
from jaxgen.noise.process import Process
from jaxgen.sampling import editing
from jaxgen.sampling.guidance import Scale, clip_x0, guided
from jaxgen.sampling.ode_solvers import heun
from jaxgen.sampling.solvers import Solver, solve

NAME, PHASE = "denoiser", "denoise"
INVERSION_STEPS = 50  # of Heun's method, for encoding and decoding
REPEATS = 4  # of each step of inpainting


class DenoisingNetwork(NamedTuple):
    """A network that is told noisy data, their level and a condition.

    Attributes:
        network: Module `network(x, time, condition, train=...)`.
        image_shape: Shape (H, W, C) of the images.
        conditioning: Kind of condition that it takes, or None.
        condition_dropout: Probability of training an example without its condition.
    """

    network: nn.Module
    image_shape: tuple[int, int, int]
    conditioning: Conditioning | None
    condition_dropout: float

    def check(self) -> None:
        """Raises ValueError where an argument is out of its range."""
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(
                f"image_shape must be (height, width, channels), got {self.image_shape}"
            )
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1), got {self.condition_dropout}")
        if self.condition_dropout and self.conditioning is None:
            raise ValueError("condition_dropout needs a conditioning to leave out")

    @property
    def num_dims(self) -> int:
        """The numbers in an example."""
        return math.prod(self.image_shape)

    def under(
        self,
        variables: Variables,
        dropout: Key[Array, ""] | None = None,
        augmentation: Array | None = None,
    ) -> Network:
        """The network under its parameters; with a key it trains.

        Args:
            variables: Variables of the family.
            dropout: Key of the dropout in training; None for none.
            augmentation: Labels of each image's augmentation, of which the network is informed;
                None for images as they are.
        """
        rngs = None if dropout is None else {"dropout": dropout}
        labels: dict[str, Any] = {} if augmentation is None else {"augmentation": augmentation}

        def call(x: Array, time: Array, condition: Condition | None) -> Array:
            own = {"params": variables.params[NAME]}
            train = dropout is not None
            output: Any = self.network.apply(
                own, x, time, condition, train=train, rngs=rngs, **labels
            )
            return output

        return call

    def init(self, time: Callable[[int], Array]) -> Callable[..., Variables]:
        """The family's `init`.

        Args:
            time: Times of a batch of so many examples, of the type that the network is given.
        """

        def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
            x0 = batch["image"]
            if x0.shape[1:] != tuple(self.image_shape):
                raise ValueError(
                    f"image_shape is {self.image_shape}, but the data has {x0.shape[1:]}"
                )
            params = conditions.init(self.conditioning, jax.random.fold_in(key, 1))
            given = Variables(params, {}, fixed)
            condition = conditions.encode_batch(self.conditioning, given, batch)
            own = self.network.init(key, x0, time(len(x0)), condition, train=False)["params"]
            return Variables({**params, NAME: own}, {}, fixed)

        return init

    def training_condition(
        self, variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> Condition | None:
        """The condition of each example, now and then left out."""
        condition = conditions.encode_batch(self.conditioning, variables, batch)
        if self.conditioning is None or condition is None or not self.condition_dropout:
            return condition
        null = self.conditioning.null(variables, len(batch["image"]))
        return conditions.drop(key, condition, null, self.condition_dropout)

    def parts(
        self,
        *,
        parametrization: Parametrization,
        process: Process | Chain,
        levels: Callable[[int], Levels],
        solver: Solver,
        num_steps: int,
        scale: float,
        clip: bool,
    ) -> Denoising:
        """What samples are made by; scale and clipping are the denoiser's unless it is told."""
        self.check_guidance(scale)
        default_scale, default_clip = scale, clip

        def make(
            variables: Variables, *, scale: Scale | None = None, clip: bool | None = None
        ) -> Denoise:
            scale = default_scale if scale is None else scale
            denoise = denoiser(self.under(variables), parametrization)
            if self.conditioning is not None and (jnp.ndim(scale) or scale != 1):
                denoise = guided(denoise, self.conditioning.null(variables, 1), scale)
            return clip_x0(denoise) if (default_clip if clip is None else clip) else denoise

        def encode_condition(variables: Variables, condition: Any) -> Condition | None:
            return conditions.encode(self.conditioning, variables, condition)

        return Denoising(
            make, encode_condition, process, levels, solver, num_steps, self.image_shape
        )

    def check_guidance(self, scale: float) -> None:
        """Raises ValueError where guidance is wanted of a network without a condition."""
        if scale != 1 and self.conditioning is None:
            raise ValueError(
                f"guidance_scale must be 1 where the network takes no condition, got {scale}"
            )


def draw(
    parts: Denoising, variables: Variables, key: Key[Array, ""], num: int, condition: Any
) -> Array:
    """Samples by their parts: from noise over all levels."""
    encoded = parts.encode_condition(variables, condition)
    key_start, key_steps = jax.random.split(key)
    start = parts.process.prior_std * standard_normal(key_start, (num, *parts.shape))
    levels = parts.levels(parts.num_steps)
    denoise = parts.denoiser(variables)
    return solve(denoise, levels, parts.solver, key_steps, start, condition=encoded)


def inversion(
    parts: Denoising, conditioning: Conditioning | None
) -> tuple[Callable[..., Array], Callable[..., Array], LatentSpace]:
    """A family's `encode` and `decode`, which is its inverse, and the space of what is between.

    The probability-flow ODE by Heun's method, without guidance and clipping: latents are noise of
    an example's shape, N(0, I).
    """
    num_steps = INVERSION_STEPS
    if isinstance(parts.process, Chain):
        num_steps = min(num_steps, parts.process.num_timesteps)

    def ode(variables: Variables) -> tuple[Denoise, Levels, Solver]:
        denoise = parts.denoiser(variables, scale=1.0, clip=False)
        return denoise, parts.levels(num_steps), heun()

    def encode(variables: Variables, batch: Batch, key: Key[Array, ""]) -> Array:
        encoded = conditions.encode_batch(conditioning, variables, batch)
        noise = editing.invert(*ode(variables), batch["image"], condition=encoded)
        return noise / parts.process.prior_std

    def decode(
        variables: Variables, latents: Array, key: Key[Array, ""], *, condition: Any = None
    ) -> Array:
        encoded = parts.encode_condition(variables, condition)
        noise = parts.process.prior_std * latents
        return solve(*ode(variables), key, noise, condition=encoded)

    space = LatentSpace(editing.between, lambda key, num: standard_normal(key, (num, *parts.shape)))
    return encode, decode, space


def completion(parts: Denoising) -> Callable[..., Array]:
    """A family's `complete`: what is not known of examples is drawn to suit the rest."""

    def complete(
        variables: Variables,
        key: Key[Array, ""],
        given: Array,
        known: Array,
        *,
        condition: Any = None,
    ) -> Array:
        everywhere = jnp.broadcast_to(known[..., None], given.shape)
        solver = editing.inpainting(parts.solver, given, everywhere, repeats=REPEATS)
        return draw(parts._replace(solver=solver), variables, key, len(given), condition)

    return complete


def zeros_of_steps(num: int) -> Array:
    """The times of a chain: integers."""
    return jnp.zeros((num,), jnp.int32)
