"""The authors' DiT and ours: the numbers of an independent definition, both ways."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.convert import dit
from jaxgen.convert.tables import flatten_dict, unflatten_dict
from jaxgen.models.dit import DiT

SMALL = DiT(width=16, depth=2, num_heads=2, out_channels=6)
SHAPE = (8, 8, 3)


def theirs(torch, state, x, t, label):
    """DiT by the paper's equations, on their arrays by their names, [N, C, H, W]."""
    f, p = torch.nn.functional, {name: torch.tensor(array) for name, array in state.items()}
    linear = lambda name, h: f.linear(h, p[f"{name}.weight"], p[f"{name}.bias"])  # noqa: E731
    angles = t[:, None] * 10_000.0 ** (-torch.arange(128) / 128)
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    told = linear("t_embedder.mlp.2", f.silu(linear("t_embedder.mlp.0", features)))
    told = f.silu(told + p["y_embedder.embedding_table.weight"][label])
    h = f.conv2d(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).transpose(1, 2) + p["pos_embed"]
    norm = lambda h: f.layer_norm(h, h.shape[-1:], eps=1e-6)  # noqa: E731
    for i in range(SMALL.depth):
        block = f"blocks.{i}"
        b1, s1, g1, b2, s2, g2 = linear(f"{block}.adaLN_modulation.1", told)[:, None].chunk(
            6, dim=-1
        )
        fused = linear(f"{block}.attn.qkv", norm(h) * (1 + s1) + b1)
        q, k, v = fused.view(*h.shape[:2], 3, SMALL.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        h = h + g1 * linear(f"{block}.attn.proj", seen)
        inner = f.gelu(linear(f"{block}.mlp.fc1", norm(h) * (1 + s2) + b2), approximate="tanh")
        h = h + g2 * linear(f"{block}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", told)[:, None].chunk(2, dim=-1)
    h = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    h = h.view(len(x), 4, 4, 2, 2, 6)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), 6, 8, 8)


def randomized(num_classes=4) -> Any:
    rng = np.random.default_rng(0)
    flat = {
        name: 0.2 * rng.normal(size=shape).astype(np.float32)
        for name, shape in dit._shapes(SMALL, SHAPE, num_classes).items()
    }
    params = unflatten_dict(flat, sep="/")
    blocks = [params["blocks"][str(i)] for i in range(SMALL.depth)]
    return {**params, "blocks": jax.tree.map(lambda *each: np.stack(each), *blocks)}


@pytest.fixture(scope="module")
def state():
    """Their arrays, a row for no class that is not zero among them."""
    arrays = dit.from_jaxgen(randomized(), SMALL, SHAPE, 4)
    arrays["y_embedder.embedding_table.weight"][4] = np.linspace(-1, 1, 16)
    return arrays


def test_equals_an_independent_definition(state):
    """With classes and without one."""
    torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    params = dit.to_jaxgen(state, SMALL, SHAPE, 4)
    x = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    t, label = np.array([3.0, 700.0, 20.0], np.float32), np.array([1, 3, 4])
    first = torch.tensor(x).permute(0, 3, 1, 2)
    expected = theirs(torch, state, first, *map(torch.tensor, (t, label)))
    expected = expected.permute(0, 2, 3, 1).numpy()
    condition = Condition(jnp.asarray(np.eye(5, 4, dtype=np.float32)[label]))
    ours = jit(
        lambda p: SMALL.apply({"params": p}, jnp.asarray(x), jnp.asarray(t), condition, train=False)
    )(params)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("num_classes", [None, 4])
def test_there_and_back(num_classes):
    params = randomized(num_classes)
    arrays = dit.from_jaxgen(params, SMALL, SHAPE, num_classes)
    assert arrays["pos_embed"].shape == (1, 16, 16)
    assert arrays["blocks.1.attn.qkv.weight"].shape == (48, 16)
    back = flatten_dict(dit.to_jaxgen(arrays, SMALL, SHAPE, num_classes), sep="/")
    expected = flatten_dict(params, sep="/")
    assert back.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(back[name], array)


def test_all_blocks_go_out():
    """Neither fewer than the network has nor more, of which some would be left out."""
    params = randomized()
    for depth in (1, 3):
        with pytest.raises(ValueError, match=rf"our parameter blocks/.* the network {depth} bl"):
            dit.from_jaxgen(params, SMALL.clone(depth=depth), SHAPE, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), r"missing blocks\.1\.attn\.qkv\.bias"),
        (lambda s: s.update({"blocks.2.mlp.fc1.bias": np.zeros(64)}), r"unknown blocks\.2\.mlp"),
        (
            lambda s: s.update({"blocks.0.attn.qkv.weight": np.zeros((16, 48), np.float32)}),
            r"has shape \[16, 48\], \[48, 16\] is expected for our blocks/0/attention/query/kernel",
        ),
        (lambda s: s.update(pos_embed=s["pos_embed"][:, :9]), r"pos_embed .* images of 8x8x3"),
        (lambda s: s.update(pos_embed=s["pos_embed"] + 0.1), "must be the fixed sines and cosines"),
    ],
)
def test_what_does_not_fit(state, change, message):
    arrays = dict(state)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        dit.to_jaxgen(arrays, SMALL, SHAPE, 4)
