"""Generative adversarial networks: two networks and two optimizers become a `Family`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen import conditioning as conditions
from jaxgen.conditioning import Conditioning
from jaxgen.core import Aux, Batch, Family, Params, Phase, PyTree
from jaxgen.losses import gan as losses
from jaxgen.sampling.latent import normal_latents

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
_STANDING_BATCH = 64

Images = Float[Array, "batch height width channels"]
# (critic, real, fake, key) -> f32[B]
Penalty = Callable[[Callable[[Array], Array], Array, Array, Key[Array, ""]], Array]
Augment = Callable[[Key[Array, ""], Array], Array]


class Auxiliary(NamedTuple):
    """Weights of the auxiliary classifier's cross-entropy (ACGAN).

    Attributes:
        real: in the discriminator's loss, on real images.
        fake: in the discriminator's loss, on fakes (Odena et al. 2017; 0 in Gulrajani et al. 2017).
        generator: in the generator's loss.
    """

    real: float = 1.0
    fake: float = 1.0
    generator: float = 1.0


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
    auxiliary: Auxiliary | None = None,
    augment: Augment | None = None,
    consistency_augment: Augment | None = None,
    consistency_weight: float = 10.0,
    truncation: float | None = None,
    standing_batches: int = 16,
) -> Family:
    """The family of Goodfellow et al. 2014: a generator and a discriminator, in turns.

    A step is `discriminator_repeats` updates of the discriminator, each on its own slice of the
    batch, then one of the generator, on fakes for the conditions of the first slice. The latents
    are `N(0, I)`. `evaluate` is the discriminator's loss on held-out images and fresh fakes:
    not a measure of the samples' quality, but an overfitted discriminator shows.

    With batch normalization `sample` and `decode` use *standing statistics* (Brock et al. 2019,
    section 3.3): the generator's batch statistics, averaged over `standing_batches` batches of
    fresh latents. So they fit the averaged parameters, which the running statistics do not.

    Args:
        generator: `generator(z, e, train=...) -> images`, with the attributes `latent_dim`, and
            `momentum` and `axis_name` of its batch statistics.
        discriminator: `discriminator(images, e, train=...) -> Verdict`, with the attribute
            `mixes_examples`: whether a verdict depends on the batch. If not, real and fake images
            go through it together.
        generator_optimizer: of the one.
        discriminator_optimizer: of the other; its own learning rate is TTUR (Heusel et al. 2017).
        loss: a name in `jaxgen.losses.gan.ADVERSARIAL`.
        conditioning: what both networks are told, or None for an unconditional model.
        discriminator_repeats: n_dis or n_critic, the discriminator's updates a step.
        fakes_per_real: the generator's batch is so many times the discriminator's slice.
        penalty: `(critic, real, fake, key) -> f32[B]`, such as `losses.gradient_penalty`.
        penalty_weight: of the penalty.
        auxiliary: weights of the auxiliary classifier; the discriminator must have one.
        augment: `(key, images) -> images`, differentiable, before every verdict in training
            (`jaxgen.augmentation.diff_augment`).
        consistency_augment: transformation of real images under which the verdict should not
            change (Zhang et al. 2020), or None.
        consistency_weight: of that.
        truncation: of the latents of `sample`; None for none.
        standing_batches: see above; 0 for the running statistics.

    Raises:
        ValueError: if an argument is out of its range, or the penalty needs a discriminator that
            judges each image by itself.
    """
    for name, value in (
        ("discriminator_repeats", discriminator_repeats),
        ("fakes_per_real", fakes_per_real),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if standing_batches < 0:
        raise ValueError(f"standing_batches must be at least 0, got {standing_batches}")
    if penalty is not None and discriminator.mixes_examples:  # type: ignore[attr-defined]
        raise ValueError(
            "penalty needs a discriminator without batch statistics: the gradient for one image "
            "must not depend on the others"
        )
    if auxiliary is not None and getattr(discriminator, "num_classes", None) is None:
        raise ValueError("auxiliary needs a discriminator with num_classes")
    game = _Game(
        generator,
        discriminator,
        loss,
        losses.adversarial(loss),
        conditioning,
        fakes_per_real,
        penalty,
        penalty_weight,
        auxiliary,
        augment,
        consistency_augment,
        consistency_weight,
        truncation,
        standing_batches,
    )
    phases = (
        Phase(
            DISCRIMINATOR,
            (DISCRIMINATOR,),
            game.discriminator_loss,
            discriminator_optimizer,
            discriminator_repeats,
        ),
        Phase(GENERATOR, (GENERATOR,), game.generator_loss, generator_optimizer),
    )
    return Family(game.init, phases, game.discriminator_loss, game.sample, decode=game.decode)


@dataclass(frozen=True)
class _Game:
    """The functions of `gan`, around its arguments."""

    generator: Any
    discriminator: Any
    loss: str
    adversarial: losses.Adversarial
    conditioning: Conditioning | None
    fakes_per_real: int
    penalty: Penalty | None
    penalty_weight: float
    auxiliary: Auxiliary | None
    augment: Augment | None
    consistency_augment: Augment | None
    consistency_weight: float
    truncation: float | None
    standing_batches: int

    def init(self, key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        key_g, key_d = jax.random.split(key)
        x, e = batch["image"], conditions.encode_batch(self.conditioning, batch)
        z = jnp.zeros((x.shape[0], self.generator.latent_dim))
        made = self.generator.init(key_g, z, e, train=True)
        shape = jax.eval_shape(lambda: self.generator.apply(made, z, e, train=False)).shape
        if shape != x.shape:
            raise ValueError(f"the generator makes {shape[1:]} images, the data has {x.shape[1:]}")
        judged = self.discriminator.init(key_d, x, self._told(e), train=True)
        params, state = {}, {}
        for name, variables in ((GENERATOR, made), (DISCRIMINATOR, judged)):
            params[name] = variables["params"]
            state[name] = {k: v for k, v in variables.items() if k != "params"}
        return params, state

    def discriminator_loss(self, params, model_state, batch, key, *, train: bool):
        real, e = batch["image"], conditions.encode_batch(self.conditioning, batch)
        key_z, key_real, key_fake, key_penalty, key_twin = jax.random.split(key, 5)
        z = normal_latents(key_z, real.shape[0], self.generator.latent_dim)
        # The generator's batch statistics in evaluation too: they fit any parameters.
        generator = self.generator if train else _outside_maps(self.generator)
        made = model_state[GENERATOR]
        fake, _ = _apply(generator, params[GENERATOR], made, z, e, train=True)
        groups = [real, fake]
        if train:
            groups = [self._seen(key_real, real), self._seen(key_fake, fake)]
        if train and self.consistency_augment is not None:
            groups.append(self._seen(key_real, self.consistency_augment(key_twin, real)))
        state = model_state[DISCRIMINATOR]
        verdicts, new_state = self._judge(params, state, groups, self._told(e), train=train)
        on_real, on_fake = verdicts[:2]
        value = self.adversarial.discriminator(on_real.logits, on_fake.logits)
        metrics = _observed(self.loss, on_real.logits, on_fake.logits)
        metrics["diversity"] = _diversity(fake, real)
        if len(verdicts) > 2:
            change = losses.consistency_penalty(on_real.logits, verdicts[2].logits)
            metrics["consistency"] = change
            value = value + self.consistency_weight * change
        if train and self.penalty is not None:

            def critic(x: Array) -> Array:
                verdict, _ = self._discriminate(params, state, x, self._told(e), train=False)
                return verdict.logits

            metrics["penalty"] = self.penalty(critic, groups[0], groups[1], key_penalty)
            value = value + self.penalty_weight * metrics["penalty"]
        if self.auxiliary is not None:
            for name, verdict, weight in (
                ("real", on_real, self.auxiliary.real),
                ("fake", on_fake, self.auxiliary.fake),
            ):
                entropy, right = _classified(verdict, batch["label"])
                metrics[f"{name}_class_accuracy"] = right
                value = value + weight * entropy
        return value, Aux(metrics, {**model_state, DISCRIMINATOR: new_state})

    def generator_loss(self, params, model_state, batch, key, *, train: bool):
        real, e = batch["image"], conditions.encode_batch(self.conditioning, batch)
        batch_size, many = real.shape[0], self.fakes_per_real
        key_z, key_seen, key_real = jax.random.split(key, 3)
        z = normal_latents(key_z, batch_size * many, self.generator.latent_dim)
        repeated = None if e is None else jnp.repeat(e, many, axis=0)
        fake, new_state = self._generate(params, model_state, z, repeated, train=train)
        state, told = model_state[DISCRIMINATOR], self._told(repeated)
        x = self._seen(key_seen, fake)
        verdict, _ = self._discriminate(params, state, x, told, train=train)
        real_logits = jnp.zeros_like(verdict.logits)
        if self.loss == "relativistic_average":
            x = self._seen(key_real, real)
            on_real, _ = self._discriminate(params, state, x, self._told(e), train=train)
            real_logits = jnp.repeat(on_real.logits, many)
        value = self.adversarial.generator(verdict.logits, real_logits)
        if self.auxiliary is not None:
            entropy, _ = _classified(verdict, jnp.repeat(batch["label"], many))
            value = value + self.auxiliary.generator * entropy
        value = value.reshape(batch_size, many).mean(axis=1)
        return value, Aux({}, {**model_state, GENERATOR: new_state})

    def sample(self, params, model_state, key, num: int, *, condition: Array | None = None):
        key_z, key_standing = jax.random.split(key)
        z = normal_latents(key_z, num, self.generator.latent_dim, self.truncation)
        return self.decode(params, model_state, z, key_standing, condition=condition)

    def decode(self, params, model_state, latents, key, *, condition: Array | None = None):
        e = conditions.encode(self.conditioning, condition)
        ready = self._standing(params, model_state, key, condition)
        return self._generate(params, ready, latents, e, train=False)[0]

    def _told(self, e: Array | None) -> Array | None:
        """What the discriminator is told: nothing where it is to classify."""
        return None if self.auxiliary is not None else e

    def _seen(self, key: Key[Array, ""], x: Array) -> Array:
        return x if self.augment is None else self.augment(key, x)

    def _generate(self, params, model_state, z, e, *, train: bool):
        """(images, the generator's new state)."""
        state = model_state[GENERATOR]
        return _apply(self.generator, params[GENERATOR], state, z, e, train=train)

    def _discriminate(self, params, state, x, e, *, train: bool):
        """(verdict, the discriminator's new state)."""
        return _apply(self.discriminator, params[DISCRIMINATOR], state, x, e, train=train)

    def _judge(self, params, state, groups: list[Array], e: Array | None, *, train: bool):
        """A verdict for each group of images, and the discriminator's new state."""
        if self.discriminator.mixes_examples:
            verdicts = []
            for x in groups:
                verdict, state = self._discriminate(params, state, x, e, train=train)
                verdicts.append(verdict)
            return verdicts, state
        parts = len(groups)
        # Interleaved, so that a batch sharded over devices moves nothing.
        x = jnp.stack(groups, axis=1).reshape(-1, *groups[0].shape[1:])
        repeated = None if e is None else jnp.repeat(e, parts, axis=0)
        verdict, state = self._discriminate(params, state, x, repeated, train=train)
        return [jax.tree.map(lambda v, i=i: v[i::parts], verdict) for i in range(parts)], state

    def _standing(self, params, model_state, key, condition: Array | None) -> PyTree:
        """The model state, with the batch statistics of these parameters."""
        state = model_state[GENERATOR]
        if not self.standing_batches or "batch_stats" not in state:
            return model_state
        # Without momentum the new statistics are the batch's alone.
        fresh = _outside_maps(self.generator).clone(momentum=0.0)

        def statistics(key: Key[Array, ""]) -> PyTree:
            key_z, key_condition = jax.random.split(key)
            e = None
            if self.conditioning is not None:
                several = _mixed_conditions(self.conditioning, key_condition, condition)
                e = self.conditioning.encode(several)
            width = self.generator.latent_dim
            z = normal_latents(key_z, _STANDING_BATCH, width, self.truncation)
            return _apply(fresh, params[GENERATOR], state, z, e, train=True)[1]["batch_stats"]

        stacked = lax.map(statistics, jax.random.split(key, self.standing_batches))
        averaged = jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
        return {**model_state, GENERATOR: {**state, "batch_stats": averaged}}


def _apply(network: Any, params: PyTree, state: PyTree, x: Array, e: Array | None, *, train: bool):
    """(output, new state); the state is as it was unless `train`."""
    variables = {"params": params, **state}
    if not train:
        return network.apply(variables, x, e, train=False), state
    return network.apply(variables, x, e, train=True, mutable=list(state))


def _outside_maps(network: Any) -> Any:
    """The network for use outside pmap, where its statistics' axis has no name."""
    return network.clone(axis_name=None)


def _classified(verdict: Any, label: Array) -> tuple[Array, Array]:
    """(cross-entropy in nats, 1 where the class is right) of the auxiliary classifier."""
    entropy = losses.auxiliary_classifier_loss(verdict.class_logits, label)
    return entropy, (jnp.argmax(verdict.class_logits, axis=-1) == label).astype(jnp.float32)


def _mixed_conditions(
    conditioning: Conditioning, key: Key[Array, ""], condition: Array | None
) -> Array:
    """Conditions for standing statistics: all classes alike, or a draw from those asked for."""
    if conditioning.num_classes is not None:
        return jax.random.randint(key, (_STANDING_BATCH,), 0, conditioning.num_classes)
    assert condition is not None
    return jax.random.choice(key, jnp.asarray(condition), (_STANDING_BATCH,))


def _observed(loss: str, real: Array, fake: Array) -> dict[str, Array]:
    """Logits, and how often the discriminator is right, on each side.

    Scores of games that have no zero are told apart at the middle between the two sides' means.
    """
    threshold: float | Array = 0.5 if loss == "least_squares" else 0.0
    if loss in ("wasserstein", "relativistic_average"):
        threshold = 0.5 * (jnp.mean(real) + jnp.mean(fake))
    right_real, right_fake = losses.discriminator_accuracy(real, fake, threshold)
    return {
        "real_logit": real,
        "fake_logit": fake,
        "real_accuracy": right_real,
        "fake_accuracy": right_fake,
    }


def _diversity(fake: Images, real: Images) -> Float[Array, " batch"]:
    """How much fakes differ from each other, in units of how much reals do, for each example."""
    fake, real = lax.stop_gradient((fake, real))
    deviation = [jnp.mean(jnp.std(x, axis=0)) for x in (fake, real)]
    return jnp.broadcast_to(deviation[0] / jnp.maximum(deviation[1], 1e-6), fake.shape[:1])


def warnings(loss: str, metrics: Mapping[str, Any]) -> list[str]:
    """What a user should know of the balance of the two players, from a row of averaged metrics.

    Args:
        loss: the game; the scores of "wasserstein" are not bounded, and a critic that separates
            them is as it should be.
        metrics: as the loop logs them.

    Returns:
        Warnings, none where all is well.
    """

    def value(name: str) -> float:
        return float(metrics.get(f"{DISCRIMINATOR}/{name}", float("nan")))

    found = []
    right = (value("real_accuracy"), value("fake_accuracy"))
    if loss != "wasserstein" and min(right) > 0.995:
        found.append(
            "the discriminator has won (it is right on more than 99.5 % of both sides), so the "
            "generator learns little: lower its learning rate or its updates a step, or regularize "
            "it (spectral normalization, a gradient penalty, augmentation)"
        )
    if right[1] < 0.05:
        found.append(
            "the generator has won (more than 95 % of the fakes pass as real): give the "
            "discriminator a higher learning rate or more updates a step"
        )
    if value("diversity") < 0.3:
        found.append(
            "the fakes are much alike (their pixels vary less than 0.3 times as much as the "
            "data's): modes may have collapsed"
        )
    return found
