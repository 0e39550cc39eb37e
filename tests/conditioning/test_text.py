"""Captions as conditions: what is padded does not count, none is zeros, what is wrong is found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.conditioning import base
from jaxgen.conditioning.asked import asked
from jaxgen.conditioning.base import NAME
from jaxgen.conditioning.text import Encoder, slowed, text
from jaxgen.core import Variables
from jaxgen.models.text_encoder import TextEncoder

NETWORK = TextEncoder(7, width=8, num_layers=1, num_heads=2)


def init(key):
    ids = jnp.zeros((1, 4), jnp.int32)
    return NETWORK.init(key, ids, ids == 0)["params"]


def apply(params, ids, mask):
    return NETWORK.apply({"params": params}, ids, mask)


TRAINED = text(Encoder(apply, 8, 7, init), 4)
IDS = jnp.array([[3, 1, 0, 0], [2, 2, 5, 6]])


@pytest.fixture(scope="module")
def variables():
    return Variables(base.init(TRAINED, jax.random.key(0)))


def test_padding_does_not_count(variables):
    """The vector is the mean over the tokens, whatever the encoder makes of the padding."""
    vector = TRAINED.encode(variables, IDS).vector
    vectors = apply(variables.params[NAME], IDS, IDS != 0)
    np.testing.assert_allclose(vector[0], vectors[0, :2].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(vector[1], vectors[1].mean(axis=0), rtol=1e-5)


def test_no_condition_is_padding_alone(variables):
    none = TRAINED.encode(variables, jnp.zeros((3, 4), jnp.int32))
    np.testing.assert_array_equal(none.vector, TRAINED.null(variables, 3).vector)


def test_tokens_for_cross_attention(variables):
    with_tokens = text(Encoder(apply, 8, 7, init), 4, with_tokens=True)
    condition = with_tokens.encode(variables, IDS)
    assert condition.tokens.shape == (2, 4, 8)
    np.testing.assert_array_equal(condition.mask, IDS != 0)
    null = with_tokens.null(variables, 2)
    assert jax.tree.map(jnp.shape, null) == jax.tree.map(jnp.shape, condition)
    assert not null.mask.any()
    with pytest.raises(ValueError, match="takes no tokens"):
        base.vector_of(condition)
    assert base.vector_of(TRAINED.encode(variables, IDS)) is not None


def test_gradients_reach_the_encoder(variables):
    def total(params):
        return TRAINED.encode(variables._replace(params=params), IDS).vector[:, 0].sum()

    gradients = jax.grad(total)(variables.params)[NAME]
    used = np.asarray(gradients["tokens"]["embedding"])
    assert (np.abs(used[[1, 2, 3, 5, 6]]).sum(axis=1) > 0).all()
    np.testing.assert_array_equal(used[[0, 4]], 0)


def test_a_slowed_encoder_moves_less(variables):
    """It begins as it would have, and a step of Adam moves what is used `rate` times as far."""

    def step(encoder):
        kind = text(encoder, 4)
        params = base.init(kind, jax.random.key(0))

        def total(params):
            return jnp.square(kind.encode(Variables(params), IDS).vector[:, 0]).sum()

        optimizer = optax.adam(1e-2, eps=0)
        updates, _ = optimizer.update(jax.grad(total)(params), optimizer.init(params))
        return params, optax.apply_updates(params, updates)

    plain, slow = Encoder(apply, 8, 7, init), slowed(Encoder(apply, 8, 7, init), 0.125)
    (begin, after), (slow_begin, slow_after) = step(plain), step(slow)
    used = text(slow, 4).encode(Variables(slow_begin), IDS).vector
    np.testing.assert_array_equal(used, TRAINED.encode(variables, IDS).vector)
    way, slow_way = (
        np.asarray(b[NAME]["positions"] - a[NAME]["positions"])
        for a, b in ((begin, after), (slow_begin, slow_after))
    )
    np.testing.assert_allclose(0.125 * slow_way, 0.125 * way, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match="rate must be a finite number above 0"):
        slowed(Encoder(apply, 8, 7, init), rate)
    with pytest.raises(ValueError, match="a pretrained encoder has no learning rate"):
        slowed(Encoder(apply, 8, 7), 0.5)


def test_a_pretrained_encoder_is_fixed(variables):
    fixed = text(Encoder(apply, 8, 7, fixed=variables.params[NAME]), 4)
    assert base.init(fixed, jax.random.key(1)) == {}
    assert base.trains(fixed) == ()
    given = Variables({}, {}, base.fixed(fixed))
    np.testing.assert_array_equal(
        fixed.encode(given, IDS).vector, TRAINED.encode(variables, IDS).vector
    )


def test_bad_input(variables):
    with pytest.raises(ValueError, match=r"text must lie in 0\.\.6, got values in 0\.\.7"):
        TRAINED.encode(variables, jnp.array([[7, 0, 0, 0]]))
    with pytest.raises(ValueError, match=r"text must have the shape \[B, 4\], got \[1, 5\]"):
        TRAINED.encode(variables, jnp.zeros((1, 5), jnp.int32))
    traced = jax.jit(lambda ids: TRAINED.encode(variables, ids).vector)(IDS.at[0, 0].set(7))
    assert np.isnan(traced[0]).all()
    assert np.isfinite(traced[1]).all()
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        text(Encoder(apply, 8, 7, init), 0)
    with pytest.raises(ValueError, match=r"sweep must have the shape \[B, 4\]"):
        text(Encoder(apply, 8, 7, init), 4, sweep=np.zeros((2, 3), np.int32))


def test_asked_by_words():
    lengths = TRAINED._replace(
        tokenize=lambda captions: np.array([[len(c), 0, 0, 0] for c in captions])
    )
    np.testing.assert_array_equal(asked(lengths, text=("ab", "c"))[:, 0], [2, 1])
    with pytest.raises(ValueError, match="text must not be given: the model takes no condition"):
        asked(None, text=("ab",))
    with pytest.raises(ValueError, match="label must not be given.*the condition 'text'"):
        asked(lengths, labels=("ab",))
