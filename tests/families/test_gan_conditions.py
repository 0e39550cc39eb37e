"""GANs that are told what to make: which conditions they ask for, name and learn to read."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_gans import CLASSES, FIRST, LATENT, PlainGenerator, batch, make, networks

from jaxgen.conditioning.attributes import attributes, embeddings
from jaxgen.conditioning.base import NAME, Condition
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.families import gan
from jaxgen.families.gan_players import DISCRIMINATOR, GENERATOR, make_players
from jaxgen.models.blocks.gan_layers import Verdict
from jaxgen.training.fit import fit


def test_attributes():
    """Standing statistics mix the conditions that are asked for; both networks take them."""
    family = make("plain", conditioning=attributes(2))
    data = {**batch(8), "attributes": jnp.arange(32).reshape(16, 2) % 2}
    variables = jax.jit(family.init)(jax.random.key(0), data)
    sample = jax.jit(lambda c: family.sample(variables, jax.random.key(1), 2, condition=c))
    images = sample(jnp.array([[0, 1], [1, 1]]))
    assert images.shape == (2, 8, 8, 1)
    assert not np.array_equal(images, sample(jnp.array([[0, 1], [0, 0]])))
    values, _ = jax.jit(family.evaluate)(variables, data, jax.random.key(1))
    assert np.isfinite(values).all()


def test_standing_statistics_of_conditions_that_occur():
    """Of the data's examples where they are known: what is asked for at once changes nothing."""
    examples = np.array([[0, 1], [1, 0]], np.int32)
    family = make("plain", conditioning=attributes(2, (), examples))
    data = {**batch(8), "attributes": jnp.arange(32).reshape(16, 2) % 2}
    variables = jax.jit(family.init)(jax.random.key(0), data)
    params = dict(variables.params[GENERATOR])
    params["Dense_0"] = {**params["Dense_0"], "kernel": 5 * params["Dense_0"]["kernel"]}
    variables = variables._replace(params={**variables.params, GENERATOR: params})
    z, key = jnp.ones((2, LATENT)), jax.random.key(1)
    decode = jax.jit(lambda c: family.decode(variables, z, key, condition=c))
    images = decode(jnp.array([[1, 1], [1, 0]]))
    np.testing.assert_array_equal(images[1], decode(jnp.array([[0, 0], [1, 0]]))[1])
    encoded = Condition(jnp.array([[1.0, 1.0], [1.0, -1.0]]))
    np.testing.assert_array_equal(images, decode(encoded))
    other = make("plain", conditioning=attributes(2))
    moved = [
        jax.jit(lambda c: other.decode(variables, z, key, condition=c))(jnp.array(rows))[1]
        for rows in ([[1, 1], [1, 0]], [[0, 0], [1, 0]])
    ]
    assert not np.allclose(*moved)


class Names(nn.Module):
    """A discriminator whose logits are three pixels, so that every term is known."""

    num_classes: int = 2
    mixes_examples = False

    @nn.compact
    def __call__(self, x, condition=None, *, train):
        assert condition is None  # it is to name it
        pixels = x.reshape(x.shape[0], -1) * self.param("scale", nn.initializers.ones, (1, 1))
        return Verdict(pixels[:, 0], pixels[:, 1 : 1 + self.num_classes])


def named_game(kind, **weights):
    """A family whose discriminator names conditions, its variables, a batch, the turns' losses."""
    adam = optax.adam(1e-3)
    family = gan.gan(
        PlainGenerator(),
        Names(kind.width),
        adam,
        adam,
        conditioning=kind,
        auxiliary=gan.Auxiliary(**weights),
    )
    data = {**batch(8, 4), "label": jnp.array([0, 1, 1, 0])}
    data["attributes"] = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    variables = jax.jit(family.init)(jax.random.key(0), data)
    losses = [jax.jit(p.loss)(variables, data, jax.random.key(1), FIRST) for p in family.phases]
    return family, variables, data, losses


