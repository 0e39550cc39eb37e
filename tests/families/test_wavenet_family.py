"""The WaveNet family keeps the contract, with classes and with logistics, with conditions too."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from few_steps import train

from jaxgen.conditioning.labels import labels
from jaxgen.data.audio import to_model_space
from jaxgen.families.wavenet import wavenet
from jaxgen.models.wavenet import WaveNet
from jaxgen.sampling.autoregressive import draw_categorical, naive_ancestral

KEY, TIME, BATCH, HOP = jax.random.key(0), 48, 8, 4
LABELS = labels(2)
SMALL = {"stacks": 1, "layers": 3, "channels": 8, "skip_channels": 8, "hop": HOP}


def sounds():
    """Two tones, one for each label, at rest; the energy of every fourth sample beside them."""
    label = np.arange(BATCH) % 2
    phase = np.linspace(0, 6, BATCH)[:, None]
    period = np.array([12.0, 5.0])[label][:, None]
    x = 0.7 * np.sin(2 * np.pi * np.arange(TIME)[None] / period + phase)
    features = np.square(x).reshape(BATCH, -1, HOP).mean(axis=2, keepdims=True)
    return {
        "audio": jnp.asarray(np.round(32767 * x), jnp.int16),
        "label": jnp.asarray(label, jnp.int32),
        "energy": jnp.asarray(features, jnp.float32),
    }


def make(output="mu_law", *, optimizer=None, values=32, **options):
    is_mu_law = output == "mu_law"
    network = WaveNet(values if is_mu_law else 6, values if is_mu_law else None, **SMALL)
    data, encoding = sounds(), "mu_law" if is_mu_law else "linear"
    data["audio"] = to_model_space(data["audio"], encoding, values)
    family = wavenet(
        network,
        optimizer or optax.adam(1e-2),
        **{"num_samples": TIME, "output": output, "num_values": values, **options},
    )
    return network, family, data


FAMILIES = {
    "classes": {},
    "classes, all conditions": {"conditioning": LABELS, "local": "energy", "context": 8},
    "logistics, conditional": {"output": "mixture_of_logistics", "conditioning": LABELS},
}


class Trained:
    """A family, its data, and its variables before and after a few steps."""

    def __init__(self, name, num_steps=15):
        self.options = FAMILIES[name]
        self.network, self.family, self.data = make(**self.options)
        self.start, self.variables, _ = train(self.family, self.data, num_steps)
        self.evaluate = jax.jit(self.family.evaluate)

    def value(self, variables):
        return self.evaluate(variables, self.data, KEY)


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request):
    return Trained(request.param)


def test_steps_lower_the_loss(trained):
    before, _ = trained.value(trained.start)
    after, metrics = trained.value(trained.variables)
    assert before.shape == (BATCH,)
    assert before.dtype == jnp.float32
    assert after.mean() < before.mean() - 5
    predicted = TIME - trained.options.get("context", 0)
    bits = after / (predicted * math.log(2))
    np.testing.assert_allclose(metrics["bits_per_sample"], bits, rtol=1e-5)
    assert 0 < bits.mean() < 5  # 32 values are 5 bits
    log_prob = jax.jit(trained.family.log_prob)
    np.testing.assert_allclose(log_prob(trained.variables, trained.data, KEY), -after, rtol=1e-5)


def conditions(trained):
    """The options of three samples."""
    options = {}
    if "conditioning" in trained.options:
        options["condition"] = jnp.array([0, 1, 1])
    if "local" in trained.options:
        options["local"] = trained.data["energy"][:3]
    return options


def test_sample(trained):
    @jax.jit
    def sample(variables, key):
        return trained.family.sample(variables, key, 3, **conditions(trained))

    x = sample(trained.variables, KEY)
    assert x.shape == (3, TIME)
    assert x.dtype == trained.data["audio"].dtype
    assert len(np.unique(x)) > 3
    np.testing.assert_array_equal(x, sample(trained.variables, KEY))


def test_complete(trained):
    """What is known is kept, and the rest is drawn by the key."""

    @jax.jit
    def complete(variables, key, given, known):
        return trained.family.complete(variables, key, given, known, **conditions(trained))

    given = trained.data["audio"][:3]
    known = jnp.tile(jnp.arange(TIME)[None] < 10, (3, 1))
    x = complete(trained.variables, KEY, given, known)
    assert x.shape == (3, TIME)
    assert x.dtype == trained.data["audio"].dtype
    np.testing.assert_array_equal(x[:, :10], given[:, :10])
    assert len(np.unique(x[:, 10:])) > 3
    np.testing.assert_array_equal(x, complete(trained.variables, KEY, given, known))
    other = complete(trained.variables, jax.random.key(1), given, known)
    assert not np.array_equal(x[:, 10:], other[:, 10:])


def test_the_condition_changes_the_likelihood():
    """Which of two tones: p(y | x) by Bayes' rule is right, of all examples."""
    trained = Trained("logistics, conditional", 75)
    log_prob = jax.jit(trained.family.log_prob)
    by_label = [
        log_prob(trained.variables, {**trained.data, "label": jnp.full(BATCH, y)}, KEY)
        for y in (0, 1)
    ]
    np.testing.assert_array_equal(np.argmax(by_label, axis=0), trained.data["label"])


