"""The GAN family keeps the contract, and every way of playing it trains."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight

from jaxgen.augmentation.diff_augment import diff_augment
from jaxgen.conditioning.attributes import attributes, embeddings
from jaxgen.conditioning.base import NAME, Condition, vector_of
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.families import gan
from jaxgen.families.gan_players import DISCRIMINATOR, GENERATOR, make_players
from jaxgen.losses.gan import gradient_penalty
from jaxgen.models import dcgan, resnet_gan
from jaxgen.models.blocks.gan_layers import Verdict
from jaxgen.training import averages
from jaxgen.training.fit import fit
from jaxgen.training.step import init_state, make_step

LATENT = 4
CLASSES = labels(3)
FIRST = jnp.int32(0)


class PlainGenerator(nn.Module):
    """A generator of 8x8 pixels that compiles quickly."""

    latent_dim: int = LATENT
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z, condition=None, *, train):
        e = vector_of(condition)
        x = nn.Dense(64)(z if e is None else jnp.concatenate([z, e], axis=-1))
        x = nn.BatchNorm(not train, axis_name=self.axis_name, momentum=self.momentum)(x)
        return nn.tanh(x).reshape(-1, 8, 8, 1)


class PlainDiscriminator(nn.Module):
    """A discriminator that compiles quickly and judges each image by itself."""

    mixes_examples = False

    @nn.compact
    def __call__(self, x, condition=None, *, train):
        h = nn.tanh(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        e = vector_of(condition)
        h = h if e is None else jnp.concatenate([h, e], axis=-1)
        return Verdict(nn.Dense(1)(h)[:, 0])


def networks(kind, *, num_classes=None):
    if kind == "plain":
        return PlainGenerator(), PlainDiscriminator()
    if kind == "dcgan":
        return (
            dcgan.Generator(8, 1, 8, LATENT, min_size=2),
            dcgan.Discriminator(8, stddev_group=2, num_classes=num_classes, min_size=2),
        )
    return (
        resnet_gan.Generator(32, 1, 4, LATENT),
        resnet_gan.Discriminator(4, num_classes=num_classes),
    )


def make(kind="dcgan", *, num_classes=None, optimizer=None, **options):
    options.setdefault("standing_batches", 2)
    optimizer = optimizer or optax.adam(1e-3)
    return gan.gan(*networks(kind, num_classes=num_classes), optimizer, optimizer, **options)


def batch(size, num=16):
    x = jax.random.uniform(jax.random.key(7), (num, size, size, 1), minval=-1.0)
    return {"image": x, "label": jnp.arange(num) % 3}


def variables_at(state):
    """The last parameters, without the average."""
    return Variables(state.params, state.state)


VARIANTS = {
    "dcgan": (8, {}),
    "dcgan, conditional, augmented": (
        8,
        {
            "conditioning": CLASSES,
            "augment": functools.partial(diff_augment, policy=("translation",)),
            "loss": "relativistic_average",
        },
    ),
    "residual, projection": (
        32,
        {
            "kind": "resnet",
            "conditioning": CLASSES,
            "loss": "hinge",
            "discriminator_repeats": 2,
            "fakes_per_real": 2,
        },
    ),
    "residual, penalty, classifier": (
        32,
        {
            "kind": "resnet",
            "conditioning": CLASSES,
            "num_classes": 3,
            "auxiliary": gan.Auxiliary(1.0, 0.0, 0.1),
            "loss": "wasserstein",
            "penalty": gradient_penalty,
            "consistency_augment": functools.partial(diff_augment, policy=("translation",)),
        },
    ),
}


SLOW = ("residual, projection", "residual, penalty, classifier", "dcgan")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VARIANTS],
)
def trained(request):
    """(family, first state, what four steps make of it)."""
    size, options = VARIANTS[request.param]
    family = make(**options)
    data = batch(size)
    kept = {"ema": averages.warmed_up(0.9, of=(GENERATOR,))}
    init = functools.partial(init_state, family, averages=kept)
    state = jax.jit(init)(jax.random.key(0), data)
    step = jax.jit(make_step(family, averages=kept))
    results, new = [], state
    for i in range(4):
        result = step(new, {}, data, jax.random.key(i))
        results.append(result)
        new = result.state
    assert step._cache_size() == 1
    return family, data, state, results


def test_steps(trained):
    """Both networks move, every metric is finite, the average is the generator's alone."""
    _, _, state, results = trained
    new = results[-1].state
    for name in (GENERATOR, DISCRIMINATOR):
        pairs = zip(*(jax.tree.leaves(s.params[name]) for s in (state, new)), strict=True)
        assert all(np.isfinite(b).all() for _, b in pairs)
        assert not np.allclose(*(jax.tree.leaves(s.params[name])[-1] for s in (state, new)))
    assert set(new.averages["ema"]) == {GENERATOR}
    metrics = results[-1].metrics
    for name in ("real_logit", "fake_logit", "real_accuracy", "fake_accuracy", "loss", "grad_norm"):
        total, weight = metrics[f"discriminator/{name}"]
        assert np.isfinite(total)
        assert weight > 0
    assert np.isfinite(metrics["generator/loss"][0])
    assert int(results[-1].bad) == -1


