"""diffusers' DiT and ours: the same numbers both ways, and what does not fit is named."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.convert import diffusers_dit as dit
from jaxgen.convert.tables import flatten_dict

CONFIG: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel",
    "attention_head_dim": 8,
    "in_channels": 3,
    "norm_eps": 1e-3,  # so that it is seen
    "num_attention_heads": 2,
    "num_embeds_ada_norm": 4,
    "num_layers": 2,
    "out_channels": 6,
    "sample_size": 8,
}


def with_copies(net, torch):
    """A network of random parameters whose blocks embed time and class alike, as converted ones."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net.eval()


def test_what_a_config_leaves_out():
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")
    theirs = inspect.signature(diffusers.DiTTransformer2DModel.__init__).parameters
    assert {name: theirs[name].default for name in dit._DEFAULTS} == dit._DEFAULTS


def test_parity_with_diffusers():
    """With classes and without one, and back."""
    torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")
    torch.manual_seed(0)
    options = {name: value for name, value in CONFIG.items() if not name.startswith("_")}
    net = with_copies(diffusers.DiTTransformer2DModel(**options), torch)
    network, shape, num_classes = dit.from_config(dict(net.config))
    assert (shape, num_classes) == ((8, 8, 3), 4)
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    params = dit.to_jaxgen(arrays, network, shape, num_classes)

    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    t, label = np.array([3, 700, 20]), np.array([1, 3, 4])
    with torch.no_grad():
        image = torch.tensor(x).permute(0, 3, 1, 2)
        theirs = net(image, timestep=torch.tensor(t), class_labels=torch.tensor(label)).sample
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    told = Condition(jnp.asarray(np.eye(5, 4, dtype=np.float32)[label]))
    ours = jit(
        lambda p: network.apply({"params": p}, jnp.asarray(x), jnp.asarray(t), told, train=False)
    )(params)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())

    back = dit.from_jaxgen(params, network, shape, num_classes)
    net.load_state_dict({name: torch.tensor(array) for name, array in back.items()})
    again = flatten_dict(dit.to_jaxgen(back, network, shape, num_classes), sep="/")
    for name, array in flatten_dict(params, sep="/").items():
        np.testing.assert_allclose(again[name], array, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "ada_norm"}, "norm_type must be 'ada_norm_zero' here, got 'ada_norm'"),
        ({"dropout": 0.1}, "dropout must be 0.0 here, got 0.1"),
        ({"cross_attention_dim": 64}, "cross_attention_dim must be None here, got 64"),
        ({"num_layer": 3}, r"num_layer is an option that is not known here \(near is num_layers\)"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm must be the number of classes, got N"),
    ],
)
def test_configs_that_ours_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        dit.from_config({**CONFIG, **change})


def test_every_array_is_used_once():
    """The copies too, which must be equal."""
    network, shape, num_classes = dit.from_config(CONFIG)
    x, t, told = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32), Condition(jnp.zeros((1, 4)))
    shapes = jax.eval_shape(
        lambda key: network.init(key, x, t, told, train=False), jax.random.key(0)
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["params"])
    arrays = dit.from_jaxgen(params, network, shape, num_classes)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.weight"
    dit.to_jaxgen(arrays, network, shape, num_classes)
    other = {**arrays, name: arrays[name] + 1}
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1\.emb\.timestep.* must be a copy of th"):
        dit.to_jaxgen(other, network, shape, num_classes)
    lacking = {k: v for k, v in arrays.items() if k != name.replace("blocks.1", "blocks.0")}
    with pytest.raises(ValueError, match=r"missing transformer_blocks\.0\.norm1\.emb\.timestep"):
        dit.to_jaxgen(lacking, network, shape, num_classes)
    del arrays["transformer_blocks.1.attn1.to_q.bias"]
    with pytest.raises(ValueError, match=r"missing transformer_blocks\.1\.attn1\.to_q\.bias"):
        dit.to_jaxgen(arrays, network, shape, num_classes)
