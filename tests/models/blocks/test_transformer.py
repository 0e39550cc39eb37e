"""The transformer's layers: the formula, and sequences of other length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.blocks.transformer import Attention, TransformerBlock
from jaxgen.models.text_encoder import TextEncoder

X = jax.random.normal(jax.random.key(0), (2, 5, 8))


def test_block_is_attention_and_mlp_after_norms():
    block = TransformerBlock(2)
    variables = block.init(jax.random.key(1), X)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])

    def norm(x, which):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * p[which]["scale"] + p[which]["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    x = np.asarray(X, np.float64)
    h = norm(x, "norm_attention")
    q, k, v = (
        dense(h, p["attention"][name]).reshape(2, 5, 2, 4) for name in ("query", "key", "value")
    )
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, 8)
    x = x + dense(y, p["attention"]["out"])
    h = dense(norm(x, "norm_mlp"), p["hidden"])
    gelu = np.asarray(jax.nn.gelu(h, approximate=False))
    np.testing.assert_allclose(block.apply(variables, X), x + dense(gelu, p["out"]), atol=2e-5)


def test_attention_to_another_sequence():
    context, mask = jnp.ones((2, 3, 6)), jnp.array([[True, False, False], [True, True, True]])
    attention = Attention(2)
    variables = attention.init(jax.random.key(1), X, context, mask)
    y = attention.apply(variables, X, context, mask)
    changed = attention.apply(variables, X, context.at[0, 1:].set(9.0), mask)
    np.testing.assert_allclose(y, changed, atol=1e-6)
    with pytest.raises(ValueError, match="num_heads must divide the width 8, got 3"):
        Attention(3).init(jax.random.key(1), X)


def test_encoder_looks_both_ways_but_not_at_padding():
    network = TextEncoder(9, width=8, num_layers=2, num_heads=2)
    ids, mask = jnp.array([[1, 2, 3, 0]]), jnp.array([[True, True, True, False]])
    variables = network.init(jax.random.key(0), ids, mask)
    y = network.apply(variables, ids, mask)
    padded = network.apply(variables, ids.at[0, 3].set(5), mask)
    np.testing.assert_allclose(y[:, :3], padded[:, :3], atol=1e-6)
    for changed in (0, 2):  # the middle token's vector depends on what is on either side
        other = network.apply(variables, ids.at[0, changed].set(7), mask)
        assert np.abs(other[0, 1] - y[0, 1]).max() > 1e-4
