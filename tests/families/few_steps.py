"""A few training steps of a family, for tests that look at it before and after."""

import jax

from jaxgen.core import Variables
from jaxgen.training.fit import prepare_fit
from jaxgen.training.strategies import make_strategy


def train(family, data, num_steps):
    """(variables at the start, variables at the end, mean metrics), in one trace of the losses."""
    traces = []

    def counted(loss):
        def call(*args):
            traces.append(loss)
            return loss(*args)

        return call

    phases = tuple(phase._replace(loss=counted(phase.loss)) for phase in family.phases)
    strategy = make_strategy("jit", jax.devices()[:1])
    first, run = prepare_fit(family._replace(phases=phases), data, strategy=strategy)
    start = jax.device_get(Variables(first.params, first.state, family.fixed))
    state, *_ = run(first, 2)
    num_traces = len(traces)
    state, metrics, num_skipped, _ = run(state, num_steps - 2)
    assert len(traces) == num_traces, "a second call was traced again"
    assert num_skipped == 0
    return start, Variables(state.params, state.state, family.fixed), metrics
