"""Generative adversarial networks: two networks and two optimizers become a `Family`."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Int, Key

from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Evaluate,
    Family,
    LossFn,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.families import gan_balance as balance
from jaxgen.families.gan_adaptive import with_adaptation
from jaxgen.families.gan_auxiliary import Auxiliary, Naming, naming
from jaxgen.families.gan_players import (
    DISCRIMINATOR,
    GENERATOR,
    Augment,
    Images,
    Players,
    check_conditioned,
    make_init,
    make_players,
    make_sampler,
    outside_maps,
    with_state,
    wrong_pairs,
)
from jaxgen.losses import gan as losses
from jaxgen.sampling.latent import normal_space

PENALTY = "penalty"

Step = Int[Array, ""]
# (critic, real, fake, key) -> f32[B]
Penalty = Callable[[Callable[[Array], Array], Array, Array, Key[Array, ""]], Array]


class _Game(NamedTuple):
    """What both players' losses are made of, beside penalties.

    Attributes:
        name: Name of the game, a key of `losses.ADVERSARIAL`.
        classifier: Weights of the auxiliary classifier and what it names, or None.
    """

    name: str
    classifier: tuple[Auxiliary, Naming] | None


def gan(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    *,
    loss: str = "non_saturating",
    conditioning: Conditioning | None = None,
    discriminator_repeats: int = 1,
    fakes_per_real: int = 1,
    penalty: Penalty | None = None,
    penalty_weight: float = 10.0,
    penalty_every: int = 1,
    auxiliary: Auxiliary | None = None,
    augment: Augment | Adaptive | None = None,
    consistency_augment: Augment | None = None,
    consistency_weight: float = 10.0,
    mismatch: float = 0.0,
    kl_weight: float = 0.0,
    frozen: Mapping[str, PyTree] = MappingProxyType({}),
    truncation: float | None = None,
    standing_batches: int = 16,
) -> Family:
    """The family of Goodfellow et al. 2014: a generator and a discriminator, in turns.

    A step is `discriminator_repeats` updates of the discriminator, each on its own slice of the
    batch, on fakes for the conditions of the slice, then one of the generator, on fakes for classes
    drawn afresh. Other conditions than classes are those of the first slice: draws too, of what the
    data has, so that no two attributes exclude each other. The latents are `N(0, I)`. `evaluate` is
    the discriminator's loss on held-out images and fresh fakes: not a measure of the samples'
    quality, but an overfitted discriminator shows.

    A `penalty` is part of the discriminator's loss; with `penalty_every` = n > 1 it is *lazy*
    (Karras et al. 2020, StyleGAN2, section 4.1): a phase of its own after the discriminator's turn,
    every n-th step, which minimizes `penalty_weight n penalty` with the discriminator's optimizer
    and its moments. Its passes through the discriminator leave the state as it is.

    A `conditioning` whose encoder is trained learns in the discriminator's turn, from what the
    discriminator says of pairs of images and conditions; the generator could make it forget what
    tells conditions apart.

    With a `mismatch` m the discriminator refuses *wrong* pairs too (Reed et al. 2016, GAN-CLS;
    Zhang et al. 2017, StackGAN, whose m is 1/2): real images, each with the condition of the next
    example of the batch (on its device under pmap).

        real(x, c) + (1 - m) fake(G(z, c), c) + m fake(x, c')

    Where the next example's condition is the same (two captions that differ by a word are not) the
    pair would be right: there m is 0. With a `kl_weight` the generator draws a code of its
    condition (conditioning augmentation); its loss has the weight times `losses.augmentation_kl`.

    With batch normalization `sample` and `decode` use *standing statistics* (Brock et al. 2019,
    section 3.3): the generator's batch statistics, averaged over `standing_batches` batches of
    fresh latents. So they fit the averaged parameters, which the running statistics do not.

    Args:
        generator: Module `generator(z, condition, train=...) -> images`, with the attributes
            `latent_dim`, and `momentum` and `axis_name` of its batch statistics, if it has some. In
            training it has a stream of random numbers, `gan_layers.NOISE`.
        discriminator: Module `discriminator(images, condition, train=...) -> Verdict`, with the
            attributes `mixes_examples`, whether a verdict depends on the batch (if not, real and
            fake images go through it together), and `batch_statistics`, whether by batch
            normalization, which no penalty allows.
        generator_optimizer: Transformation of the generator's gradients.
        discriminator_optimizer: Transformation of the discriminator's gradients; another learning
            rate than the generator's is TTUR (Heusel et al. 2017).
        loss: Name of the game, a key of `jaxgen.losses.gan.ADVERSARIAL`.
        conditioning: Kind of condition that both networks take, or None for an unconditional model.
        discriminator_repeats: Updates of the discriminator a step, n_dis or n_critic.
        fakes_per_real: Size of the generator's batch, in slices of the discriminator.
        penalty: Function `(critic, real, fake, key) -> f32[B]`, such as `losses.gradient_penalty`,
            or None.
        penalty_weight: Weight of the penalty.
        penalty_every: Steps from one turn of the penalty to the next; with 1 it is in the
            discriminator's loss.
        auxiliary: Weights of the auxiliary classifier of classes or attributes, which the
            discriminator must have and is then not told the condition, or None.
        augment: Function `(key, images) -> images`, differentiable, before every verdict in
            training (`jaxgen.augmentation.diff_augment`); one whose probability follows the
            verdicts (`jaxgen.augmentation.adaptive`); or None. Penalties are of the gradient in
            the images before it.
        consistency_augment: Function `(key, images) -> images` of real images under which the
            verdict should not change (Zhang et al. 2020), or None.
        consistency_weight: Weight of that change.
        mismatch: Share of wrong pairs in what the discriminator is to refuse, in [0, 1].
        kl_weight: Weight of the divergence of the generator's code of a condition from N(0, I);
            the generator then has a method `condition_code(condition) -> (mean, log sigma)`.
        frozen: Parameters of parts of the generator that are not trained, by the part's name, such
            as a first stage; they travel in `Variables.fixed`, under the generator's name.
        truncation: Threshold of the latents of `sample` (`normal_latents`), or None for none.
        standing_batches: Batches of the standing statistics; 0 for the running statistics.

    Raises:
        ValueError: An argument is out of its range, the penalty needs a discriminator without
            batch normalization, the auxiliary classifier is not of what the conditions are, there
            is no condition for wrong pairs or codes, or `init` finds a frozen part of another
            network.
    """
    _check_arguments(
        discriminator,
        penalty,
        penalty_every,
        discriminator_repeats=(discriminator_repeats, 1),
        fakes_per_real=(fakes_per_real, 1),
        standing_batches=(standing_batches, 0),
    )
    losses.adversarial(loss)  # refuses an unknown one
    if mismatch and auxiliary is not None:
        raise ValueError("mismatch must be 0 with an auxiliary classifier, which names the class")
    check_conditioned(generator, conditioning, mismatch=mismatch, kl_weight=kl_weight)
    game = _Game(loss, None)
    if auxiliary is not None:
        game = _Game(loss, (auxiliary, naming(conditioning, discriminator)))
    # mypy: a module's own attributes, such as `latent_dim`, are no part of its type.
    networks: tuple[Any, Any] = (generator, discriminator)
    names_class = auxiliary is not None
    players = make_players(*networks, conditioning, augment, names_class=names_class)
    penalize = None if penalty is None else _penalizer(players, penalty)
    discriminator_loss = _discriminator_loss(
        players,
        game,
        consistency_augment,
        consistency_weight,
        penalize if penalty_every == 1 else None,
        penalty_weight,
        mismatch,
    )
    phases = [Phase(DISCRIMINATOR, DISCRIMINATOR, discriminator_loss, discriminator_repeats)]
    if penalize is not None and penalty_every > 1:
        lazy = _penalty_loss(players, penalize, penalty_weight * penalty_every)
        phases.append(Phase(PENALTY, DISCRIMINATOR, lazy, discriminator_repeats, penalty_every))
    generator_loss = _generator_loss(players, game, fakes_per_real, kl_weight)
    phases.append(Phase(GENERATOR, GENERATOR, generator_loss))
    held_out = make_players(
        outside_maps(generator), discriminator, conditioning, None, names_class=names_class
    )
    sample, decode = make_sampler(generator, conditioning, truncation, standing_batches)
    trained = (DISCRIMINATOR, *conditions.trains(conditioning))
    family = Family(
        init=make_init(*networks, conditioning, names_class=names_class, frozen=frozen),
        optimizers={
            DISCRIMINATOR: Optimizer(trained, discriminator_optimizer),
            GENERATOR: Optimizer((GENERATOR,), generator_optimizer),
        },
        phases=tuple(phases),
        evaluate=_evaluation(held_out, game, mismatch),
        sample=sample,
        decode=decode,
        latents=normal_space(networks[0].latent_dim, truncation),
        conditioning=conditioning,
        watch=functools.partial(balance.warnings, loss, DISCRIMINATOR),
        fixed={**conditions.fixed(conditioning), **({GENERATOR: dict(frozen)} if frozen else {})},
        name="GAN",
        sampling=Sampling(1, "one pass of the generator for all pixels"),
    )
    return with_adaptation(family, augment) if isinstance(augment, Adaptive) else family


def _discriminator_loss(
    players: Players,
    game: _Game,
    consistency_augment: Augment | None,
    consistency_weight: float,
    penalize: Callable[..., Array] | None,
    penalty_weight: float,
    mismatch: float,
) -> LossFn:
    def discriminator_loss(variables: Variables, batch: Batch, key: Key[Array, ""], step: Step):
        real, condition = batch["image"], players.encode(variables, batch)
        key_z, key_real, key_fake, key_penalty, key_twin = jax.random.split(key, 5)
        fake = _fakes(players, variables, key_z, batch, condition)
        shown = functools.partial(players.shown, variables)
        groups = [shown(key_real, real), shown(key_fake, fake)]
        if consistency_augment is not None:
            groups.append(shown(key_real, consistency_augment(key_twin, real)))
        verdicts, state = players.judge(variables, groups, condition, train=True)
        value, metrics = _compare(game, verdicts, real, fake, players.conditions(batch))
        if mismatch:
            judging = with_state(variables, DISCRIMINATOR, state)
            on_wrong, differs, state = wrong_pairs(players, judging, batch, groups[0], train=True)
            share = mismatch * differs
            value, metrics = _refuse(game.name, share, verdicts, on_wrong, value, metrics)
        if consistency_augment is not None:
            change = losses.consistency_penalty(verdicts[0].logits, verdicts[2].logits)
            metrics["consistency"] = change
            value = value + consistency_weight * change
        if penalize is not None:
            metrics["penalty"] = penalize(variables, (real, fake), condition, key_penalty)
            value = value + penalty_weight * metrics["penalty"]
        return value, Aux(metrics, {**variables.state, DISCRIMINATOR: state})

    return discriminator_loss


def _fakes(
    players: Players,
    variables: Variables,
    key: Key[Array, ""],
    batch: Batch,
    condition: Condition | None,
) -> Images:
    """Fakes for the discriminator's turn, in which nothing learns by changing them.

    A condition's encoder that is trained in that turn would learn to spoil the fakes.
    """
    fake, _ = players.generate(variables, key, batch["image"].shape[0], condition)
    return lax.stop_gradient(fake)


def _penalizer(players: Players, penalty: Penalty) -> Callable[..., Array]:
    """`(variables, (real, fake), condition, key) -> f32[B]`, the penalty on real and fake."""

    def penalize(
        variables: Variables,
        images: tuple[Array, Array],
        condition: Condition | None,
        key: Key[Array, ""],
    ) -> Array:
        def critic(x: Array) -> Array:
            x = players.shown(variables, jax.random.fold_in(key, 1), x)
            (verdict,), _ = players.judge(variables, [x], condition, train=False)
            return verdict.logits

        return penalty(critic, *images, key)

    return penalize


def _penalty_loss(players: Players, penalize: Callable[..., Array], weight: float) -> LossFn:
    """The penalty alone, on fakes as the discriminator's loss draws them."""

    def penalty_loss(variables: Variables, batch: Batch, key: Key[Array, ""], step: Step):
        real, condition = batch["image"], players.encode(variables, batch)
        key_z, _, _, key_penalty, _ = jax.random.split(key, 5)
        fake = _fakes(players, variables, key_z, batch, condition)
        value = penalize(variables, (real, fake), condition, key_penalty)
        return weight * value, Aux({"penalty": value})

    return penalty_loss


def _generator_loss(players: Players, game: _Game, fakes_per_real: int, kl_weight: float) -> LossFn:
    def generator_loss(variables: Variables, batch: Batch, key: Key[Array, ""], step: Step):
        real, condition = batch["image"], players.encode(variables, batch)
        several, asked = players.ask(variables, batch, jax.random.fold_in(key, 3), fakes_per_real)
        key_z, key_fake, key_real = jax.random.split(key, 3)
        fake, state = players.generate(variables, key_z, real.shape[0] * fakes_per_real, several)
        groups = [players.shown(variables, key_fake, fake)]
        (on_fake,), _ = players.judge(variables, groups, several, train=True)
        real_logits = jnp.zeros_like(on_fake.logits)
        if game.name == "relativistic_average":
            groups = [players.shown(variables, key_real, real)]
            (on_real,), _ = players.judge(variables, groups, condition, train=True)
            real_logits = jnp.repeat(on_real.logits, fakes_per_real)
        value = losses.adversarial(game.name).generator(on_fake.logits, real_logits)
        if game.classifier is not None:
            weights, named = game.classifier
            assert asked is not None
            entropy = named.loss(on_fake.class_logits, asked)
            value = weights.game * value + weights.generator * entropy
        value = value.reshape(real.shape[0], fakes_per_real).mean(axis=1)
        metrics = {}
        if kl_weight:
            kl = losses.augmentation_kl(*players.code(variables, several))
            metrics["kl"] = kl.reshape(real.shape[0], fakes_per_real).mean(axis=1)
            value = value + kl_weight * metrics["kl"]
        return value, Aux(metrics, {**variables.state, GENERATOR: state})

    return generator_loss


def _evaluation(players: Players, game: _Game, mismatch: float) -> Evaluate:
    def evaluate(variables: Variables, batch: Batch, key: Key[Array, ""]):
        real, condition = batch["image"], players.encode(variables, batch)
        key_z, *_ = jax.random.split(key, 5)  # as in training
        # The generator by its batch statistics, as in training: they fit any parameters.
        fake, _ = players.generate(variables, key_z, real.shape[0], condition)
        verdicts, _ = players.judge(variables, [real, fake], condition, train=False)
        value, metrics = _compare(game, verdicts, real, fake, players.conditions(batch))
        if mismatch:
            on_wrong, differs, _ = wrong_pairs(players, variables, batch, real, train=False)
            share = mismatch * differs
            value, metrics = _refuse(game.name, share, verdicts, on_wrong, value, metrics)
        return value, metrics

    return evaluate


def _compare(game: _Game, verdicts: list[Any], real: Images, fake: Images, condition: Array | None):
    """The discriminator's loss, without penalties, and metrics of the two players' balance."""
    logits = verdicts[0].logits, verdicts[1].logits
    metrics = {**balance.observe(game.name, *logits), "diversity": balance.diversity(fake, real)}
    value = losses.adversarial(game.name).discriminator(*logits)
    if game.classifier is None:
        return value, metrics
    weights, named = game.classifier
    assert condition is not None
    value = weights.game * value
    for side, verdict in zip(("real", "fake"), verdicts, strict=False):
        value = value + getattr(weights, side) * named.loss(verdict.class_logits, condition)
        metrics[f"{side}_class_accuracy"] = named.right(verdict.class_logits, condition)
    return value, metrics


def _refuse(
    loss: str, share: Array, verdicts: list[Any], on_wrong: Any, value: Array, metrics: Metrics
):
    """The discriminator's loss and metrics, with wrong pairs as a share of what it refuses."""
    logits = verdicts[0].logits, on_wrong.logits
    value = (1 - share) * value + share * losses.adversarial(loss).discriminator(*logits)
    seen = balance.observe(loss, *logits)
    wrong = {"wrong_logit": seen["fake_logit"], "wrong_accuracy": seen["fake_accuracy"]}
    return value, {**metrics, **wrong}


def _check_arguments(
    discriminator: Any,
    penalty: Penalty | None,
    penalty_every: int,
    **at_least: tuple[int, int],
) -> None:
    """Raise ValueError for what `gan` cannot do; `at_least` has (value, least) by name."""
    for name, (value, least) in {**at_least, "penalty_every": (penalty_every, 1)}.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if penalty is None and penalty_every > 1:
        raise ValueError(f"penalty_every must be 1 without a penalty, got {penalty_every}")
    # Minibatch deviation mixes examples too, but its penalty is StyleGAN2's: of the summed logits.
    by_batch = getattr(discriminator, "batch_statistics", discriminator.mixes_examples)
    if penalty is not None and by_batch:
        raise ValueError(
            "penalty needs a discriminator without batch statistics (dcgan's has batch_norm=False):"
            " normalized by the batch, the gradient for one image is that of all"
        )
