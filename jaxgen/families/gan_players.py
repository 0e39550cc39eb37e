"""The two networks of a GAN as functions of the family's `Variables`."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import Batch, PyTree, Variables
from jaxgen.families.gan_adaptive import AUGMENT
from jaxgen.models.blocks.gan_layers import NOISE
from jaxgen.sampling.latent import normal_latents

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
_STANDING_BATCH = 64

Images = Float[Array, "batch height width channels"]
Augment = Callable[[Key[Array, ""], Array], Array]


class Players(NamedTuple):
    """What the losses of both players consist of.

    Attributes:
        conditions: `batch -> conditions` of a batch as the data has them, or None.
        encode: `(variables, batch) -> Condition | None` of a batch.
        ask: `(variables, batch, key, repeats) -> (condition, conditions as the data has them)`,
            what the generator's own turn asks of it, `repeats` for each example of the batch:
            classes drawn afresh, all alike likely; of other kinds the batch's own.
        generate: `(variables, key, num, condition) -> (images, the generator's new state)`, with
            batch statistics of these images.
        judge: `(variables, groups of images, condition, train=...) -> (a verdict of each group, the
            discriminator's new state)`.
        code: `(variables, condition) -> (mean, log sigma)` of the generator's code of a condition.
        shown: `(variables, key, images) -> images` as the discriminator sees them in training.
    """

    conditions: Callable[[Batch], Array | None]
    encode: Callable[[Variables, Batch], Condition | None]
    ask: Callable[..., tuple[Condition | None, Array | None]]
    generate: Callable[[Variables, Key[Array, ""], int, Condition | None], tuple[Images, PyTree]]
    judge: Callable[..., tuple[list[Any], PyTree]]
    code: Callable[[Variables, Condition | None], tuple[Array, Array]]
    shown: Callable[[Variables, Key[Array, ""], Array], Array]


def make_players(
    generator: Any,
    discriminator: Any,
    conditioning: Conditioning | None,
    augment: Augment | Adaptive | None,
    *,
    names_class: bool,
) -> Players:
    """The two networks, ready for the losses.

    Args:
        generator: Module of the generator, see `gan`.
        discriminator: Module of the discriminator, see `gan`.
        conditioning: Kind of condition, or None.
        augment: Function `(key, images) -> images` before every verdict in training, or an adaptive
            one, or None.
        names_class: Whether the discriminator is to name the condition, and so is not given it.
    """

    def encode(variables: Variables, batch: Batch) -> Condition | None:
        return conditions.encode_batch(conditioning, variables, batch)

    def own(batch: Batch) -> Array | None:
        return conditions.condition_of(conditioning, batch)

    def ask(variables: Variables, batch: Batch, key: Key[Array, ""], repeats: int):
        if conditioning is None or conditioning.num_classes is None:
            both = encode(variables, batch), own(batch)
            return jax.tree.map(lambda x: jnp.repeat(x, repeats, axis=0), both)
        shape = (repeats * len(batch["image"]),)
        label = jax.random.randint(key, shape, 0, conditioning.num_classes)
        return conditions.encode(conditioning, variables, label), label

    def generate(variables: Variables, key: Key[Array, ""], num: int, condition: Condition | None):
        z = normal_latents(key, num, generator.latent_dim)
        rngs = {NOISE: jax.random.fold_in(key, 1)}
        return _apply(generator, GENERATOR, variables, z, condition, train=True, rngs=rngs)

    def judge(variables: Variables, groups: list[Array], condition, *, train: bool):
        given = None if names_class else condition
        return _judge(discriminator, variables, groups, given, train=train)

    def code(variables: Variables, condition: Condition | None):
        parameters = _parameters(variables, GENERATOR)
        return generator.apply({"params": parameters}, condition, method="condition_code")

    def shown(variables: Variables, key: Key[Array, ""], images: Array) -> Array:
        if isinstance(augment, Adaptive):
            return augment.transform(key, images, variables.state[AUGMENT]["probability"])
        return images if augment is None else augment(key, images)

    return Players(own, encode, ask, generate, judge, code, shown)


def check_conditioned(
    generator: Any, conditioning: Conditioning | None, *, mismatch: float, kl_weight: float
) -> None:
    """Raise ValueError for wrong pairs or codes that there cannot be; the arguments are `gan`'s."""
    if not 0 <= mismatch <= 1:
        raise ValueError(f"mismatch must be in [0, 1], got {mismatch}")
    if not 0 <= kl_weight < math.inf:
        raise ValueError(f"kl_weight must be finite and at least 0, got {kl_weight}")
    for name, value in (("mismatch", mismatch), ("kl_weight", kl_weight)):
        if value and conditioning is None:
            raise ValueError(f"{name} must be 0 without a condition, got {value}")
    if kl_weight and not hasattr(generator, "condition_code"):
        raise ValueError("kl_weight must be 0: the generator draws no code of its condition")


