"""StyleGAN2: the adversarial game of a generator with styles, and two lazy regularizations."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import Aux, Batch, Family, LossFn, Observe, Phase, PyTree, Variables
from jaxgen.families import gan
from jaxgen.families.gan_players import GENERATOR, Augment, Images, Players, make_players
from jaxgen.losses.gan import r1_penalty
from jaxgen.losses.path_length import path_length_penalty, path_lengths
from jaxgen.models.blocks.gan_layers import NOISE
from jaxgen.sampling.latent import normal_latents

PATH_LENGTH = "path_length"
_NONE = -1.0  # in the place of the mean length before the first turn
_NUMBERS = ("every", "shrink")  # of its options, those that count

Step = Int[Array, ""]


class PathLength(NamedTuple):
    """Path length regularization.

    Attributes:
        weight: Weight of the penalty.
        every: Steps from one turn to the next, whose weight makes up for those left out.
        shrink: Part of the batch's size, 1/shrink, that the turn's batch of latents has.
        decay: Weight of a batch's mean length in the moving average.
    """

    weight: float = 2.0
    every: int = 4
    shrink: int = 2
    decay: float = 0.01


AS_PUBLISHED = PathLength()
"""Path length regularization as the paper has it."""


def stylegan(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    *,
    loss: str = "non_saturating",
    conditioning: Conditioning | None = None,
    r1_weight: float = 10.0,
    r1_every: int = 16,
    path_length: PathLength | None = AS_PUBLISHED,
    augment: Augment | Adaptive | None = None,
    truncation: float = 1.0,
    random_noise: bool = False,
) -> Family:
    """The family of Karras et al. 2020: `gan`, and a turn of path length regularization.

    A step is the discriminator's turn, every `r1_every` steps one of R1 (`r1_weight` is gamma, of
    which the penalty has the half), the generator's turn, and every `path_length.every` steps one
    of path lengths. Both regularizations are lazy: each has a turn of its own with the same
    optimizer, and a weight that makes up for the steps left out. In the paper's appendix B the
    optimizers make up for the more updates: c = every / (every + 1) times the rate, and Adam's
    decays to the power c.

    The mean of the path lengths is part of the state, by the name "path_length"; it begins with the
    first turn's, and is updated after each turn from the whole batch on all devices, so a turn's
    lengths are compared with those of former ones. The mean style follows the generator's turns
    alone. (In the authors' code the mean of the lengths begins at 0, so the first turns shorten
    them; a batch's lengths count in the mean that they are compared with, each device has its own,
    and the mean style follows the latents of all turns. All examples of a device have their styles
    mixed, or none, from the same layer on; here each example is by itself.)

    Latents are z, f32[B, latent_dim]; `decode` takes styles too, f32[B, num_styles, style_dim],
    which `styles_of` makes of latents. `sample` and `decode` take `truncation`, the share of the
    way from the mean style to a latent's (psi): less than 1 gives more usual images, less varied
    ones. `decode` refuses it with styles, which are shown as they are: `styles_of` takes it.

    Args:
        generator: Module as `jaxgen.models.stylegan2.Generator`: `generator(z, condition,
            train=...)`, of the methods `styles` and `synthesize`.
        discriminator: Module as `gan` takes it.
        generator_optimizer: Transformation of the generator's gradients.
        discriminator_optimizer: Transformation of the discriminator's gradients.
        loss: Name of the game, a key of `jaxgen.losses.gan.ADVERSARIAL`.
        conditioning: Kind of condition that both networks take, or None for an unconditional model.
        r1_weight: Weight gamma of R1; 0 for none.
        r1_every: Steps from one turn of R1 to the next; with 1 it is in the discriminator's loss.
        path_length: Path length regularization, or None for none.
        augment: Function `(key, images) -> images`, differentiable, before every verdict in
            training; `jaxgen.augmentation.adaptive.Adaptive` (ADA); or None.
        truncation: Truncation psi where `sample` is not told another.
        random_noise: Whether samples have noise of their own, as in training, in the place of the
            constant noise.

    Raises:
        ValueError: An argument is out of its range, or an argument of `gan`'s is refused there.
    """
    _check_arguments(r1_weight, r1_every, path_length)
    _check_truncation(truncation)
    has_r1 = r1_weight > 0
    family = gan.gan(
        generator,
        discriminator,
        generator_optimizer,
        discriminator_optimizer,
        loss=loss,
        conditioning=conditioning,
        penalty=(lambda critic, real, fake, key: r1_penalty(critic, real)) if has_r1 else None,
        penalty_weight=r1_weight,
        penalty_every=r1_every if has_r1 else 1,
        augment=augment,
        standing_batches=0,
    )
    # mypy: a module's own attributes, such as `latent_dim`, are no part of its type.
    networks: tuple[Any, Any] = (generator, discriminator)
    sample, decode = _make_sampler(networks[0], conditioning, truncation, random_noise)
    family = family._replace(sample=sample, decode=decode, name="StyleGAN2")
    if path_length is None:
        return family
    players = make_players(*networks, conditioning, None, names_class=False)
    turn = Phase(
        PATH_LENGTH,
        GENERATOR,
        _path_length_loss(networks[0], players, path_length),
        every=path_length.every,
        observe=_follow(path_length.decay),
    )

    def init(key: Key[Array, ""], batch: Batch, fixed: PyTree = {}) -> Variables:  # noqa: B006
        variables = family.init(key, batch, fixed)
        return variables._replace(state={**variables.state, PATH_LENGTH: jnp.float32(_NONE)})

    return family._replace(init=init, phases=(*family.phases, turn))


def styles_of(
    generator: Any, conditioning: Conditioning | None = None
) -> Callable[..., Float[Array, "batch layers features"]]:
    """`(variables, z, *, condition=None, truncation=1.0) -> styles`, which `decode` takes.

    Args:
        generator: Module of the generator.
        conditioning: Kind of condition, or None.
    """

    def styles(
        variables: Variables,
        z: Float[Array, "batch latent"],
        *,
        condition: Any = None,
        truncation: float = 1.0,
    ) -> Float[Array, "batch layers features"]:
        encoded = conditions.encode(conditioning, variables, condition)
        return _styles(generator, variables, z, encoded, truncation=truncation)

    return styles


def _styles(
    generator: Any, variables: Variables, z: Array, condition: Condition | None, **options: Any
) -> Array:
    collections = _collections(variables)
    styles: Array = generator.apply(collections, z, condition, method="styles", **options)
    return styles


def _synthesize(
    generator: Any, variables: Variables, styles: Array, key: Key[Array, ""] | None
) -> Images:
    """Images of styles; with a key of noise drawn by it, else of the constant one."""
    rngs = {} if key is None else {NOISE: key}
    images: Array = generator.apply(_collections(variables), styles, method="synthesize", rngs=rngs)
    return images


def _collections(variables: Variables) -> dict[str, PyTree]:
    return {"params": variables.params[GENERATOR], **variables.state[GENERATOR]}


def _make_sampler(
    generator: Any, conditioning: Conditioning | None, truncation: float, random_noise: bool
) -> tuple[Callable[..., Images], Callable[..., Images]]:
    """`Family.sample` and `Family.decode`."""
    styles = styles_of(generator, conditioning)
    default = truncation

    def sample(
        variables: Variables,
        key: Key[Array, ""],
        num: int,
        *,
        condition: Any = None,
        truncation: float | None = None,
    ) -> Images:
        key_z, key_noise = jax.random.split(key)
        z = normal_latents(key_z, num, generator.latent_dim)
        return decode(variables, z, key_noise, condition=condition, truncation=truncation)

    def decode(
        variables: Variables,
        latents: Float[Array, "batch *dims"],
        key: Key[Array, ""],
        *,
        condition: Any = None,
        truncation: float | None = None,
    ) -> Images:
        psi = default if truncation is None else truncation
        _check_truncation(psi)
        w = latents
        if latents.ndim == 2:
            w = styles(variables, latents, condition=condition, truncation=psi)
        elif truncation is not None:
            raise ValueError("truncation must be None with styles: give it to styles_of")
        return _synthesize(generator, variables, w, key if random_noise else None)

    return sample, decode


def _path_length_loss(generator: Any, players: Players, options: PathLength) -> LossFn:
    def path_length_loss(variables: Variables, batch: Batch, key: Key[Array, ""], step: Step):
        num, shrink = len(batch["image"]), options.shrink
        if num % shrink:
            raise ValueError(f"path_length.shrink must divide the batch of {num}, got {shrink}")
        key_z, key_styles, key_noise, key_image = jax.random.split(key, 4)
        asked, _ = players.ask(variables, batch, jax.random.fold_in(key, 4), 1)
        condition = jax.tree.map(lambda x: x[::shrink], asked)
        z = normal_latents(key_z, num // shrink, generator.latent_dim)
        rngs = {NOISE: key_styles}
        styles = _styles(generator, variables, z, condition, train=True, rngs=rngs)

        def synthesize(styles: Array) -> Images:
            return _synthesize(generator, variables, styles, key_noise)

        # One length stands for `shrink` examples, neighbours on the same device.
        lengths = jnp.repeat(path_lengths(synthesize, styles, key_image), shrink)
        mean = variables.state[PATH_LENGTH]
        mean = jnp.where(mean == _NONE, lax.stop_gradient(lengths).mean(), mean)
        penalty = path_length_penalty(lengths, mean)
        return options.weight * options.every * penalty, Aux({"length": lengths})

    return path_length_loss


def _follow(decay: float) -> Observe:
    """The moving average of the lengths."""

    def observe(state: PyTree, means: Mapping[str, Array], step: Step) -> PyTree:
        mean, new = state[PATH_LENGTH], means["length"]
        mean = jnp.where(mean == _NONE, new, mean + decay * (new - mean))
        return {**state, PATH_LENGTH: mean}

    return observe


def _check_arguments(r1_weight: float, r1_every: int, path_length: PathLength | None) -> None:
    """Raise ValueError for what `stylegan` cannot do."""
    weights, numbers = {"r1_weight": r1_weight}, {"r1_every": r1_every}
    if path_length is not None:
        weights["path_length.weight"] = path_length.weight
        numbers |= {f"path_length.{name}": getattr(path_length, name) for name in _NUMBERS}
        if not 0 < path_length.decay <= 1:
            raise ValueError(f"path_length.decay must be in (0, 1], got {path_length.decay}")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {weight}")


def _check_truncation(truncation: float) -> None:
    if not 0 <= truncation < math.inf:
        raise ValueError(f"truncation must be finite and at least 0, got {truncation}")