def test_each_phase_moves_its_own():
    """The discriminator's turn leaves the generator and its state alone, and the other way; its own
    state moves."""
    family, data, key = make(), batch(8), jax.random.key(1)
    variables = jax.jit(family.init)(jax.random.key(0), data)
    for phase, other in zip(family.phases, (GENERATOR, DISCRIMINATOR), strict=True):
        assert family.optimizers[phase.optimizer].trains == (phase.name,)
        loss, aux = jax.jit(phase.loss)(variables, data, key, FIRST)
        assert loss.shape == (16,)
        assert loss.dtype == jnp.float32
        assert set(aux.state) == {GENERATOR, DISCRIMINATOR}
        jax.tree.map(np.testing.assert_array_equal, aux.state[other], variables.state[other])
        own = (jax.tree.leaves(v.state[phase.name]) for v in (aux, variables))  # batch statistics
        assert all(not np.array_equal(*pair) for pair in zip(*own, strict=True))
    loss, metrics = jax.jit(family.evaluate)(variables, data, key)
    assert loss.shape == (16,)
    assert np.isfinite(loss).all()
    assert all(v.shape == (16,) for v in metrics.values())


def test_evaluation_is_the_game_alone():
    """The discriminator's loss without augmentation and penalties, outside maps too."""
    data, key = batch(8), jax.random.key(1)
    augment = functools.partial(diff_augment, policy=("translation",))
    plain = make("plain", conditioning=CLASSES)
    variables = jax.jit(plain.init)(jax.random.key(0), data)
    expected, aux = jax.jit(plain.phases[0].loss)(variables, data, key, FIRST)
    generator, discriminator = networks("plain")
    adam = optax.adam(1e-3)
    full = gan.gan(
        generator.clone(axis_name="data"),
        discriminator,
        adam,
        adam,
        conditioning=CLASSES,
        augment=augment,
        consistency_augment=augment,
        penalty=gradient_penalty,
    )
    loss, metrics = jax.jit(full.evaluate)(variables, data, key)
    np.testing.assert_array_equal(loss, expected)
    assert set(metrics) == set(aux.metrics)


def test_sample_and_decode(trained):
    family, data, _, results = trained
    condition = None if family.conditioning is None else jnp.array([0, 1, 2])
    draw = functools.partial(family.sample, num=3, condition=condition)
    sample = jax.jit(lambda state, key: draw(variables_at(state), key))
    images = sample(results[-1].state, jax.random.key(0))
    assert images.shape == (3, *data["image"].shape[1:])
    assert float(jnp.abs(images).max()) <= 1
    np.testing.assert_array_equal(images, sample(results[-1].state, jax.random.key(0)))
    assert not np.array_equal(images, sample(results[-1].state, jax.random.key(1)))


