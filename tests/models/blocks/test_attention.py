"""Attention: the formula, its gradients, and the library's own form on accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxgen.models.blocks import attention
from jaxgen.models.blocks.attention import dot_product_attention


def inputs(dtype=jnp.float32, heads=2, width=8):
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(3, 5, heads, width), (3, 7, heads, width), (3, 7, heads, width)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


WIDTHS = pytest.mark.parametrize("width", [8, 4])  # more than the 7 keys, and fewer


@WIDTHS
def test_formula(width):
    """Of each head, softmax(q k / sqrt(d)) v."""
    q, k, v = (np.asarray(x, np.float64) for x in inputs(width=width))
    expected = np.zeros(q.shape)
    for b in range(3):
        for h in range(2):
            logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(width)
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            expected[b, :, h] = weights @ v[b, :, h]
    got = dot_product_attention(*inputs(width=width))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@WIDTHS
def test_forms_agree(width):
    """The CPU's form and the library's, values and gradients."""
    args = inputs(width=width)

    def value(form):
        return lambda *args: jnp.sin(3 * form(*args)).sum()

    for form in (attention._library, dot_product_attention):
        ours = jax.value_and_grad(value(attention._two_products), (0, 1, 2))(*args)
        theirs = jax.value_and_grad(value(form), (0, 1, 2))(*args)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs
        )


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_products_accumulate_in_float32(platform):
    """Of bfloat16 inputs: logits and softmax are float32, the result is bfloat16."""
    text = export.export(dot_product_attention, platforms=[platform])(
        *inputs(jnp.bfloat16)
    ).mlir_module()
    first = text[text.index("dot_general") :].split("\n")[0]
    assert "bf16>, tensor<" in first
    assert first.rstrip().split("->")[-1].count("f32") == 1
    assert not [line for line in text.split("\n") if "exponential" in line and "bf16" in line]


def test_fused_form_is_for_16_bits_and_narrow_heads(monkeypatch):
    """What cuDNN takes; everything else is the library's plain form."""

    class Card:
        compute_capability = "9.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Card()])

    def fits(shape, dtype, keys=4):
        query = jnp.zeros(shape, dtype)
        return attention._is_fused_by_cudnn(query, jnp.zeros((1, keys, *shape[2:]), dtype))

    assert fits((1, 4, 2, 128), jnp.bfloat16)
    assert fits((1, 4, 2, 64), jnp.float16)
    assert not fits((1, 4, 2, 128), jnp.float32)
    assert not fits((1, 4, 1, 256), jnp.bfloat16)
    assert not fits((1, 4, 2, 20), jnp.bfloat16)
    assert not fits((1, 4, 2, 64), jnp.bfloat16, keys=77)  # an H200: Unsupported sequence length
    assert not fits((1, 3, 2, 64), jnp.bfloat16)
    for other in ("7.5", "gfx90a"):
        Card.compute_capability = other
        assert not fits((1, 4, 2, 64), jnp.bfloat16)


@pytest.mark.parametrize("form", [attention._two_products, attention._library])
def test_hidden_keys_do_not_count(form):
    """As if they were not there; where none counts, all weigh the same."""
    q, k, v = inputs()
    mask = np.ones((3, 7), bool)
    mask[0, 4:] = mask[2] = False
    y = form(q, k, v, jnp.asarray(mask))
    few = form(q[:1], k[:1, :4], v[:1, :4])
    np.testing.assert_allclose(y[:1], few, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1:2], form(q[1:2], k[1:2], v[1:2]), rtol=1e-5, atol=1e-6)
    assert np.isfinite(y).all()
    gradient = jax.grad(lambda q: form(q, k, v, jnp.asarray(mask)).sum())(q)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("form", [attention._two_products, attention._library])
def test_causal_attention_sees_no_later_key(form):
    """Query i gives what it gives with the keys up to i alone."""
    q, k, v = (x[:, :5] for x in inputs())
    y = form(q, k, v, causal=True)
    for i in range(5):
        alone = form(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])
        np.testing.assert_allclose(y[:, i : i + 1], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dot_product_attention(q, k, v, causal=True), y, atol=1e-6)
