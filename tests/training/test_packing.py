"""Small arrays as one: the same step, fewer arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.core import Aux, Family, Optimizer, Phase, Variables
from jaxgen.training.averages import constant
from jaxgen.training.guard import guarded_names
from jaxgen.training.optim import adam
from jaxgen.training.packing import elementwise, layout_of, pack, unpack
from jaxgen.training.step import init_state, make_step

SHAPES = {"a": (3,), "b": (2, 4), "large": (10, 10), "c": (), "d": (5,)}


def tree(key):
    keys = jax.random.split(key, len(SHAPES))
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}


def two_networks(transform):
    """Two networks, trained in turn by one optimizer each; the loss sees every parameter."""

    def loss(variables, batch, key, step):
        total = sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(variables.params))
        return batch["x"] * total, Aux({})

    return Family(
        name="two",
        init=lambda key, batch, fixed: Variables(
            {"one": tree(key), "two": tree(jax.random.fold_in(key, 1))}, {}, {}
        ),
        optimizers={n: Optimizer((n,), transform) for n in ("one", "two")},
        phases=(Phase("one", "one", loss), Phase("two", "two", loss)),
        evaluate=lambda variables, batch, key: (batch["x"], {}),
    )


def test_round_trip(key):
    """The tree comes back; scalars, order and large leaves included."""
    x = tree(key)
    layout = layout_of(x, limit=20)
    packed = pack(x, layout)
    assert packed.small.shape == (3 + 8 + 1 + 5,)
    assert [y.shape for y in packed.large] == [(10, 10)]
    chex.assert_trees_all_equal(unpack({"net": packed}), {"net": x})
    assert layout_of({"a": x["a"], "large": x["large"]}, limit=20) is None
    assert layout_of(jax.tree.map(lambda v: v.astype(jnp.bfloat16), x), limit=20) is None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_is_the_same(key, accumulate):
    """Three steps of Adam on packed arrays and on arrays as they are, bit for bit."""
    family, averages = two_networks(adam(1e-2)), {"ema": constant(0.9)}
    batch = {"x": jnp.linspace(-1, 2, 4)}
    states = []
    for small in (20, 0):
        step = make_step(family, averages=averages, small=small, accumulate=accumulate)
        state, run = init_state(family, key, batch, averages=averages), jax.jit(step)
        for i in range(3):
            state = run(state, {}, batch, jax.random.key(i)).state
        states.append(state)
        packed = step.pack(state)
        assert (len(jax.tree.leaves(packed)) < len(jax.tree.leaves(state))) == (small > 0)
        chex.assert_trees_all_equal(step.unpack(packed), state)
    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize("transform", [optax.lamb(1e-2), optax.adafactor(1e-2), optax.adam(1e-2)])
def test_only_what_is_declared_elementwise_is_packed(key, transform):
    """LAMB's and Adafactor's norms are of each array."""
    family, batch = two_networks(transform), {"x": jnp.ones(4)}
    state = init_state(family, key, batch)
    step = make_step(family)
    chex.assert_trees_all_equal_structs(step.pack(state), state)


def test_clipping_sees_all_elements(key):
    """By the norm over packed and other arrays together, to rounding."""
    transform = elementwise(optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0)))
    family, batch = two_networks(transform), {"x": jnp.ones(4)}
    state = init_state(family, key, batch)
    results = [make_step(family, small=s)(state, {}, batch, key) for s in (20, 0)]
    chex.assert_trees_all_close(*(r.state.params for r in results), rtol=1e-5)
    chex.assert_trees_all_close(*(r.metrics for r in results), rtol=1e-5)
    moved = jax.tree.map(jnp.subtract, results[0].state.params["one"], state.params["one"])
    np.testing.assert_allclose(optax.tree.norm(moved), 0.1, rtol=1e-5)


@pytest.mark.parametrize("leaf", SHAPES)
@pytest.mark.parametrize("network", ["one", "two"])
def test_the_first_bad_leaf_is_named(key, leaf, network):
    """Whichever part of the packed form it lies in."""
    family, batch = two_networks(adam(1e-2)), {"x": jnp.ones(4)}
    state = init_state(family, key, batch)
    # A finite loss, sin(0) = 0 at that leaf, of gradient 1e30: its square overflows.
    params = {**state.params[network], leaf: jnp.zeros(SHAPES[leaf])}
    plain = family.phases[0].loss

    def loss(variables, batch, key, step):
        value, aux = plain(variables, batch, key, step)
        return value + 1e30 * jnp.sum(variables.params[network][leaf]), aux

    family = family._replace(phases=tuple(p._replace(loss=loss) for p in family.phases))
    state = state._replace(params={**state.params, network: params})
    bad = int(make_step(family, small=20)(state, {}, batch, key).bad)
    name = guarded_names(family, state.params)[bad]
    assert name == f"the gradient of {network}/{leaf} in phase {network!r}"