def wrong_pairs(
    players: Players, variables: Variables, batch: Batch, images: Array, *, train: bool
) -> tuple[Any, Array, PyTree]:
    """Real images, each with the condition of the next example of the batch.

    Args:
        players: The two networks.
        variables: Variables, with the discriminator's state after its other verdicts.
        batch: The batch.
        images: Its images as the discriminator sees them.
        train: Whether the discriminator is in training.

    Returns:
        The verdict on them; 1 where the condition really differs from the image's own, else 0,
        f32[B]; the discriminator's new state.
    """
    own = players.conditions(batch)
    assert own is not None
    differs = (own != jnp.roll(own, -1, axis=0)).reshape(len(own), -1).any(axis=1)
    encoded = players.encode(variables, batch)
    others = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), encoded)
    (verdict,), state = players.judge(variables, [images], others, train=train)
    return verdict, differs.astype(jnp.float32), state


def make_init(
    generator: Any,
    discriminator: Any,
    conditioning: Conditioning | None,
    *,
    names_class: bool,
    frozen: PyTree,
) -> Callable[..., Variables]:
    """`Family.init` of the two networks; the arguments are those of `make_players` and `gan`."""

    def init(key: Key[Array, ""], batch: Batch, fixed: PyTree = {}) -> Variables:  # noqa: B006
        key_g, key_d = jax.random.split(key)
        params = conditions.init(conditioning, jax.random.fold_in(key, 2))
        x = batch["image"]
        condition = conditions.encode_batch(conditioning, Variables(params, {}, fixed), batch)
        z = jnp.zeros((x.shape[0], generator.latent_dim))
        generated = generator.init(key_g, z, condition, train=True)
        images = jax.eval_shape(lambda: generator.apply(generated, z, condition, train=False))
        if images.shape != x.shape:
            raise ValueError(
                f"the generator makes {images.shape[1:]} images, the data has {x.shape[1:]}"
            )
        given = None if names_class else condition
        judged = discriminator.init(key_d, x, given, train=True)
        state = {}
        for name, collections in ((GENERATOR, generated), (DISCRIMINATOR, judged)):
            params[name] = dict(collections["params"])
            state[name] = {k: v for k, v in collections.items() if k != "params"}
        _check_frozen(frozen, fixed.get(GENERATOR, {}), params[GENERATOR])
        params[GENERATOR] = {k: v for k, v in params[GENERATOR].items() if k not in frozen}
        return Variables(params, state, fixed)

    return init


def _check_frozen(frozen: PyTree, given: PyTree, params: PyTree) -> None:
    """Raise ValueError unless the frozen parts are given, and are parts of the network."""
    if set(given) != set(frozen):
        raise ValueError(
            f"fixed must hold the generator's frozen parts {sorted(frozen)} by the name "
            f"{GENERATOR!r}, as the family's own does; got {sorted(given)}"
        )
    for name, part in given.items():
        shapes = jax.tree.map(jnp.shape, (params.get(name), part))
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"frozen: the part {name!r} is of another network than the generator has "
                f"there: {_sizes(part)} in the place of {_sizes(params.get(name))}"
            )


def _sizes(tree: PyTree) -> str:
    leaves = jax.tree.leaves(tree)
    return f"{len(leaves)} arrays of {sum(map(jnp.size, leaves)):,} parameters"


