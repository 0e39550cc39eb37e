"""The GAN family keeps the contract, and every way of playing it trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from small_gans import (
    CLASSES,
    FIRST,
    LATENT,
    batch,
    make,
    networks,
    variables_at,
)

from jaxgen.augmentation.diff_augment import diff_augment
from jaxgen.conditioning.attributes import attributes, embeddings
from jaxgen.families import gan
from jaxgen.families.gan_players import DISCRIMINATOR, GENERATOR
from jaxgen.losses.gan import gradient_penalty
from jaxgen.models import dcgan
from jaxgen.training import averages
from jaxgen.training.step import init_state, make_step

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