def test_standing_statistics_are_the_batches_own():
    """One standing batch: the images are those of batch normalization over that batch."""
    family = make("dcgan", standing_batches=64)
    variables = jax.jit(family.init)(jax.random.key(0), batch(8))
    z = jax.random.normal(jax.random.key(5), (512, LATENT))
    generator = networks("dcgan")[0]
    collections = {"params": variables.params["generator"], **variables.state["generator"]}
    expected, _ = generator.apply(collections, z, train=True, mutable=["batch_stats"])
    images = jax.jit(family.decode)(variables, z, jax.random.key(1))
    running = make("dcgan", standing_batches=0).decode(variables, z, jax.random.key(1))
    assert np.abs(images - expected).mean() < 0.1 * np.abs(running - expected).mean()


def test_truncation_narrows():
    variables = jax.jit(make().init)(jax.random.key(0), batch(8))
    spread = {}
    for truncation in (None, 0.1):
        family = make(truncation=truncation, standing_batches=0)
        images = family.sample(variables, jax.random.key(2), 64)
        spread[truncation] = float(jnp.std(images, axis=0).mean())
        latents = family.latents.draw(jax.random.key(2), 64)
        assert latents.shape == (64, family.latents.width) == (64, LATENT)
        assert (jnp.abs(latents).max() <= 0.1) == (truncation is not None)
    assert spread[0.1] < 0.3 * spread[None]


def test_attributes():
    """Standing statistics mix the conditions that are asked for; both networks take them."""
    family = make("plain", conditioning=attributes(2))
    data = {**batch(8), "attributes": jnp.arange(32).reshape(16, 2) % 2}
    variables = jax.jit(family.init)(jax.random.key(0), data)
    sample = jax.jit(lambda c: family.sample(variables, jax.random.key(1), 2, condition=c))
    images = sample(jnp.array([[0, 1], [1, 1]]))
    assert images.shape == (2, 8, 8, 1)
    assert not np.array_equal(images, sample(jnp.array([[0, 1], [0, 0]])))
    assert np.isfinite(family.evaluate(variables, data, jax.random.key(1))[0]).all()


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


class TestLazyPenalty:
    """StyleGAN2's: every n-th step a turn of its own, of weight n, in the discriminator's Adam."""

    def test_phases(self):
        family = make("plain", penalty=gradient_penalty, penalty_every=4, discriminator_repeats=2)
        phases = [(p.name, p.optimizer, p.repeats, p.every) for p in family.phases]
        assert phases == [
            ("discriminator", "discriminator", 2, 1),
            ("penalty", "discriminator", 2, 4),
            ("generator", "generator", 1, 1),
        ]
        assert set(family.optimizers) == {"discriminator", "generator"}

    def test_losses(self):
        """The game and n times the penalty, which together are the loss that has it inside."""
        data, key = batch(8), jax.random.key(1)
        options = {"penalty": gradient_penalty, "penalty_weight": 3.0, "conditioning": CLASSES}
        inside, lazy = make("plain", **options), make("plain", **options, penalty_every=4)
        variables = jax.jit(inside.init)(jax.random.key(0), data)
        whole, aux = jax.jit(inside.phases[0].loss)(variables, data, key, FIRST)
        game, without = jax.jit(lazy.phases[0].loss)(variables, data, key, FIRST)
        penalty, alone = jax.jit(lazy.phases[1].loss)(variables, data, key, FIRST)
        assert set(alone.metrics) == {"penalty"} == set(aux.metrics) - set(without.metrics)
        assert alone.state is None
        np.testing.assert_allclose(alone.metrics["penalty"], aux.metrics["penalty"], rtol=1e-6)
        np.testing.assert_allclose(penalty, 12 * alone.metrics["penalty"], rtol=1e-6)
        np.testing.assert_allclose(game + penalty / 4, whole, rtol=1e-5)

    def test_training(self):
        """At steps 0 and 2 of three, with the discriminator's moments: five updates of them."""
        family = make("plain", penalty=gradient_penalty, penalty_every=2)
        data, step = batch(8), jax.jit(make_step(family))
        state = jax.jit(functools.partial(init_state, family))(jax.random.key(0), data)
        weights = []
        for i in range(3):
            result = step(state, {}, data, jax.random.key(i))
            state = result.state
            assert int(result.bad) == -1
            weights.append(float(result.metrics["penalty/penalty"][1]))
        assert weights == [16, 0, 16]
        counts = {name: int(opt_state[0].count) for name, opt_state in state.opt_state.items()}
        assert counts == {"discriminator": 5, "generator": 3}


