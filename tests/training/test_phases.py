"""Phases that come now and then, share an optimizer, or steer a controller; pretrained arrays."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from jaxgen.core import Aux, Family, Optimizer, Phase, Variables
from jaxgen.training.fit import fit, prepare_fit
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import make_strategy

EVERY = 4
STRATEGIES = [("jit", 1), ("jit", 8), ("pmap", 1), ("pmap", 8)]


close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def lazy(every=EVERY):
    """A critic with R1 now and then: two phases that share Adam's moments, as StyleGAN2's do."""

    def init(key, batch, fixed=None):
        critic = {"w": jnp.ones((toys.WIDTH,)), "b": jnp.zeros(())}
        return Variables({"critic": critic}, {"n": jnp.zeros(())})

    def main(variables, batch, key, step):
        w = variables.params["critic"]
        return jnp.square(jnp.tanh(batch["x"] @ w["w"]) + w["b"] - batch["y"]), Aux()

    def r1(variables, batch, key, step):
        w = variables.params["critic"]["w"]
        score = lambda x: jnp.tanh(x @ w)  # noqa: E731
        penalty = jnp.square(jax.vmap(jax.grad(score))(batch["x"])).sum(axis=1)
        count = {"n": variables.state["n"] + 1.0}
        return every * penalty, Aux({"penalty": penalty}, count)

    optimizers = {"critic": Optimizer(("critic",), optax.adam(1e-2, b1=0.5, b2=0.9))}
    phases = (Phase("main", "critic", main), Phase("r1", "critic", r1, every=every))
    return Family(init, optimizers, phases, lambda v, b, k: (main(v, b, k, 0)[0], {}))


def test_lazy_regularization_with_shared_moments_is_the_loop_by_hand(key):
    """Adam's moments move in both phases; R1 has a turn at steps 0, 4 and 8 of 10."""
    family, batch = lazy(), toys.batch(key)
    state = init_state(family, key, batch)
    step = jax.jit(make_step(family))
    variables, opt_state = family.init(key, batch), state.opt_state["critic"]
    transform = family.optimizers["critic"].transform
    for t in range(10):
        for phase in family.phases:
            if t % phase.every:
                continue

            def mean(params, phase=phase, variables=variables, t=t):
                return phase.loss(variables._replace(params=params), batch, key, t)[0].mean()

            gradient = jax.grad(mean)(variables.params)
            updates, opt_state = transform.update(gradient, opt_state, variables.params)
            params = optax.apply_updates(variables.params, updates)
            variables = variables._replace(params=params)
        result = step(state, {}, batch, key)
        state = result.state
        close(state.params, variables.params)
        close(state.opt_state["critic"], opt_state)
        total, weight = result.metrics["r1/penalty"]
        assert float(weight) == (16 if t % EVERY == 0 else 0)
        assert float(result.metrics["r1/grad_norm"][1]) == (t % EVERY == 0)
        assert float(result.metrics["main/loss"][1]) == 16
        assert bool(total) == (t % EVERY == 0)
    assert float(state.state["n"]) == 3


def test_a_turn_not_taken_changes_nothing(key):
    """Without the other phase three steps of four leave the state to the last bit."""
    family, batch = lazy(), toys.batch(key)
    family = family._replace(phases=family.phases[1:])
    state = init_state(family, key, batch)
    step = jax.jit(make_step(family))
    first = step(state, {}, batch, key).state
    assert not np.array_equal(first.params["critic"]["w"], state.params["critic"]["w"])
    later = first
    for _ in range(EVERY - 1):
        later = step(later, {}, batch, key).state
    chex.assert_trees_all_equal(later._replace(step=first.step), first)


def test_a_phase_that_starts_late(key):
    """Before its start it is as if it were not there; then it is as if it began with the run."""
    family, batch = lazy(), toys.batch(key)
    _, r1 = family.phases
    late = family._replace(phases=(r1._replace(every=1, start=3),))
    state = init_state(late, key, batch)
    step = jax.jit(make_step(late))
    for t in range(5):
        result = step(state, {}, batch, key)
        assert float(result.metrics["loss"][1]) == (16 if t >= 3 else 0)
        if t < 3:
            chex.assert_trees_all_equal(result.state._replace(step=state.step), state)
        state = result.state
    always = family._replace(phases=(r1._replace(every=1),))
    other = init_state(always, key, batch)
    for _ in range(2):
        other = jax.jit(make_step(always))(other, {}, batch, key).state
    close(state._replace(step=other.step), other)


@pytest.mark.parametrize(("name", "num_devices"), STRATEGIES)
def test_lazy_phases_on_any_devices(key, name, num_devices):
    """A conditional with its collectives inside: the same state on one device and eight."""
    data = jax.tree.map(np.asarray, toys.batch(key, weight=np.arange(16) % 3))
    states = []
    for strategy in (make_strategy("jit", jax.devices()[:1]), devices(name, num_devices)):
        states.append(fit(lazy(), data, 6, strategy=strategy).state)
    close(*jax.device_get(states))


def devices(name, num_devices):
    return make_strategy(name, jax.devices()[:num_devices])