@pytest.mark.slow
def test_samples_of_another_length_and_temperature():
    """`sample` is the naive sampler with the same key; at temperature 0, the likeliest."""
    for temperature in (0.0, 0.7):
        network, family, data = make(values=8, temperature=temperature, sample_length=30)
        variables = family.init(KEY, data)
        variables = jax.tree.map(lambda p: 2 * p, variables)  # away from uniform

        @jax.jit
        def both(variables, temperature=temperature, network=network, family=family):
            naive = naive_ancestral(
                lambda v: network.apply({"params": variables.params["wavenet"]}, v),
                jnp.zeros((2, 30), jnp.int32),
                KEY,
                draw_categorical(temperature),
            )
            return family.sample(variables, KEY, 2), naive

        np.testing.assert_array_equal(*both(variables))


def test_context_is_given():
    """What comes before it does not count, and the rest counts as without it."""
    _, family, data = make()
    variables = family.init(KEY, data)
    values = []
    for context in (0, 20):
        _, family, _ = make(context=context)
        values.append(jax.jit(family.log_prob)(variables, data, KEY))
    network, _, _ = make()
    short = wavenet(network, optax.sgd(1.0), num_samples=20, num_values=32)
    first = jax.jit(short.log_prob)(variables, {"audio": data["audio"][:, :20]}, KEY)
    np.testing.assert_allclose(values[0], first + values[1], rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_equal_one():
    _, family, data = make(optimizer=optax.sgd(1e-4), conditioning=LABELS)
    equal_on_one_and_eight(family, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "softmax"}, "output must be one of mu_law, mixture_of_logistics"),
        ({"num_values": 16}, "num_values = num_outputs = 16 for 'mu_law', got 32 and 32"),
        ({"num_values": 1}, "num_values must be at least 2"),
        ({"output": "mixture_of_logistics"}, "num_values None and a multiple of 3"),
        ({"context": TIME}, "context must be in 0..47"),
        ({"sample_length": 0}, "sample_length must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
    ],
)
def test_bad_options(options, message):
    network = WaveNet(32, 32, **SMALL)
    with pytest.raises(ValueError, match=message):
        wavenet(network, optax.sgd(1.0), **{"num_samples": TIME, "num_values": 32, **options})


def test_bad_data():
    _, family, data = make(conditioning=LABELS, local="energy")
    with pytest.raises(ValueError, match=r"audio must be \[B, 48\], got \[8, 40\]"):
        family.init(KEY, {**data, "audio": data["audio"][:, :40]})
    with pytest.raises(TypeError, match="audio must be i32 classes for mu_law, .* got int16"):
        family.init(KEY, sounds())
    with pytest.raises(ValueError, match="the batch must have 'energy'"):
        family.init(KEY, {"audio": data["audio"]})
    variables = family.init(KEY, data)
    with pytest.raises(ValueError, match=r"local must be \[B, 12, F\]"):
        family.log_prob(variables, {**data, "energy": data["energy"][:, :3]}, KEY)
    with pytest.raises(ValueError, match="local must be given"):
        family.sample(variables, KEY, 2, condition=jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="condition must be given"):
        family.sample(variables, KEY, 2, local=data["energy"])
    _, family, data = make()
    with pytest.raises(ValueError, match="local must be None"):
        family.sample(variables, KEY, 2, local=data["energy"])


def test_bad_completions():
    _, family, data = make()
    variables, given = family.init(KEY, data), data["audio"]
    with pytest.raises(ValueError, match=r"known must have the shape \(8, 48\), got \(8, 40\)"):
        family.complete(variables, KEY, given, given[:, :40] > 0)
    with pytest.raises(ValueError, match=r"given must be \[B, T\], got \[8, 48, 1\]"):
        family.complete(variables, KEY, given[..., None], given > 0)
    with pytest.raises(TypeError, match="given must be i32 classes for mu_law, .* got int16"):
        family.complete(variables, KEY, sounds()["audio"], given > 0)
