"""The GAN family keeps the contract, and every way of playing it trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from quick import quick_jit

from jaxgen import conditioning
from jaxgen.augmentation import diff_augment
from jaxgen.families import gan
from jaxgen.losses.gan import gradient_penalty
from jaxgen.models import dcgan, resnet_gan
from jaxgen.training.step import init_state, make_step

LATENT = 4
CLASSES = conditioning.labels(3)


def networks(kind, *, num_classes=None):
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


VARIANTS = {
    "dcgan": (8, {}),
    "dcgan, told the class, augmented": (
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


@pytest.fixture(scope="module", params=list(VARIANTS))
def trained(request):
    """(family, first state, what four steps make of it)."""
    size, options = VARIANTS[request.param]
    family = make(**options)
    data = batch(size)
    init = functools.partial(init_state, family, ema_of=(gan.GENERATOR,))
    state = quick_jit(init)(jax.random.key(0), data)
    step = quick_jit(make_step(family, ema=0.9))
    results, new = [], state
    for i in range(4):
        result = step(new, data, jax.random.key(i))
        results.append(result)
        new = result.state
    assert step._cache_size() == 1
    return family, data, state, results


def test_steps(trained):
    """Both networks move, every metric is finite, the average is the generator's alone."""
    _, _, state, results = trained
    new = results[-1].state
    for name in (gan.GENERATOR, gan.DISCRIMINATOR):
        pairs = zip(*(jax.tree.leaves(s.params[name]) for s in (state, new)), strict=True)
        assert all(np.isfinite(b).all() for _, b in pairs)
        assert not np.allclose(*(jax.tree.leaves(s.params[name])[-1] for s in (state, new)))
    assert set(new.ema) == {gan.GENERATOR}
    metrics = results[-1].metrics
    for name in ("real_logit", "fake_logit", "real_accuracy", "fake_accuracy", "loss", "grad_norm"):
        total, weight = metrics[f"discriminator/{name}"]
        assert np.isfinite(total)
        assert weight > 0
    assert np.isfinite(metrics["generator/loss"][0])
    assert int(results[-1].bad) == -1


def test_each_phase_moves_its_own():
    """The discriminator's turn leaves the generator and its state alone, and the other way."""
    family, data, key = make(), batch(8), jax.random.key(1)
    params, state = quick_jit(family.init)(jax.random.key(0), data)
    for phase, other in zip(family.phases, (gan.GENERATOR, gan.DISCRIMINATOR), strict=True):
        loss, aux = quick_jit(functools.partial(phase.loss, train=True))(params, state, data, key)
        assert loss.shape == (16,)
        assert loss.dtype == jnp.float32
        jax.tree.map(np.testing.assert_array_equal, aux.model_state[other], state[other])
    loss, aux = quick_jit(functools.partial(family.evaluate, train=False))(params, state, data, key)
    assert np.isfinite(loss).all()
    jax.tree.map(np.testing.assert_array_equal, aux.model_state, state)


def test_sample_and_decode(trained):
    family, data, _, results = trained
    told = None if family.phases[0].loss.__self__.conditioning is None else jnp.array([0, 1, 2])
    draw = functools.partial(family.sample, num=3, condition=told)
    sample = quick_jit(lambda s, key: draw(s.params, s.model_state, key))
    images = sample(results[-1].state, jax.random.key(0))
    assert images.shape == (3, *data["image"].shape[1:])
    assert float(jnp.abs(images).max()) <= 1
    np.testing.assert_array_equal(images, sample(results[-1].state, jax.random.key(0)))
    assert not np.array_equal(images, sample(results[-1].state, jax.random.key(1)))


def test_standing_statistics_are_the_batches_own():
    """One standing batch: the images are those of batch normalization over that batch."""
    family = make("dcgan", standing_batches=64)
    params, state = quick_jit(family.init)(jax.random.key(0), batch(8))
    z = jax.random.normal(jax.random.key(5), (512, LATENT))
    generator = networks("dcgan")[0]
    variables = {"params": params["generator"], **state["generator"]}
    expected, _ = generator.apply(variables, z, train=True, mutable=["batch_stats"])
    images = quick_jit(family.decode)(params, state, z, jax.random.key(1))
    running = make("dcgan", standing_batches=0).decode(params, state, z, jax.random.key(1))
    assert np.abs(images - expected).mean() < 0.1 * np.abs(running - expected).mean()


def test_truncation_narrows():
    params, state = quick_jit(make().init)(jax.random.key(0), batch(8))
    spread = {}
    for truncation in (None, 0.1):
        family = make(truncation=truncation, standing_batches=0)
        images = family.sample(params, state, jax.random.key(2), 64)
        spread[truncation] = float(jnp.std(images, axis=0).mean())
    assert spread[0.1] < 0.3 * spread[None]


@pytest.mark.parametrize("kind", ["dcgan", pytest.param("resnet", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(kind):
    """Parameters, batch statistics and spectral vectors after two steps, repeats included."""
    size = {"dcgan": 8, "resnet": 32}[kind]
    # Adam would blow up the rounding of gradients that are zero, of a bias before a norm say.
    family = make(kind, conditioning=CLASSES, discriminator_repeats=2, optimizer=optax.sgd(1e-2))
    data = batch(size, 32)
    equal_on_one_and_eight(family, data)


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        ({"real_accuracy": 0.999, "fake_accuracy": 0.999}, "discriminator has won"),
        ({"real_accuracy": 0.6, "fake_accuracy": 0.01}, "generator has won"),
        ({"real_accuracy": 0.8, "fake_accuracy": 0.8, "diversity": 0.1}, "modes"),
        ({"real_accuracy": 0.8, "fake_accuracy": 0.8, "diversity": 0.9}, None),
    ],
)
def test_warnings(metrics, word):
    named = {f"discriminator/{k}": v for k, v in metrics.items()}
    found = gan.warnings("hinge", named)
    assert [word in w for w in found] == ([] if word is None else [True])
    assert not [w for w in gan.warnings("wasserstein", named) if "discriminator has won" in w]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinges"}, "name must be"),
        ({"discriminator_repeats": 0}, "discriminator_repeats must be at least 1, got 0"),
        ({"fakes_per_real": 0}, "fakes_per_real must be at least 1"),
        ({"standing_batches": -1}, "standing_batches must be at least 0"),
        ({"penalty": gradient_penalty}, "without batch statistics"),
        ({"auxiliary": gan.Auxiliary()}, "needs a discriminator with num_classes"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_data():
    with pytest.raises(ValueError, match="generator makes"):
        make().init(jax.random.key(0), batch(16))
    family = make(conditioning=CLASSES)
    data = batch(8)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        family.init(jax.random.key(0), {**data, "label": data["label"] + 1})
    params, state = family.init(jax.random.key(0), data)
    with pytest.raises(ValueError, match="condition must be given"):
        family.sample(params, state, jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        family.sample(params, state, jax.random.key(0), 2, condition=jnp.array([0, 3]))
