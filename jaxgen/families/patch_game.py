"""A discriminator of patches as the adversary of families that rebuild images.

`with_game` gives any family that encodes and decodes an adversary: beside a distance of pixels and
one of features it is the third part of the loss of Dosovitskiy & Brox 2016 (DeePSiM). The other
functions are what `jaxgen.families.first_stage`, whose weight is adaptive, shares with it.

family = vae(..., perceptual=by_features(...), perceptual_weight=...)
game = PatchGame(PatchDiscriminator(), optax.adam(...), weight=..., losses=non_saturating)
family = with_game(family, game)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning.base import condition_of
from jaxgen.core import Aux, Batch, Family, Metrics, Optimizer, Phase, PyTree, Variables
from jaxgen.families import gan_balance as balance
from jaxgen.losses.adaptive import over_patches
from jaxgen.losses.gan import Adversarial, discriminator_accuracy, hinge

DISCRIMINATOR = "discriminator"
"""The discriminator's key in `Variables.params` and `Variables.state`, and its phase's name."""

Images = Float[Array, "batch height width channels"]
Values = Float[Array, " batch"]
Step = Int[Array, ""]


class PatchGame(NamedTuple):
    """The adversary of what rebuilds images.

    Attributes:
        discriminator: Module `discriminator(images, train=...) -> logits [B, ...]`, with
            `axis_name` of its batch statistics.
        optimizer: Transformation of the discriminator's gradients.
        weight: Weight of the adversarial loss of what rebuilds images; of a first stage a factor of
            its adaptive weight.
        start: The step before which there is no game.
        losses: The losses of both players, of single logits.
    """

    discriminator: nn.Module
    optimizer: optax.GradientTransformation
    weight: float = 0.5
    start: int = 0
    losses: Adversarial = hinge


def with_game(family: Family, game: PatchGame) -> Family:
    r"""A family whose reconstructions a discriminator tells from images.

    $$L(x) + w_g A(D(\hat x)), \quad \hat x = \text{decode}(\text{encode}(x))$$

    where L is the family's own loss and A the generator's loss of the game, in nats, averaged over
    patches: the weight is as it is given, not adaptive. The discriminator has a phase of its own,
    from the game's start on, and minimizes half the game's loss on images and reconstructions.

    Dosovitskiy & Brox 2016, section 2, where L is of pixels and of features, and the game is
    `non_saturating`. Theirs are reconstructions of the latent that the loss draws, here of the one
    that `encode` gives, a VAE's mean; their discriminator is shown features too, and waits while it
    is far ahead.

    Metrics of the game: "adversarial", 0 before its start, and the discriminator's logits and
    accuracies on patches. Those of the family's phases have their names as prefixes now.

    Args:
        family: Family with `encode` and `decode`, and one phase.
        game: The adversary.

    Raises:
        ValueError: If the family does not rebuild images, or from codes, has several phases or a
            network of the discriminator's name; if the game's weight or start is out of its range.
    """
    encode, decode = family.encode, family.decode
    if encode is None or decode is None or len(family.phases) != 1:
        raise ValueError("the family must have encode, decode and one phase to play a game with")
    if family.num_codes is not None:
        raise ValueError("the family encodes to codes, through which no gradient of a game goes")
    if any(DISCRIMINATOR in optimizer.trains for optimizer in family.optimizers.values()):
        raise ValueError(f"the family has a network {DISCRIMINATOR!r} of its own")
    check(game)
    (phase,) = family.phases

    def rebuild(variables: Variables, batch: Batch, key: Key[Array, ""]) -> Images:
        key_encode, key_decode = jax.random.split(key)
        condition = condition_of(family.conditioning, batch)
        latents = encode(variables, batch, key_encode)
        return decode(variables, latents, key_decode, condition=condition)

    def begin(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        variables = family.init(key, batch, fixed)
        params, state = init(game, jax.random.fold_in(key, 0x6A3E), batch["image"])
        return Variables(
            {**variables.params, DISCRIMINATOR: params},
            {**variables.state, DISCRIMINATOR: state},
            variables.fixed,
        )

    def loss(variables: Variables, batch: Batch, key: Array, step: Step) -> tuple[Values, Aux]:
        def adversarial() -> tuple[Values, Metrics]:
            term = deceive(game, variables, rebuild(variables, batch, key))
            return game.weight * term, {"adversarial": term}

        values, aux = phase.loss(variables, batch, key, step)
        term, of_game = from_step(game.start, step, adversarial)
        state = None if aux.state is None else {**variables.state, **aux.state}
        return values + term, Aux({**aux.metrics, **of_game}, state)

    def play(variables: Variables, batch: Batch, key: Array, step: Step) -> tuple[Values, Aux]:
        return discriminate(game, variables, batch["image"], rebuild(variables, batch, key))

    def watch(metrics: Mapping[str, float]) -> Sequence[str]:
        own = {name.removeprefix(f"{phase.name}/"): value for name, value in metrics.items()}
        return [*family.watch(own), *balance.warnings("hinge", DISCRIMINATOR, metrics)]

    turn = Phase(DISCRIMINATOR, DISCRIMINATOR, play, start=game.start)
    return family._replace(
        init=begin,
        optimizers={
            **family.optimizers,
            DISCRIMINATOR: Optimizer((DISCRIMINATOR,), game.optimizer),
        },
        phases=(phase._replace(loss=loss), turn),
        watch=watch,
    )


def init(game: PatchGame, key: Key[Array, ""], x: Images) -> tuple[PyTree, PyTree]:
    """The discriminator's parameters and state.

    Args:
        game: The adversary.
        key: PRNG key of the parameters.
        x: Images of the data.
    """
    judged = game.discriminator.init(key, x, train=True)
    return judged["params"], {name: v for name, v in judged.items() if name != "params"}


def deceive(game: PatchGame, variables: Variables, rebuilt: Images) -> Values:
    """The loss, f32[B], of what made images that should pass for real ones.

    Args:
        game: The adversary.
        variables: Variables with its parameters and state.
        rebuilt: Images that were made.
    """
    logits, _ = _judge(game, variables, rebuilt)
    return over_patches(game.losses).generator(logits, jnp.zeros_like(logits))


def discriminate(
    game: PatchGame, variables: Variables, x: Images, rebuilt: Images
) -> tuple[Values, Aux]:
    """The discriminator's turn: half the game's loss, f32[B], its metrics and its new state.

    Args:
        game: The adversary.
        variables: Variables with its parameters and state.
        x: Images of the data.
        rebuilt: Images that were made of them, through which no gradient goes.
    """
    real, state = _judge(game, variables, x)
    judging = variables._replace(state={**variables.state, DISCRIMINATOR: state})
    fake, state = _judge(game, judging, lax.stop_gradient(rebuilt))
    value = 0.5 * over_patches(game.losses).discriminator(real, fake)
    return value, Aux(_sides(real, fake), {**variables.state, DISCRIMINATOR: state})


def check(game: PatchGame) -> None:
    """Checks the numbers of a game.

    Raises:
        ValueError: If its weight or its start is out of its range.
    """
    if game.start < 0:
        raise ValueError(f"game.start must be at least 0, got {game.start}")
    if not 0 <= game.weight < math.inf:
        raise ValueError(f"game.weight must be 0 or more, got {game.weight}")


def from_step(
    start: int, step: Step, function: Callable[..., tuple[Values, Metrics]], *operands: Array
) -> tuple[Values, Metrics]:
    """A function's results from step `start` on; before it zeros, without any work.

    Args:
        start: Step from which on the function is called.
        step: Number of updates done.
        function: `(*operands) -> (f32[B], metrics)`.
        operands: What the function is called with.
    """
    if start == 0:
        return function(*operands)

    def nothing(*operands: Array):
        return jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *operands)
        )

    return lax.cond(step >= start, function, nothing, *operands)


def _judge(game: PatchGame, variables: Variables, x: Images) -> tuple[Array, PyTree]:
    """Logits of images, by the batch's statistics, and the discriminator's new state."""
    state = variables.state[DISCRIMINATOR]
    collections = {"params": variables.params[DISCRIMINATOR], **state}
    return game.discriminator.apply(  # type: ignore[return-value]
        collections, x, train=True, mutable=list(state)
    )


def _sides(real: Array, fake: Array) -> Metrics:
    """Mean logits of each image's patches, and the share of them that is judged rightly."""
    right = discriminator_accuracy(real.reshape(-1), fake.reshape(-1))
    names = ("real_logit", "fake_logit", "real_accuracy", "fake_accuracy")
    return {
        name: values.reshape(real.shape[0], -1).mean(axis=1)
        for name, values in zip(names, (real, fake, *right), strict=True)
    }