@pytest.mark.parametrize(
    "kind",
    ["plain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dcgan", "resnet"))],
)
def test_eight_devices_equal_one(kind):
    """Parameters, batch statistics and spectral vectors after two steps, repeats included."""
    size = 32 if kind == "resnet" else 8
    # Adam would blow up the rounding of gradients that are zero, of a bias before a norm say.
    family = make(kind, conditioning=CLASSES, discriminator_repeats=2, optimizer=optax.sgd(1e-2))
    data = batch(size, 32)
    equal_on_one_and_eight(family, data)


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        ({"real_accuracy": 0.999, "fake_accuracy": 0.999}, "discriminator has won"),
        ({"real_accuracy": 0.6, "fake_accuracy": 0.01}, "generator has won"),
        ({"real_accuracy": 0.01, "fake_accuracy": 0.05}, None),
        ({"real_accuracy": 0.8, "fake_accuracy": 0.8, "diversity": 0.1}, "modes"),
        ({"real_accuracy": 0.8, "fake_accuracy": 0.8, "diversity": 0.9}, None),
    ],
)
def test_warnings(metrics, word):
    named = {f"discriminator/{k}": v for k, v in metrics.items()}
    messages = make(loss="hinge").watch(named)
    assert [word in w for w in messages] == ([] if word is None else [True])
    messages = make(loss="wasserstein").watch(named)
    assert not [w for w in messages if "discriminator has won" in w]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinges"}, "name must be"),
        ({"discriminator_repeats": 0}, "discriminator_repeats must be at least 1, got 0"),
        ({"fakes_per_real": 0}, "fakes_per_real must be at least 1"),
        ({"standing_batches": -1}, "standing_batches must be at least 0"),
        ({"penalty": gradient_penalty}, "without batch statistics"),
        ({"penalty": gradient_penalty, "penalty_every": 0}, "penalty_every must be at least 1"),
        ({"penalty_every": 2}, "penalty_every must be 1 without a penalty, got 2"),
        ({"auxiliary": gan.Auxiliary()}, "needs a condition of classes or attributes, got none"),
        (
            {"auxiliary": gan.Auxiliary(), "conditioning": embeddings(3)},
            "of classes or attributes, got 'embedding'",
        ),
        (
            {"auxiliary": gan.Auxiliary(), "conditioning": CLASSES},
            "needs a discriminator with num_classes 3, got None",
        ),
        (
            {"auxiliary": gan.Auxiliary(), "conditioning": attributes(2), "num_classes": 3},
            "needs a discriminator with num_classes 2, got 3",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_data():
    with pytest.raises(ValueError, match="generator makes"):
        make("plain").init(jax.random.key(0), batch(16))
    family = make("plain", conditioning=CLASSES)
    data = batch(8)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        family.init(jax.random.key(0), {**data, "label": data["label"] + 1})
    variables = family.init(jax.random.key(0), data)
    with pytest.raises(ValueError, match="condition must be given"):
        family.sample(variables, jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        family.sample(variables, jax.random.key(0), 2, condition=jnp.array([0, 3]))


@pytest.mark.parametrize("every", [1, 2])
def test_a_penalty_with_minibatch_deviation(every):
    """StyleGAN2's: the gradient is that of the summed logits; only batch norm is refused."""
    networks = (
        dcgan.Generator(8, 1, 4, 4, min_size=4),
        dcgan.Discriminator(4, stddev_group=2, min_size=4, batch_norm=False),
    )
    sgd = optax.sgd(0.1)
    family = gan.gan(
        *networks, sgd, sgd, penalty=gradient_penalty, penalty_every=every, standing_batches=0
    )
    real = {"image": jax.random.normal(jax.random.key(0), (4, 8, 8, 1))}
    variables = jax.jit(family.init)(jax.random.key(1), real)
    phase = family.phases[every - 1]
    value, aux = jax.jit(phase.loss)(variables, real, jax.random.key(2), jnp.int32(0))
    assert np.isfinite(value).all()
    assert aux.metrics["penalty"].shape == (4,)


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