def controlled(repeats=1):
    """An ADA-like controller: p follows the sign of the share of confident verdicts, in steps that
    depend on the whole batch's size; the loss feels p."""

    def init(key, batch, fixed=None):
        state = {"p": jnp.zeros(()), "seen": jnp.zeros(())}
        return Variables({"critic": jnp.full((), 0.3)}, state)

    def loss(variables, batch, key, step):
        score = variables.params["critic"] * batch["x"][:, 0] - variables.state["p"]
        value = jnp.square(score - batch["y"])
        return value, Aux({"sign": jnp.sign(score), "one": jnp.ones_like(score)})

    def observe(state, means, step):
        p = state["p"] + 0.05 * (means["sign"] + 0.6) + 1e-3 * step
        return {"p": jnp.clip(p, 0.0, 1.0), "seen": state["seen"] + means["one"]}

    optimizers = {"critic": Optimizer(("critic",), optax.sgd(0.01))}
    phase = Phase("critic", "critic", loss, repeats, observe=observe)
    return Family(init, optimizers, (phase,), lambda v, b, k: (loss(v, b, k, 0)[0], {}))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("name", "num_devices"), STRATEGIES)
def test_a_controller_takes_one_path_everywhere(name, num_devices, accumulate, weighted):
    """It sees the reduced means: with uneven weights and micro-batches too, devices do not matter.

    The path is that of the loop written by hand.
    """
    weight = (np.arange(16) % 4).astype(np.float32) if weighted else np.ones(16, np.float32)
    data = jax.tree.map(np.asarray, toys.batch(jax.random.key(3), weight=weight))
    critic, p = 0.3, 0.0
    for t in range(5):
        score = critic * data["x"][:, 0] - p
        mean = lambda v: float((v * weight).sum() / weight.sum())  # noqa: E731
        gradient = mean(2 * (score - data["y"]) * data["x"][:, 0])
        p = float(np.clip(p + 0.05 * (mean(np.sign(score)) + 0.6) + 1e-3 * t, 0, 1))
        critic -= 0.01 * gradient
    state = fit(
        controlled(), data, 5, accumulate=accumulate, strategy=devices(name, num_devices)
    ).state
    assert float(state.state["p"]) == pytest.approx(p, rel=1e-4)
    assert 0 < p < 1
    assert float(state.params["critic"]) == pytest.approx(critic, rel=1e-4)
    assert float(state.state["seen"]) == 5


@pytest.mark.parametrize("bad", [0, 1])
def test_a_controller_sees_every_repeat_and_no_bad_one(key, bad):
    family = controlled(repeats=2)
    data = {"x": jnp.ones((4, toys.WIDTH)), "y": jnp.zeros(4).at[bad].set(jnp.nan)}
    state = init_state(family, key, data)
    result = make_step(family)(state, {}, data, key)
    assert float(result.state.state["seen"]) == 1  # the other slice alone
    assert int(result.bad) == 0


def with_table():
    """A family whose inputs go through a pretrained table."""
    table = np.arange(toys.WIDTH, dtype=np.float32)

    def init(key, batch, fixed=None):
        return Variables({"net": {"w": jnp.zeros((toys.WIDTH,))}}, {}, fixed)

    def loss(variables, batch, key, step):
        x = batch["x"] * variables.fixed["table"][None]
        return jnp.square(x @ variables.params["net"]["w"] - batch["y"]), Aux()

    optimizers = {"net": Optimizer(("net",), optax.adam(1e-2))}
    phases = (Phase("fit", "net", loss),)
    evaluate = lambda v, b, k: (loss(v, b, k, 0)[0], {})  # noqa: E731
    return Family(init, optimizers, phases, evaluate, fixed={"table": table})


def test_fixed_arrays_are_used_and_nothing_else(key):
    """They are in no part of the state, and an argument: another table, no new compilation."""
    family = with_table()
    data = toys.batch(key)
    result = fit(family, data, 3)
    assert float(jnp.abs(result.variables.params["net"]["w"][1:]).min()) > 0
    assert float(result.variables.params["net"]["w"][0]) == 0  # its column of the table is 0
    leaves = [x.shape for x in jax.tree.leaves(result.state)]
    assert sorted(set(leaves)) == [(), (toys.WIDTH,)]
    assert len([s for s in leaves if s]) == 3  # w and Adam's two moments
    traces = []

    def loss(variables, batch, key, step):
        traces.append(1)
        return family.phases[0].loss(variables, batch, key, step)

    phases = (family.phases[0]._replace(loss=loss),)
    step = jax.jit(make_step(family._replace(phases=phases)))
    state = init_state(family, key, data)
    a = step(state, {"table": jnp.ones(toys.WIDTH)}, data, key)
    count = len(traces)
    b = step(state, {"table": 2 * jnp.ones(toys.WIDTH)}, data, key)
    assert len(traces) == count
    assert float(a.metrics["grad_norm"][0]) != float(b.metrics["grad_norm"][0])


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_fixed_arrays_are_placed_once_on_eight_devices(key, name, monkeypatch):
    """A whole copy a device, made before the first step; dispatches transfer nothing more."""
    strategy = make_strategy(name, jax.devices())
    placed = []
    original = strategy.put_replicated

    def put_replicated(tree):
        result = original(tree)
        if isinstance(tree, dict) and "table" in tree:
            placed.append(result["table"])
        return result

    monkeypatch.setattr(strategy, "put_replicated", put_replicated)
    data = jax.tree.map(np.asarray, toys.batch(key))
    first, run = prepare_fit(with_table(), data, strategy=strategy)
    (table,) = placed
    assert len(table.addressable_shards) == 8
    assert all(s.data.shape == (toys.WIDTH,) for s in table.addressable_shards)
    state, *_ = run(first, 2)
    state, *_ = run(state, 2)
    assert len(placed) == 1
    assert not table.is_deleted()  # nor donated
    np.testing.assert_array_equal(table, np.arange(toys.WIDTH))
    assert int(state.step) == 4
