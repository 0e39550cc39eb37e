"""WaveNet: causal in samples and conditions, a distribution, its cached form the whole one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.losses.autoregressive import categorical_nll
from jaxgen.models.wavenet import WaveNet
from jaxgen.sampling.autoregressive import (
    ancestral,
    draw_categorical,
    draw_mixture_of_logistics,
    naive_ancestral,
)

KEY = jax.random.key(0)
TIME, HOP, BATCH = 20, 3, 2
SMALL = {"stacks": 2, "layers": 3, "channels": 6, "skip_channels": 8, "hop": HOP}
CLASSES = {"num_outputs": 5, "num_values": 5}
NUMBERS = {"num_outputs": 6, "num_values": None}


def make(conditional=True, **options):
    """A network with every parameter away from its first value, its conditions and a sequence."""
    network = WaveNet(**{**SMALL, **options})
    random = np.random.default_rng(0)
    if network.num_values is None:
        x = jnp.asarray(random.uniform(-1, 1, (BATCH, TIME)), jnp.float32)
    else:
        x = jnp.asarray(random.integers(0, network.num_values, (BATCH, TIME)), jnp.int32)
    conditions = (None, None)
    if conditional:
        shapes = (BATCH, 3), (BATCH, -(-TIME // network.hop), 4)
        vector, local = (jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes)
        conditions = (Condition(vector), local)
    shapes = jax.eval_shape(network.init, KEY, x, *conditions)
    variables = jax.tree.map(
        lambda p: jnp.asarray(0.4 * random.normal(size=p.shape), p.dtype), shapes
    )
    return network, variables, conditions, x


def run(network, variables, x, *conditions):
    return jax.jit(network.apply)(variables, x, *conditions)


NETWORKS = {
    "classes": {**CLASSES, "conditional": False},
    "classes, conditional": CLASSES,
    "numbers, learned upsampling": {**NUMBERS, "upsample": "learned"},
    "three taps": {**CLASSES, "kernel_size": 3},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_shapes_and_receptive_field(options):
    network, variables, conditions, x = make(**options)
    outputs = jax.eval_shape(network.apply, variables, x, *conditions)
    assert outputs.shape == (BATCH, TIME, network.num_outputs)
    assert network.receptive_field == 1 + (network.kernel_size - 1) * 2 * (1 + 2 + 4)


def test_causal_by_gradient():
    """Output t sees samples t - R, ..., t - 1 and no other; frames up to its own; the vector."""
    network, variables, (condition, local), x = make(**NUMBERS, upsample="learned")

    def outputs(x, condition, local):
        return network.apply(variables, x, condition, local).sum((0, 2))

    jacobian = jax.jit(jax.jacrev(outputs, (0, 1, 2)))
    by_x, by_condition, by_local = jacobian(x, condition, local)
    seen = np.abs(by_x).sum(1) != 0
    ahead = np.arange(TIME)[:, None] - np.arange(TIME)[None]
    np.testing.assert_array_equal(seen, (ahead >= 1) & (ahead <= network.receptive_field))
    frames = np.abs(by_local).sum((1, 3)) != 0
    since = np.arange(TIME)[:, None] - HOP * np.arange(7)[None]  # from the frame's first sample
    # Two less than samples: there is no shift by one, and the first layer's own taps do not count.
    reach = network.receptive_field - 2
    np.testing.assert_array_equal(frames, (since >= 0) & (since - HOP + 1 <= reach))
    assert (np.abs(by_condition.vector).sum((1, 2)) > 0).all()


def test_future_classes_do_not_leak():
    network, variables, conditions, x = make(**CLASSES)
    other = x.at[:, 8:].set((x[:, 8:] + 1) % 5)
    a, b = (run(network, variables, values, *conditions) for values in (x, other))
    np.testing.assert_array_equal(a[:, :9], b[:, :9])
    assert not np.allclose(a[:, 9], b[:, 9])


@pytest.mark.parametrize("conditional", [False, True])
def test_masses_of_all_sequences_sum_to_one(conditional):
    network, variables, conditions, _ = make(
        conditional, num_outputs=3, num_values=3, stacks=1, layers=2, hop=1
    )
    every = jnp.array(list(itertools.product(range(3), repeat=4)))
    condition, local = jax.tree.map(lambda c: jnp.repeat(c[:1], 81, axis=0), conditions)
    local = None if local is None else local[:, :4]
    nats = categorical_nll(run(network, variables, every, condition, local), every)
    np.testing.assert_allclose(jnp.exp(-nats).sum(), 1, rtol=1e-5)
    assert nats.std() > 0.1


@pytest.mark.parametrize(
    ("name", "completed"),
    [
        ("classes", False),
        ("classes, conditional", True),
        ("numbers, learned upsampling", False),
        ("numbers, learned upsampling", True),
        ("three taps", False),
    ],
)
def test_cached_sampler_is_the_naive_one(name, completed):
    """Value for value: longer than any ring buffer, with conditions or not, some samples given."""
    network, variables, conditions, x = make(**NETWORKS[name])
    if network.num_values is None:
        draw_pixel = draw_mixture_of_logistics(0.8)

        def draw(key, params):
            return draw_pixel(key, params.reshape(BATCH, 3, -1))[..., 0]
    else:
        draw = draw_categorical(0.8)
    completion = {}
    if completed:
        known = jax.random.bernoulli(KEY, 0.3, (BATCH, TIME)).at[:, :4].set(True)
        completion = {"given": x, "known": known}

    @jax.jit
    def both(key):
        prepared = network.apply(variables, TIME, *conditions, method="conditions")
        cached, _ = ancestral(
            lambda c, p, t: network.apply(variables, c, p, t, prepared, method="step"),
            network.init_cache(BATCH),
            jnp.zeros(BATCH, x.dtype),
            key,
            TIME,
            draw,
            **completion,
        )
        naive = naive_ancestral(
            lambda v: network.apply(variables, v, *conditions), x, key, draw, **completion
        )
        return cached, naive

    cached, naive = both(jax.random.key(3))
    if network.num_values is None:
        np.testing.assert_allclose(cached, naive, atol=1e-5)
    else:
        np.testing.assert_array_equal(cached, naive)
    assert len(np.unique(cached)) > 3
    if completed:
        np.testing.assert_array_equal(np.asarray(cached)[known], np.asarray(x)[known])


def test_cached_parameters_equal_the_whole_networks():
    """Up to rounding, not only in what is drawn; and in two parts, from the cache between."""
    network, variables, conditions, x = make(**CLASSES)
    expected = run(network, variables, x, *conditions)
    prepared = network.apply(variables, TIME, *conditions, method="conditions")
    previous = jnp.pad(x, ((0, 0), (1, 0)))[:, :-1].T

    def turn(cache, now):
        y, cache = network.apply(variables, cache, *now, prepared, method="step")
        return cache, y

    cache, parts = network.init_cache(BATCH), []
    for part in (slice(0, 11), slice(11, TIME)):
        cache, y = jax.lax.scan(turn, cache, (previous[part], jnp.arange(TIME)[part]))
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts).swapaxes(0, 1), expected, atol=2e-5)


def test_repeated_frames():
    """A frame stands for hop samples: at hop 1, the same features repeated are the same."""
    network, variables, (condition, local), x = make(**CLASSES)
    fine = WaveNet(**{**SMALL, **CLASSES, "hop": 1})
    repeated = jnp.repeat(local, HOP, axis=1)[:, :TIME]
    np.testing.assert_allclose(
        run(network, variables, x, condition, local),
        run(fine, variables, x, condition, repeated),
        atol=1e-5,
    )


def test_half_precision_outputs_are_single():
    network, variables, conditions, x = make(**CLASSES, dtype=jnp.bfloat16)
    assert jax.eval_shape(network.apply, variables, x, *conditions).dtype == jnp.float32
    assert network.init_cache(1)[0].dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    cache = network.init_cache(BATCH)
    step = functools.partial(network.apply, method="step")
    y, after = jax.eval_shape(step, variables, cache, x[:, 0], jnp.int32(1))
    assert y.dtype == jnp.float32
    assert [c.dtype for c in after] == [c.dtype for c in cache]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stacks": 0}, "stacks must be at least 1, got 0"),
        ({"kernel_size": 1}, "kernel_size must be at least 2, got 1"),
        ({"num_values": 1}, "num_values must be at least 2 or None, got 1"),
        ({"upsample": "cubic"}, "upsample must be 'repeat' or 'learned', got 'cubic'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        WaveNet(**{**CLASSES, **options})


def test_bad_input():
    network, variables, (condition, local), x = make(**CLASSES)
    with pytest.raises(ValueError, match=r"local must be \[B, 7, F\], a frame for each 3 of 20"):
        network.apply(variables, x, condition, local[:, :6])
    with pytest.raises(TypeError, match=r"values must be classes \(integers\), got float32"):
        network.apply(variables, x.astype(jnp.float32), condition, local)
    network, variables, conditions, x = make(**NUMBERS)
    with pytest.raises(TypeError, match=r"values must be numbers \(floating point\), got int32"):
        network.apply(variables, x.astype(jnp.int32), *conditions)
