"""The causal transformer: its definition, its sizes, nothing seen of the future, its cache."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from token_networks import CONDITIONS, moved

from jaxgen.conditioning.base import Condition
from jaxgen.losses.autoregressive import categorical_nll
from jaxgen.models.transformer import L, M, S, Size, Transformer, prime

LENGTH, SIZE = 6, Size(8, 2, 2)
NETWORK = Transformer(5, LENGTH, *SIZE)
IDS = jax.random.randint(jax.random.key(3), (2, LENGTH), 0, 5)


@partial(jit, static_argnums=0)
def apply(network, params, ids, condition=None):
    return network.apply({"params": params}, ids, condition)


def test_definition():
    """The authors' model, in float64."""
    params = moved(NETWORK, IDS)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, layer):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * layer["scale"]

    ids = np.asarray(IDS)
    h = np.stack([np.vstack([p["start"], p["tokens"]["embedding"][row[:-1]]]) for row in ids])
    h = h + p["positions"]
    for name in ("block_0", "block_1"):
        b = p[name]
        q, k, v = np.split(norm(h, b["norm_attention"]) @ b["attention"]["qkv"]["kernel"], 3, -1)
        y = np.zeros_like(q)
        for n, t, head in itertools.product(range(2), range(LENGTH), range(2)):
            part = slice(4 * head, 4 * head + 4)
            weights = np.exp(k[n, : t + 1, part] @ q[n, t, part] / 2)
            y[n, t, part] = weights @ v[n, : t + 1, part] / weights.sum()
        h = h + y @ b["attention"]["out"]["kernel"]
        u = norm(h, b["norm_mlp"]) @ b["hidden"]["kernel"]
        h = h + u / (1 + np.exp(-1.702 * u)) @ b["out"]["kernel"]
    expected = norm(h, p["norm"]) @ p["logits"]["kernel"]
    np.testing.assert_allclose(apply(NETWORK, params, IDS), expected, atol=2e-5)


@pytest.mark.parametrize(("size", "count"), [(S, 76_571_648), (M, 455_157_760), (L, 1_362_250_752)])
def test_sizes_of_image_gpt(size, count):
    """76.6M, 455M and 1.36B, as published."""
    ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    shapes = jax.eval_shape(Transformer(512, 1024, *size).init, jax.random.key(0), ids)["params"]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("name", CONDITIONS)
def test_causal_by_gradient(name):
    """Zero, exactly, by the tokens that are not before; and not zero by any that is."""
    condition = jax.tree.map(lambda x: x[:1], CONDITIONS[name])
    params = moved(NETWORK, IDS[:1], condition)
    embedded = jax.random.normal(jax.random.key(5), (1, LENGTH, SIZE.width))

    def logits(embedded):
        def given(next_fun, args, kwargs, context):
            is_first = context.module.name == "tokens" and context.method_name == "__call__"
            return embedded if is_first else next_fun(*args, **kwargs)

        with nn.intercept_methods(given):
            return NETWORK.apply({"params": params}, IDS[:1], condition)[0]

    jacobian = np.abs(jit(jax.jacrev(logits))(embedded)).sum((1, 2, 4))  # [outputs, inputs]
    before = np.tri(LENGTH, k=-1, dtype=bool)
    assert (jacobian[~before] == 0).all()
    assert (jacobian[before] > 0).all()


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_position_at_a_time_is_the_whole(name):
    condition = CONDITIONS[name]
    params = moved(NETWORK, IDS, condition)
    whole = apply(NETWORK, params, IDS, condition)
    folded, cache = jit(partial(prime, NETWORK, batch=2, condition=condition))(params)
    assert bool(folded) == (name == "tokens")
    assert not any(leaf.any() for leaf in jax.tree.leaves(cache))

    @jit
    def step(cache, previous, t):
        variables = {"params": params, "folded": folded, "cache": cache}
        return NETWORK.apply(variables, previous, t, condition, method="step", mutable=["cache"])

    for t in range(LENGTH):
        previous = IDS[:, t - 1] if t else jnp.full(2, 4)
        logits, new = step(cache, previous, t)
        cache = new["cache"]
        np.testing.assert_allclose(logits, whole[:, t], atol=1e-5)


def test_conditions_matter():
    """The vector, and each token that the mask shows; not what is padded."""
    condition = CONDITIONS["tokens"]
    params = moved(NETWORK, IDS, condition)
    y = apply(NETWORK, params, IDS, condition)
    vector, tokens, mask = condition
    other = apply(NETWORK, params, IDS, Condition(2 * vector, tokens, mask))
    assert np.abs(other - y).min() > 0
    for i in range(4):
        changed = apply(
            NETWORK, params, IDS, Condition(vector, jnp.asarray(tokens).at[0, i].add(1), mask)
        )
        assert np.any(changed[0] != y[0]) == mask[0, i]
        np.testing.assert_array_equal(changed[1], y[1])


def test_probabilities_of_all_sequences_sum_to_one():
    network = Transformer(3, 4, *SIZE)
    ids = jnp.asarray(list(itertools.product(range(3), repeat=4)))
    nats = categorical_nll(apply(network, moved(network, ids), ids), ids)
    assert float(jnp.exp(-nats).sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(nats.std()) > 0.1


def test_dropout_only_in_training():
    network = Transformer(5, LENGTH, *SIZE, dropout=0.5)
    params = moved(network, IDS)

    @jit
    def train(key):
        return network.apply({"params": params}, IDS, train=True, rngs={"dropout": key})

    one, two = (train(jax.random.key(i)) for i in range(2))
    assert np.any(one != two)
    np.testing.assert_array_equal(apply(network, params, IDS), apply(NETWORK, params, IDS))


def test_begins_uniform():
    params = jit(NETWORK.init)(jax.random.key(0), IDS)["params"]
    assert not apply(NETWORK, params, IDS).any()


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
    sizes = {"num_tokens": 5, "length": 6, **SIZE._asdict(), **options}
    with pytest.raises(ValueError, match=message):
        Transformer(**sizes)


def test_bad_tokens():
    params = moved(NETWORK, IDS)
    with pytest.raises(ValueError, match=r"tokens must lie in 0..4, got values in 0..5"):
        NETWORK.apply({"params": params}, jnp.arange(6)[None])
    with pytest.raises(ValueError, match="length is 6, got 7 tokens"):
        apply(NETWORK, params, jnp.zeros((2, 7), int))
    # Compiled it cannot raise: all of that example is NaN, so that nobody misses it.
    logits = apply(NETWORK, params, jnp.array([[0, 0, 0, 7, 0, 0], [0] * 6]))
    assert np.isnan(logits[0, 1:]).all()
    assert np.isfinite(logits[1]).all()
