"""Adam's schedule and clipping, and the average's warm-up, at values known by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.core import Family, Optimizer
from jaxgen.training.optim import Rated, adam, learning_rates, rated
from jaxgen.training.packing import Elementwise


def rates(optimizer, num):
    """The size of each update under a constant gradient: Adam's is the learning rate."""
    params = {"w": jnp.zeros(1)}
    state, sizes = optimizer.init(params), []
    for _ in range(num):
        updates, state = optimizer.update({"w": jnp.ones(1)}, state, params)
        sizes.append(-float(updates["w"][0]))
    return sizes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 4}, [0, 0.25, 0.5, 0.75, 1, 1]),
        ({"decay_steps": 4}, [1, 0.75, 0.5, 0.25, 0, 0]),
        ({"warmup_steps": 2, "decay_steps": 4}, [0, 0.5, 1, 0.5, 0, 0]),
        ({"decay_steps": 4, "schedule": "linear"}, [1, 0.75, 0.5, 0.25, 0, 0]),
        ({"decay_steps": 4, "schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447, 0, 0]),
        ({"decay_steps": 4, "schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"decay_steps": 4, "schedule": "constant", "warmup_steps": 2}, [0, 0.5, 1, 1, 1, 1]),
        ({"decay_rate": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ({"decay_rate": 0.5, "decay_every": 2}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_schedules(options, expected):
    optimizer = adam(0.1, **options)
    np.testing.assert_allclose(rates(optimizer, 6), 0.1 * np.array(expected), atol=1e-6)
    known = [float(optimizer.learning_rate(jnp.int32(count))) for count in range(6)]
    np.testing.assert_allclose(known, 0.1 * np.array(expected), atol=1e-6)


def test_learning_rates_are_read_from_the_optimizers():
    """By their own counts: of what was skipped there was no update; those unknown are left out."""
    family = Family(
        None,
        {
            "generator": Optimizer(("g",), adam(0.1, warmup_steps=4, clip_norm=1.0)),
            "critic": Optimizer(("c",), adam(0.5, weight_decay=0.1)),
            "other": Optimizer(("o",), optax.sgd(1.0)),
        },
        (),
        None,
    )
    params = {"w": jnp.ones(1)}
    states = {name: o.transform.init(params) for name, o in family.optimizers.items()}
    for _ in range(3):
        for name in ("generator", "critic"):
            transform = family.optimizers[name].transform
            _, states[name] = transform.update({"w": jnp.ones(1)}, states[name], params)
    found = {name: float(rate) for name, rate in learning_rates(family)(states).items()}
    assert found == {
        "generator/learning_rate": pytest.approx(0.05),  # the third update's
        "critic/learning_rate": pytest.approx(0.5),
    }
    alone = family._replace(optimizers={"generator": family.optimizers["generator"]})
    assert list(learning_rates(alone)(states)) == ["learning_rate"]
    unknown = family._replace(optimizers={"other": family.optimizers["other"]})
    assert learning_rates(unknown)(states) == {}


def test_adamax():
    """The equations by hand: a decayed maximum, which needs no correction."""
    optimizer = adam(0.1, b1=0.9, b2=0.5, eps=1e-3, infinity=True)
    params = {"w": jnp.zeros(1)}
    state, m, v = optimizer.init(params), 0.0, 0.0
    for t, gradient in enumerate([1.0, -0.2, 0.3], start=1):
        update, state = optimizer.update({"w": jnp.full(1, gradient)}, state, params)
        m = 0.9 * m + 0.1 * gradient
        v = max(0.5 * v, abs(gradient) + 1e-3)
        np.testing.assert_allclose(update["w"], -0.1 * m / (1 - 0.9**t) / v, rtol=1e-5)


def test_weight_decay_takes_a_share_of_all_but_biases():
    """AdamW's, in units of the rate; the network is then not packed with others."""
    optimizer = adam(0.1, weight_decay=0.01)
    params = {"kernel": jnp.full(1, 3.0), "layer": {"scale": jnp.ones(1), "bias": jnp.full(1, 3.0)}}
    gradients = {"kernel": jnp.ones(1), "layer": {"scale": jnp.ones(1), "bias": jnp.ones(1)}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.1 - 0.1 * 0.01 * 3], rtol=1e-5)
    np.testing.assert_allclose(updates["layer"]["scale"], [-0.1 - 0.1 * 0.01], rtol=1e-5)
    np.testing.assert_allclose(updates["layer"]["bias"], [-0.1], rtol=1e-5)
    assert not isinstance(optimizer, Elementwise)
    assert isinstance(adam(0.1), Elementwise)
    plain = rated(optax.sgd(0.1), optax.constant_schedule(0.1))
    assert isinstance(plain, Rated)
    assert not isinstance(plain, Elementwise)


def test_clipping():
    optimizer = optax.chain(adam(0.1, clip_norm=1.0))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update(
        {"a": jnp.full(1, 3.0), "b": jnp.full(1, 4.0)}, optimizer.init(params), params
    )
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moments["a"], 0.1 * 0.6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"warmup_steps": 5, "decay_steps": 5}, r"more than warmup_steps \(5\), got 5"),
        ({"decay_rate": 1.5}, r"decay_rate must be in \(0, 1\]"),
        ({"decay_rate": 0.9, "decay_steps": 5}, "without decay_steps"),
        ({"decay_rate": 0.9, "decay_every": 0}, "decay_every must be at least 1, .* got 0"),
        ({"decay_every": 2}, "1 without decay_rate, got 2"),
        ({"schedule": "cosine"}, "schedule cosine needs decay_steps"),
        ({"schedule": "linear"}, "schedule linear needs decay_steps"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"clip_norm": float("nan")}, "clip_norm must be positive and finite, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite, got inf"),
        ({"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        ({"b1": float("nan")}, r"b1 must be in \[0, 1\), got nan"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0, got -0.1"),
        ({"weight_decay": 0.1, "infinity": True}, "weight_decay must be 0 with infinity"),
        ({"b1": -0.1}, r"b1 must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        adam(**{"learning_rate": 0.1, **options})
