"""Steps of a family on some devices, for tests that compare one device with eight."""

import jax
import numpy as np

from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import Feed, make_strategy


def runner(family, data, strategy):
    """(first state, `run(state, num_steps) -> state on the host`)."""
    placed = strategy.put_global(data)
    first = strategy.init(lambda k, x: init_state(family, k, x), jax.random.key(0), placed)
    feed = Feed(lambda data, step, shard: data, lambda key, raw: raw, seed=0, resident=False)
    step = make_step(family, axis_name=strategy.axis_name)
    compiled = strategy.compile(step, feed, first)
    host = jax.device_get(first)

    def run(state, num_steps):
        streak = strategy.put_replicated(np.int32(0))
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, first)
        batch = strategy.put_batch(data)
        return jax.device_get(compiled(placed, streak, batch, num_steps)[0])

    return host, run


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), a, b)


def equal_on_one_and_eight(family, data):
    """Parameters and model state after two steps under jit, initialization included."""
    data, states = jax.tree.map(np.asarray, data), []
    for devices in (jax.devices()[:1], jax.devices()):
        first, run = runner(family, data, make_strategy("jit", devices))
        states.append(run(first, 2))
    one, eight = states
    assert int(one.step) == 2
    close((one.params, one.model_state), (eight.params, eight.model_state))