def make_sampler(
    generator: Any,
    conditioning: Conditioning | None,
    truncation: float | None,
    standing_batches: int,
) -> tuple[Callable[..., Images], Callable[..., Images]]:
    """`Family.sample` and `Family.decode`, by standing statistics (see `gan`).

    Args:
        generator: Module of the generator.
        conditioning: Kind of condition, or None.
        truncation: Threshold of the latents, or None for none.
        standing_batches: Batches of the standing statistics; 0 for the running statistics.
    """

    def draw(key: Key[Array, ""], num: int) -> Float[Array, "batch latent"]:
        return normal_latents(key, num, generator.latent_dim, truncation)

    def sample(
        variables: Variables, key: Key[Array, ""], num: int, *, condition: Any = None
    ) -> Images:
        key_z, key_standing = jax.random.split(key)
        return decode(variables, draw(key_z, num), key_standing, condition=condition)

    def decode(
        variables: Variables,
        latents: Float[Array, "batch latent"],
        key: Key[Array, ""],
        *,
        condition: Any = None,
    ) -> Images:
        encoded = conditions.encode(conditioning, variables, condition)
        state = variables.state[GENERATOR]
        if standing_batches and "batch_stats" in state:
            state = {**state, "batch_stats": standing_statistics(variables, key, encoded)}
            variables = with_state(variables, GENERATOR, state)
        return _apply(generator, GENERATOR, variables, latents, encoded, train=False)[0]

    def standing_statistics(variables: Variables, key: Key[Array, ""], asked: Condition | None):
        # Without momentum the new statistics are the batch's alone.
        fresh = outside_maps(generator).clone(momentum=0.0)

        def statistics(key: Key[Array, ""]) -> PyTree:
            key_z, key_condition = jax.random.split(key)
            encoded = None
            if conditioning is not None:
                encoded = _mixed_conditions(conditioning, variables, key_condition, asked)
            z = draw(key_z, _STANDING_BATCH)
            return _apply(fresh, GENERATOR, variables, z, encoded, train=True)[1]["batch_stats"]

        stacked = lax.map(statistics, jax.random.split(key, standing_batches))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)

    return sample, decode


def outside_maps(network: Any) -> Any:
    """The network for use outside pmap, where its statistics' axis, if any, has no name."""
    return network.clone(axis_name=None) if hasattr(network, "axis_name") else network


def _apply(
    network: Any,
    name: str,
    variables: Variables,
    x: Array,
    condition: Any,
    *,
    train: bool,
    rngs: Mapping[str, Key[Array, ""]] | None = None,
) -> tuple[Any, PyTree]:
    """(output, the network's new state); the state is as it was unless `train`."""
    state = variables.state[name]
    collections = {"params": _parameters(variables, name), **state}
    if not train:
        return network.apply(collections, x, condition, train=False), state
    return network.apply(collections, x, condition, train=True, mutable=list(state), rngs=rngs)


def _parameters(variables: Variables, name: str) -> PyTree:
    """A network's parameters, its frozen parts' included."""
    return {**variables.params[name], **variables.fixed.get(name, {})}


def _judge(
    discriminator: Any, variables: Variables, groups: list[Array], condition: Any, *, train: bool
) -> tuple[list[Any], PyTree]:
    """A verdict for each group of images, and the discriminator's new state."""
    judge = functools.partial(_apply, discriminator, DISCRIMINATOR, train=train)
    if len(groups) == 1 or discriminator.mixes_examples:
        verdicts = []
        for x in groups:
            verdict, state = judge(variables, x, condition)
            variables = with_state(variables, DISCRIMINATOR, state)
            verdicts.append(verdict)
        return verdicts, variables.state[DISCRIMINATOR]
    parts = len(groups)
    # Interleaved, so that a batch sharded over devices moves nothing.
    x = jnp.stack(groups, axis=1).reshape(-1, *groups[0].shape[1:])
    verdict, state = judge(variables, x, conditions.repeat(condition, parts))
    return [jax.tree.map(lambda v, i=i: v[i::parts], verdict) for i in range(parts)], state


def with_state(variables: Variables, name: str, state: PyTree) -> Variables:
    """Variables with a network's new state."""
    return variables._replace(state={**variables.state, name: state})


def _mixed_conditions(
    conditioning: Conditioning, variables: Variables, key: Key[Array, ""], asked: Condition | None
) -> Condition:
    """Conditions for standing statistics, mixed as in training where that is known.

    All classes alike; of other kinds a draw from the data's examples, or, without them, from the
    conditions that are asked for.
    """
    if conditioning.num_classes is not None:
        label = jax.random.randint(key, (_STANDING_BATCH,), 0, conditioning.num_classes)
        return conditioning.encode(variables, label)
    if conditioning.examples is not None:
        examples = jnp.asarray(conditioning.examples)
        return conditioning.encode(variables, jax.random.choice(key, examples, (_STANDING_BATCH,)))
    rows = jax.random.randint(key, (_STANDING_BATCH,), 0, len(jax.tree.leaves(asked)[0]))
    return jax.tree.map(lambda x: x[rows], asked)