@pytest.mark.parametrize("kind", [labels(2), attributes(2)], ids=["classes", "attributes"])
def test_the_classifier_of_each_kind(kind):
    """Softmax of one class, or a sigmoid of each attribute, summed; each weight by itself."""
    values, metrics = {}, {}
    zero = {"real": 0.0, "fake": 0.0, "generator": 0.0, "game": 0.0}
    for name in zero:
        family, variables, data, (of_d, of_g) = named_game(kind, **{**zero, name: 3.0})
        values[name], metrics = (of_d[0], of_g[0]), of_d[1].metrics
    real = data["image"].reshape(4, -1)[:, 1:3]
    asked = data[kind.key]
    if kind.num_classes:
        nats = -jax.nn.log_softmax(real)[jnp.arange(4), asked]
        right = real.argmax(axis=1) == asked
    else:
        nats = jax.nn.softplus(jnp.where(asked == 1, -real, real)).sum(axis=1)
        right = ((real > 0) == asked).mean(axis=1)
    np.testing.assert_allclose(values["real"][0], 3 * nats, rtol=1e-5)
    np.testing.assert_allclose(metrics["real_class_accuracy"], right, rtol=1e-6)
    assert not values["real"][1].any()
    assert not values["fake"][1].any()
    assert values["fake"][0].min() > 0
    assert not values["generator"][0].any()
    assert values["generator"][1].min() > 0
    logits = metrics["real_logit"], metrics["fake_logit"]
    game = jax.nn.softplus(-logits[0]) + jax.nn.softplus(logits[1])
    np.testing.assert_allclose(values["game"][0], 3 * game, rtol=1e-5)
    value, _ = jax.jit(family.evaluate)(variables, data, jax.random.key(1))
    np.testing.assert_allclose(value, values["game"][0], rtol=1e-5)


def embedded(where, **fields):
    """Classes by a table in `params` or `fixed`."""

    def encode(variables, values):
        return Condition(getattr(variables, where)[NAME]["table"][values])

    return CLASSES._replace(encode=encode, **fields)


def test_a_trained_encoder_learns_with_the_discriminator():
    """The networks start as they would without; the generator's turn leaves the table alone."""
    kind = embedded("params", init=lambda key: {"table": jnp.eye(3)}, trained=True)
    family, plain = (make("plain", conditioning=c) for c in (kind, CLASSES))
    data = batch(8)
    params, *_ = jax.jit(family.init)(jax.random.key(0), data)
    assert set(params) == {GENERATOR, DISCRIMINATOR, NAME}
    without, *_ = jax.jit(plain.init)(jax.random.key(0), data)
    jax.tree.map(np.testing.assert_array_equal, {k: params[k] for k in without}, without)
    assert family.optimizers[DISCRIMINATOR].trains == (DISCRIMINATOR, NAME)
    assert family.optimizers[GENERATOR].trains == (GENERATOR,)
    result = fit(family, data, 1)
    assert not np.array_equal(result.state.params[NAME]["table"], params[NAME]["table"])


def test_a_fixed_encoder():
    """Its arrays are read from `Variables.fixed`; one-hot rows give what labels give."""
    kind = embedded("fixed", fixed={"table": jnp.eye(3)})
    family, plain = (make("plain", conditioning=c) for c in (kind, CLASSES))
    data = batch(8)
    key = jax.random.key(1)
    variables = jax.jit(family.init)(jax.random.key(0), data, family.fixed)
    np.testing.assert_array_equal(variables.fixed[NAME]["table"], np.eye(3))
    assert set(variables.params) == {GENERATOR, DISCRIMINATOR}
    expected = jax.jit(plain.init)(jax.random.key(0), data)
    for loss, loss_of_plain in (
        (family.evaluate, plain.evaluate),
        (
            lambda v: family.sample(v, key, 2, condition=jnp.array([1, 2])),
            lambda v: plain.sample(v, key, 2, condition=jnp.array([1, 2])),
        ),
    ):
        arguments = (data, key) if loss is family.evaluate else ()
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.jit(loss)(variables, *arguments),
            jax.jit(loss_of_plain)(expected, *arguments),
        )


def test_the_generator_is_asked_for_fresh_classes(key):
    """In its own turn, all classes alike, whatever the batch's are; others are the batch's."""
    real = {"image": jnp.zeros((500, 8, 8, 1)), "label": jnp.zeros(500, jnp.int32)}
    players = make_players(*networks("plain"), labels(4), None, names_class=False)
    condition, label = players.ask(Variables({}), real, key, 2)
    assert condition.vector.shape == (1000, 4)
    np.testing.assert_array_equal(condition.vector.argmax(axis=1), label)
    np.testing.assert_allclose(np.bincount(label) / 1000, 0.25, atol=0.06)
    batch = {**real, "embedding": jax.random.normal(key, (500, 3))}
    players = make_players(*networks("plain"), embeddings(3), None, names_class=False)
    condition, asked = players.ask(Variables({}), batch, key, 2)
    for each in (condition.vector, asked):
        np.testing.assert_array_equal(each, jnp.repeat(batch["embedding"], 2, axis=0))
    players = make_players(*networks("plain"), None, None, names_class=False)
    assert players.ask(Variables({}), real, key, 2) == (None, None)
