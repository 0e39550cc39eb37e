"""Steps of a family on some devices, for tests that compare one device with eight."""

import jax
import numpy as np

from jaxgen.training.fit import prepare_fit
from jaxgen.training.strategies import make_strategy


def runner(family, data, strategy):
    """(first state, `run(state, num_steps) -> state on the host`)."""
    first, steps = prepare_fit(family, data, strategy=strategy)

    def run(state, num_steps):
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, first)
        return jax.device_get(steps(placed, num_steps)[0])

    return jax.device_get(first), run


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), a, b)


def equal_on_one_and_eight(family, data):
    """Parameters and state after two steps under jit, initialization included."""
    states = []
    for devices in (jax.devices()[:1], jax.devices()):
        first, run = runner(family, data, make_strategy("jit", devices))
        states.append(run(first, 2))
    one, eight = states
    assert int(one.step) == 2
    close((one.params, one.state), (eight.params, eight.state))
