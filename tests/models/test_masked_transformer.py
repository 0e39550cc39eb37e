"""MaskGIT's transformer: its definition, its size, nothing seen of what is masked."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from scipy.special import erf
from token_networks import CONDITIONS, moved

from jaxgen.conditioning.base import Condition
from jaxgen.models.masked_transformer import MaskedTransformer

LENGTH = 6
NETWORK = MaskedTransformer(5, LENGTH, 8, 2, 2)
IDS = jax.random.randint(jax.random.key(3), (2, LENGTH), 0, 5)
MASKED = jnp.array([[True, False, False, True, False, True], [False, True] * 3])


@partial(jit, static_argnums=0)
def apply(network, params, ids, masked, condition=None):
    return network.apply({"params": params}, ids, masked, condition)


def test_definition():
    """The authors' model, in float64, told a vector as its first token."""
    condition = CONDITIONS["vector"]
    params = moved(NETWORK, IDS, MASKED, condition)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-12)
        return x * layer["scale"] + layer["bias"]

    def linear(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    table = p["tokens"]["embedding"]
    ids = np.where(MASKED, 5, IDS)
    first = np.asarray(condition.vector, np.float64) @ p["condition"]["kernel"]
    h = np.concatenate([first[:, None], table[ids]], axis=1) + p["positions"]
    h = norm(h, p["norm"])
    for name in ("block_0", "block_1"):
        b = p[name]
        q, k, v = (linear(h, b[part]) for part in ("query", "key", "value"))
        y = np.zeros_like(q)
        for n, t, head in itertools.product(range(2), range(LENGTH + 1), range(2)):
            part = slice(4 * head, 4 * head + 4)
            weights = np.exp(k[n, :, part] @ q[n, t, part] / 2)
            y[n, t, part] = weights @ v[n, :, part] / weights.sum()
        h = norm(h + linear(y, b["project"]), b["norm_1"])
        u = linear(gelu(linear(h, b["expand"])), b["contract"])
        h = norm(h + u, b["norm_2"])
    last = norm(gelu(linear(h[:, 1:], p["last"])), p["last_norm"])
    expected = last @ table[:5].T + p["bias"]
    got = apply(NETWORK, params, IDS, MASKED, condition)
    np.testing.assert_allclose(got, expected, atol=3e-5)


def test_size_of_the_paper():
    """24 blocks 768 wide: 172.5M. The authors' output has a bias of the classes and the mask too,
    1,001 numbers more."""
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    masked = jax.ShapeDtypeStruct((1, 256), bool)
    condition = Condition(jax.ShapeDtypeStruct((1, 1000), jnp.float32))
    network = MaskedTransformer(1024, 256)
    shapes = jax.eval_shape(network.init, jax.random.key(0), ids, masked, condition)["params"]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 172_456_192


@pytest.mark.parametrize("name", CONDITIONS)
def test_sees_all_that_is_not_masked_and_nothing_else(name):
    condition = CONDITIONS[name]
    params = moved(NETWORK, IDS, MASKED, condition)
    y = apply(NETWORK, params, IDS, MASKED, condition)
    hidden = apply(NETWORK, params, jnp.where(MASKED, (IDS + 1) % 5, IDS), MASKED, condition)
    np.testing.assert_array_equal(hidden, y)
    beyond = apply(NETWORK, params, jnp.where(MASKED, 2**31 - 1, IDS), MASKED, condition)
    np.testing.assert_array_equal(beyond, y)
    for t in range(LENGTH):
        other = apply(NETWORK, params, IDS.at[:, t].set((IDS[:, t] + 1) % 5), MASKED, condition)
        differs = np.any(other != y, axis=2)
        np.testing.assert_array_equal(differs, np.tile(~MASKED[:, t : t + 1], (1, LENGTH)))


def test_conditions_matter():
    """The vector, and each token that the mask shows; not what is padded."""
    condition = CONDITIONS["tokens"]
    params = moved(NETWORK, IDS, MASKED, condition)
    y = apply(NETWORK, params, IDS, MASKED, condition)
    vector, tokens, mask = condition
    other = apply(NETWORK, params, IDS, MASKED, Condition(2 * vector, tokens, mask))
    assert np.abs(other - y).min() > 0
    for i in range(4):
        changed = Condition(vector, jnp.asarray(tokens).at[0, i].add(1), mask)
        z = apply(NETWORK, params, IDS, MASKED, changed)
        assert np.any(z[0] != y[0]) == mask[0, i]
        np.testing.assert_array_equal(z[1], y[1])
    alone = Condition(None, tokens, mask)
    assert apply(NETWORK, moved(NETWORK, IDS, MASKED, alone), IDS, MASKED, alone).shape == y.shape


def test_dropout_only_in_training():
    network = MaskedTransformer(5, LENGTH, 8, 2, 2, dropout=0.5)
    params = moved(network, IDS, MASKED)

    @jit
    def train(key):
        rngs = {"dropout": key}
        return network.apply({"params": params}, IDS, MASKED, train=True, rngs=rngs)

    one, two = (train(jax.random.key(i)) for i in range(2))
    assert np.any(one != two)
    plain = apply(NETWORK, params, IDS, MASKED)
    np.testing.assert_array_equal(apply(network, params, IDS, MASKED), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 1}, "num_tokens must be at least 2, got 1"),
        ({"num_heads": 3}, "num_heads must divide width 8, got 3"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_bad_sizes(options, message):
    sizes = {"num_tokens": 5, "length": 6, "width": 8, "num_layers": 2, "num_heads": 2, **options}
    with pytest.raises(ValueError, match=message):
        MaskedTransformer(**sizes)


def test_bad_tokens():
    params = moved(NETWORK, IDS, MASKED)
    for token in (-1, 5):
        with pytest.raises(ValueError, match=r"tokens must lie in 0..4, got values in"):
            NETWORK.apply({"params": params}, IDS.at[0, 1].set(token), MASKED)
        # Compiled it cannot raise: all of that example is NaN, so that nobody misses it.
        logits = apply(NETWORK, params, IDS.at[0, 1].set(token), MASKED)
        assert np.isnan(logits[0]).all()
        assert np.isfinite(logits[1]).all()
    with pytest.raises(ValueError, match="length is 6, got 5 tokens"):
        apply(NETWORK, params, IDS[:, :5], MASKED[:, :5])
