"""The flow family keeps the contract, on images and on vectors."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from few_steps import train

from jaxgen.conditioning.base import vector_of
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.data.sources import digits
from jaxgen.families.flow import check_values, flow
from jaxgen.models.bijectors.algebra import (
    ActNorm,
    Bijector,
    Logit,
    MultiScale,
    Repeat,
    Squeeze,
    chain,
)
from jaxgen.models.bijectors.conditioners import MLP
from jaxgen.models.bijectors.coupling import Affine, Coupling, LearnedPrior, Split
from jaxgen.models.bijectors.linear import InvertibleLinear
from jaxgen.models.maf import maf
from jaxgen.models.realnvp import realnvp

CLASSES = labels(10)
SHAPE = (8, 8, 1)
KEY = jax.random.key(0)


class Pixels(nn.Module):
    """A conditioner of images that compiles in no time: each pixel sees itself and a neighbour."""

    features: int

    @nn.compact
    def __call__(self, x, condition=None):
        e = vector_of(condition)
        h = nn.Dense(16)(jnp.concatenate([x, jnp.roll(x, 1, axis=1)], -1))
        h = nn.silu(h if e is None else h + nn.Dense(16)(e)[:, None, None])
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros)(h)


class Noise(nn.Module):
    """A learned dequantizer: `sigmoid(eps e^s + t)`."""

    @nn.compact
    def __call__(self, image, eps, condition=None):
        h = nn.Dense(2, kernel_init=nn.initializers.zeros)(image)
        shift, log_scale = h[..., :1], h[..., 1:]
        y = eps * jnp.exp(log_scale) + shift
        slope = log_scale + jax.nn.log_sigmoid(y) + jax.nn.log_sigmoid(-y)
        log_q = jax.scipy.stats.norm.logpdf(eps) - slope
        return jax.nn.sigmoid(y), log_q.sum((1, 2, 3))


def small_glow():
    """Glow's shape with a cheap conditioner."""

    def steps(num):
        return Repeat(chain(ActNorm(), InvertibleLinear(), Coupling(Pixels)), num)

    first, last = chain(Squeeze(), steps(2)), chain(Squeeze(), steps(1), LearnedPrior())
    return chain(Logit(), MultiScale((first, last), (Split(Pixels),)))


def one_level():
    step = chain(ActNorm(), InvertibleLinear(), Coupling(Pixels))
    return chain(Logit(), Squeeze(), Repeat(step, 2))


def batch(num=64):
    examples = digits()[np.arange(num)]
    image = jnp.asarray(examples["image"], jnp.float32) / 127.5 - 1
    image = jnp.asarray(image).reshape(num, *SHAPE)
    return {"image": image, "label": jnp.asarray(examples["label"])}


def vectors(num=64):
    z = np.random.default_rng(0).normal(size=(num, 2)).astype(np.float32)
    x = np.stack([z[:, 0], z[:, 0] ** 2 + 0.1 * z[:, 1]], axis=1)
    return {"vector": jnp.asarray(x), "label": jnp.arange(num) % 10}


FAMILIES = {
    "images": (lambda: flow(one_level(), optax.adam(3e-3), event_shape=SHAPE), batch),
    "images, conditional, learned noise": (
        lambda: flow(
            small_glow(),
            optax.adam(3e-3),
            event_shape=SHAPE,
            conditioning=CLASSES,
            dequantizer=Noise(),
        ),
        batch,
    ),
    "vectors": (
        lambda: flow(
            maf(2, (8,), shuffle=True), optax.adam(1e-2), event_shape=(2,), temperature=0.5
        ),
        vectors,
    ),
}


class Trained:
    """A family, its data, and its variables before and after a few steps."""

    def __init__(self, name):
        make, data = FAMILIES[name]
        self.family, self.data = make(), data()
        self.labels = jnp.array([1, 2, 3]) if "conditional" in name else None
        self.start, self.variables, self.metrics = train(self.family, self.data, 12)
        self.evaluate = jax.jit(self.family.evaluate)

    def value(self, variables):
        return self.evaluate(variables, self.data, jax.random.key(5))


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request):
    return Trained(request.param)


def test_steps_lower_the_loss(trained):
    before, after = (trained.value(v)[0] for v in (trained.start, trained.variables))
    assert before.shape == (64,)
    assert before.dtype == jnp.float32
    assert after.mean() < before.mean() - 0.1
    assert all(np.isfinite(value) for value in trained.metrics.values())
    both = (trained.start, trained.variables)
    jax.tree.map(np.testing.assert_array_equal, *(v.state for v in both))
    for name in trained.start.params:
        pairs = zip(*(jax.tree.leaves(v.params[name]) for v in both), strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs)


