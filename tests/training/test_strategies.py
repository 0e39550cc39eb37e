"""One device or eight, jit or pmap, resident or streamed, whole or sharded: the same state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxgen.training.packing import SMALL
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import Feed, make_strategy, step_key
from jaxgen.training.tally import Tally

BATCH = 16
SET = {k: np.asarray(v) for k, v in toys.batch(jax.random.key(7), 64).items()}


def rows(step):
    return (step * BATCH + jnp.arange(BATCH)) % 64


def weight(step):
    """Uneven over any split into devices: example i of step t is kept unless i < t."""
    return (jnp.arange(BATCH) >= step).astype(jnp.float32)


def resident(data, step, shard):
    index, count = shard
    kept = {**{k: v[rows(step)] for k, v in data.items()}, "weight": weight(step)}
    size = BATCH // count
    return {k: jax.lax.dynamic_slice_in_dim(v, index * size, size) for k, v in kept.items()}


def train(name, num_devices, *, fsdp=1, stream=False, dispatches=(1, 2, 2), family=None):
    """Five steps; returns the state, their tally and what the last dispatch added."""
    strategy = make_strategy(name, jax.devices()[:num_devices], fsdp=fsdp)
    family = family or toys.regression(state=True)
    init = strategy.init(
        lambda key, batch: init_state(family, key, batch),
        jax.random.key(0),
        toys.batch(jax.random.key(1)),
    )
    feed = Feed(
        (lambda data, step, shard: data) if stream else resident,
        lambda key, raw: raw,
        seed=3,
        resident=not stream,
    )
    run = strategy.compile(make_step(family, axis_name=strategy.axis_name), feed, init)
    state, tally, begin = init, Tally(), 0
    data, fixed = strategy.put_replicated(SET), strategy.put_replicated(family.fixed)
    for num_steps in dispatches if not stream else (1,) * sum(dispatches):
        if stream:
            data = strategy.put_batch(
                jax.tree.map(np.asarray, resident(SET, jnp.int32(int(state.step)), (0, 1)))
            )
        state, report = run(state, fixed, data, num_steps)
        added = tally.add(jax.device_get(report), begin, num_steps)
        begin += num_steps
    return jax.device_get(state), tally, added


@pytest.fixture(scope="module")
def reference():
    return train("jit", 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "num_devices", "fsdp"),
    [("jit", 1, 1), ("jit", 8, 1), ("jit", 8, 4), ("pmap", 1, 1), ("pmap", 8, 1)],
)
def test_same_state_with_uneven_weights(reference, name, num_devices, fsdp, stream):
    state, *_ = train(name, num_devices, fsdp=fsdp, stream=stream)
    assert int(state.step) == 5
    chex.assert_trees_all_close(state, reference[0], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_dispatches_of_any_size_are_the_same_bits(num_devices):
    """The state's, and those of the metrics' sums."""
    a, b = train("jit", num_devices), train("jit", num_devices, dispatches=(5,))
    chex.assert_trees_all_equal(a[0], b[0])
    assert a[1].totals == b[1].totals
    assert set(a[1].totals) == {"loss", "error", "grad_norm"}


def test_any_number_of_steps_costs_one_trace():
    """As many traces of the loss for four dispatches of other lengths as for the first one."""
    family = toys.regression()
    phase, traces = family.phases[0], []

    def counted(*args):
        traces.append(1)
        return phase.loss(*args)

    def with_loss(loss):
        return family._replace(phases=(phase._replace(loss=loss),))

    train("jit", 1, dispatches=(1,), family=with_loss(counted))
    limited = chex.assert_max_traces(phase.loss, n=len(traces))
    train("jit", 1, dispatches=(1, 2, 3, 4), family=with_loss(limited))
    with pytest.raises(AssertionError, match="is traced"):
        train("jit", 1, dispatches=(1,), family=with_loss(limited))


def test_noise_is_the_same_on_any_number_of_devices_under_jit():
    family = toys.regression(noise=0.5)
    one, eight = train("jit", 1, family=family), train("jit", 8, family=family)
    chex.assert_trees_all_close(one[0], eight[0], rtol=2e-6, atol=1e-6)


def test_noise_differs_between_devices_under_pmap():
    """Equal examples on all devices: with equal noise the metrics' spread would vanish."""
    noisy = toys.regression(noise=1.0)

    def loss(variables, batch, key, step):
        value, aux = noisy.phases[0].loss(variables, batch, key, step)
        draw = jnp.broadcast_to(jax.random.normal(key), value.shape)
        return value, aux._replace(metrics={"draw": draw, "square": draw**2})

    family = noisy._replace(phases=(noisy.phases[0]._replace(loss=loss),))
    _, tally, _ = train("pmap", 8, dispatches=(1,), family=family)
    mean, square = (tally.means()[k] for k in ("draw", "square"))
    assert square - mean**2 > 0.05


def test_fsdp_shards_what_it_can():
    strategy = make_strategy("jit", fsdp=4)
    shapes = {"kernel": jnp.zeros((3, 3, 16, 8)), "bias": jnp.zeros((6,)), "step": jnp.zeros(())}
    specs = jax.tree.map(lambda s: tuple(s.spec), strategy.shardings(shapes))
    assert specs == {"kernel": (None, None, "fsdp"), "bias": (), "step": ()}


def test_small_arrays_travel_as_one_where_they_are_not_sharded():
    """Which changes the pace and no number."""
    assert make_strategy("jit").small == make_strategy("pmap").small == SMALL > 0
    assert make_strategy("jit", fsdp=4).small == 0


def test_bad_steps_are_counted_across_dispatches():
    family = toys.regression()
    phase = family.phases[0]

    def loss(variables, batch, key, step):
        value, aux = phase.loss(variables, batch, key, step)
        return jnp.where(batch["weight"][2] == 0, jnp.nan, value), aux  # from step 3 on

    family = family._replace(phases=(phase._replace(loss=loss),))
    state, tally, added = train("jit", 8, dispatches=(2, 3, 2), family=family)
    assert (tally.streak, tally.skipped) == (4, 4)
    assert added == (2, (5, 0), 4)
    assert np.isfinite(state.params["net"]["w"]).all()
    assert int(state.step) == 7


def test_step_keys_differ():
    keys = [jax.random.key_data(step_key(s, t)).tolist() for s in range(2) for t in range(3)]
    assert len({tuple(k) for k in keys}) == 6


@pytest.mark.parametrize(
    ("name", "fsdp", "message"),
    [
        ("tpu", 1, "strategy must be 'jit' or 'pmap', got 'tpu'"),
        ("jit", 3, "fsdp must divide the number of devices, got 3 for 8"),
        ("jit", 0, "fsdp must divide"),
        ("pmap", 2, "fsdp needs strategy 'jit'"),
    ],
)
def test_bad_arguments(name, fsdp, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, fsdp=fsdp)
