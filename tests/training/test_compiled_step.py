"""The compiled loop: few reductions, no copies of the state, nothing asked of the host."""

import re

import jax
import numpy as np
import pytest

from jaxgen.distributions import likelihoods
from jaxgen.families.vae import vae
from jaxgen.models.vae import DenseDecoder, DenseEncoder
from jaxgen.training.averages import warmed_up
from jaxgen.training.optim import adam
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import MOST_STEPS, Feed, make_strategy


@pytest.fixture(scope="module")
def program():
    """The loop of a VAE of many small arrays over eight devices: the compiler's text, its plan, and
    the state."""
    image = np.ones((16, 8, 8, 1), np.float32)
    family = vae(
        DenseEncoder(4, (16, 16, 16)),
        DenseDecoder((8, 8), 1, (16, 16, 16)),
        likelihoods.bernoulli(),
        adam(1e-3, clip_norm=1.0),
        latent_dim=4,
        image_shape=(8, 8, 1),
    )
    averages = {"ema": warmed_up(0.99)}
    strategy = make_strategy("jit")
    batch = strategy.put_batch({"image": image})
    state = strategy.init(
        lambda key, batch: init_state(family, key, batch, averages=averages),
        jax.random.key(0),
        batch,
    )
    step = make_step(family, averages=averages, small=strategy.small)
    feed = Feed(lambda data, step, shard: data, lambda key, raw: raw, 0, resident=True)
    run = strategy.compile(step, feed, state)
    compiled = run.lower(state, {}, batch, np.int32(5)).compile()
    return compiled.as_text(), compiled.memory_analysis(), state


def test_gradients_are_reduced_at_once(program):
    """18 arrays of parameters, one reduction of their gradients, one of the metrics."""
    text, _, state = program
    assert len(jax.tree.leaves(state.params)) == 18
    assert len(re.findall(r"= .*all-reduce(?:-start)?\(", text)) == 2


def test_the_state_is_updated_in_place(program):
    """Every byte of the state is donated: the new one takes its memory."""
    _, plan, state = program
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert plan.alias_size_in_bytes == size
    rest = plan.output_size_in_bytes - plan.alias_size_in_bytes
    assert rest < 4 * 20 * MOST_STEPS  # the report, a row of metrics a step


def test_one_dispatch_without_the_host(program):
    """Any number of steps is one loop on the device."""
    text, _, _ = program
    assert re.search(r"= .*while\(", text)
    for word in ("infeed", "outfeed", "send(", "recv(", "callback"):
        assert word not in text