def test_metrics_add_up(trained):
    nats, metrics = trained.value(trained.variables)
    terms = dict(metrics)
    bits = terms.pop("bits_per_dim", None)
    np.testing.assert_allclose(sum(terms.values()), nats, rtol=1e-4)
    if bits is not None:
        np.testing.assert_allclose(bits, nats / (64 * math.log(2)), rtol=1e-5)
        assert 0 < bits.mean() < 8
    log_prob = jax.jit(trained.family.log_prob)(trained.variables, trained.data, jax.random.key(5))
    np.testing.assert_allclose(log_prob, -nats, rtol=1e-5)


def test_encode_and_decode(trained):
    """The round trip of real data is exact to 1e-4, and latents are one row each."""
    family = trained.family
    condition = None if trained.labels is None else trained.data["label"]

    @jax.jit
    def run(variables, data):
        z = family.encode(variables, data, KEY)
        return z, family.decode(variables, z, KEY, condition=condition)

    z, x = run(trained.variables, trained.data)
    expected = trained.data.get("image", trained.data.get("vector"))
    assert z.shape == (64, expected[0].size)
    assert family.latents.width == expected[0].size
    assert family.latents.draw(KEY, 3).shape == (3, expected[0].size)
    np.testing.assert_allclose(x, expected, atol=1e-4)


def test_sample(trained):
    family, variables = trained.family, trained.variables

    @jax.jit
    def sample(key):
        return family.sample(variables, key, 3, condition=trained.labels)

    x = sample(KEY)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x, sample(KEY))
    assert not np.array_equal(x, sample(jax.random.key(1)))
    if "image" in trained.data:  # bytes
        assert x.shape == (3, *SHAPE)
        levels = (np.asarray(x) + 1) * 127.5
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
        assert np.abs(x).max() <= 1


class Leaky(Bijector):
    """Its way back misses the first of the examples by 0.5, the second by 1e-5."""

    @nn.compact
    def __call__(self, x, condition=None, *, reverse=False):
        misses = jnp.zeros(x.shape[:1]).at[:2].set(jnp.array([0.5, 1e-5]))
        return x + reverse * misses[:, None], jnp.zeros(x.shape[:1])


def test_round_trip():
    """Evaluation says how far each example comes back from itself; training does not look."""
    data = vectors(4)
    family = flow(Leaky(), optax.sgd(1.0), event_shape=(2,), round_trip=True)
    variables = Variables({"flow": {}}, {"flow": {}})
    nats, metrics = family.evaluate(variables, data, KEY)
    trained, plain = family.phases[0].loss(variables, data, KEY, jnp.int32(0))
    rest = dict(metrics)
    np.testing.assert_allclose(rest.pop("round_trip_error"), [0.5, 1e-5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(rest.pop("round_trip_exact"), [0, 1, 1, 1])
    assert sorted(rest) == sorted(plain.metrics)
    np.testing.assert_array_equal(nats, trained)


def test_a_penalty_is_trained_and_not_evaluated():
    data, model = vectors(4), chain(ActNorm(), Coupling(MLP, Affine()))

    def penalty(params):
        return 2.0 + 0.0 * jax.tree.leaves(params)[0].sum()

    plain = flow(model, optax.sgd(1.0), event_shape=(2,))
    family = flow(model, optax.sgd(1.0), event_shape=(2,), penalty=penalty)
    variables = jax.jit(plain.init)(KEY, data)
    nats, aux = family.phases[0].loss(variables, data, KEY, jnp.int32(0))
    expected, _ = plain.phases[0].loss(variables, data, KEY, jnp.int32(0))
    np.testing.assert_allclose(nats, expected + 2, rtol=1e-6)
    np.testing.assert_array_equal(aux.metrics["penalty"], [2, 2, 2, 2])
    values, metrics = family.evaluate(variables, data, KEY)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert "penalty" not in metrics


def test_temperature_scales_the_latents():
    """Temperature 0 is the image of 0, and in between the latents are that much smaller."""
    data, model = vectors(), chain(ActNorm(), Coupling(MLP, Affine()))
    families = {
        t: flow(model, optax.sgd(1.0), event_shape=(2,), temperature=t) for t in (0.0, 0.5, 1.0)
    }
    variables = jax.jit(families[1.0].init)(KEY, data)

    def drawn_latents(family):
        def run(variables):
            return family.encode(variables, {"vector": family.sample(variables, KEY, 5)}, KEY)

        return jax.jit(run)(variables)

    z = {t: drawn_latents(family) for t, family in families.items()}
    np.testing.assert_allclose(z[0.0], 0, atol=1e-5)
    np.testing.assert_allclose(z[0.5], 0.5 * z[1.0], atol=1e-5)


def test_check_refuses_singular_matrices():
    """Of the flow's own; a flow without such matrices has nothing to refuse, nor have others."""
    data = vectors()
    family = flow(InvertibleLinear(lu=False), optax.sgd(1.0), event_shape=(2,))
    params = family.init(KEY, data).params
    family.check({**params, "other": {"matrix": np.zeros((2, 2))}})
    with pytest.raises(ValueError, match="flow/matrix is singular"):
        family.check({"flow": {"matrix": np.ones((2, 2))}})
    plain = flow(Coupling(MLP), optax.sgd(1.0), event_shape=(2,))
    plain.check(jax.tree.map(jnp.zeros_like, plain.init(KEY, data).params))


@pytest.mark.slow
def test_eight_devices_equal_one():
    """Data-dependent initialization and two steps, noise included."""
    # Adam would blow up the rounding of gradients that are zero.
    family = flow(one_level(), optax.sgd(1e-4), event_shape=SHAPE)
    data = batch(32)
    equal_on_one_and_eight(family, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": (8, 8)}, r"event_shape must be .* got \(8, 8\)"),
        ({"event_shape": (0,)}, "event_shape must be"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"event_shape": (2,), "dequantizer": Noise()}, "dequantizer is for images"),
        ({"event_shape": SHAPE, "num_values": 1}, "num_values must be from 2 to 256, got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        flow(ActNorm(), optax.sgd(1.0), **{"event_shape": SHAPE, **options})


def test_bad_values():
    """Digits have 17 values, and no others are trained on as if they were these."""
    check_values(batch()["image"], 17)
    with pytest.raises(ValueError, match=r"17 values, evenly spaced in 0..255, .* got one of 8$"):
        check_values(np.array([[-1, 16 / 255 - 1, 2 * 16 / 255 - 1]]), 17)


def test_bad_data():
    data = vectors()
    family = flow(ActNorm(), optax.sgd(1.0), event_shape=(2,))
    with pytest.raises(ValueError, match=r"batch\['vector'\] must be finite"):
        family.init(KEY, {"vector": data["vector"].at[3, 1].set(jnp.nan)})
    with pytest.raises(ValueError, match=r"event_shape is \(2,\), the data has \(1,\)"):
        family.init(KEY, {"vector": data["vector"][:, :1]})
    with pytest.raises(ValueError, match="entry is 'vector', but the batch has"):
        family.init(KEY, {"image": data["vector"]})
    variables = family.init(KEY, data)
    with pytest.raises(ValueError, match=r"latents must be \[B, 2\], got \[4, 3\]"):
        family.decode(variables, jnp.zeros((4, 3)), KEY)
    with pytest.raises(ValueError, match="condition must be None"):
        family.sample(variables, KEY, 2, condition=jnp.zeros(2, jnp.int32))
    conditional = flow(ActNorm(), optax.sgd(1.0), event_shape=(2,), conditioning=CLASSES)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9"):
        conditional.init(KEY, {**data, "label": data["label"] + 5})


@pytest.mark.slow
def test_a_precision_of_the_loss_alone():
    """bfloat16 reaches the loss; densities and the way back are float32's, to the last bit."""
    x = jax.random.normal(KEY, (64, 6))

    def make(**options):
        return flow(realnvp(4, (32, 32)), optax.sgd(0.1), event_shape=(6,), **options)

    exact, low = make(), make(training_model=realnvp(4, (32, 32), dtype=jnp.bfloat16))
    variables = low.init(KEY, {"vector": x})
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(KEY, p.shape), variables.params)
    variables = variables._replace(params=params)

    @jax.jit
    def run(variables, x):
        given = {"vector": x}
        back = low.decode(variables, low.encode(variables, given, KEY), KEY)
        return (
            low.log_prob(variables, given, KEY),
            exact.log_prob(variables, given, KEY),
            low.phases[0].loss(variables, given, KEY, jnp.int32(0))[0],
            low.evaluate(variables, given, KEY)[0],
            back,
        )

    log_prob, of_exact, loss, nats, back = run(variables, x)
    np.testing.assert_array_equal(log_prob, of_exact)
    np.testing.assert_array_equal(nats, -log_prob)
    np.testing.assert_allclose(back, x, atol=1e-5)
    assert np.mean(np.asarray(loss) != -np.asarray(log_prob)) > 0.9
    np.testing.assert_allclose(loss, -log_prob, rtol=0.02, atol=0.1)
