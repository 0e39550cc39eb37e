"""diffusers' U-Net and ours: the same numbers both ways, and what does not fit is named."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.convert import diffusers_unet as unet
from jaxgen.convert import tables
from jaxgen.models.blocks.unet_layers import ADM, EDM
from jaxgen.models.unet import UNet

CONFIG: dict[str, Any] = {  # as google/ddpm-cifar10-32 has it, smaller
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 128],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 8,
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
LATER = {  # what later checkpoints have
    "attention_head_dim": 64,
    "attn_norm_num_groups": 32,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "num_class_embeds": 4,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}
WIDE = UNet(channels=128, multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(4,))
SMALL = UNet(channels=32, multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(4,))
SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def small():
    """Shapes and table of the small network."""
    return unet._shapes(SMALL, SHAPE, None), unet.table(SMALL)


def randomized(network, shape=SHAPE, num_classes=None):
    rng = np.random.default_rng(0)
    shapes = unet._shapes(network, shape, num_classes)
    flat = {name: 0.2 * rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}
    return tables.unflatten_dict(flat, sep="/")


def test_what_a_config_leaves_out():
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")
    theirs = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    assert {name: theirs[name].default for name in unet._DEFAULTS} == unet._DEFAULTS


@pytest.mark.parametrize("changes", [{}, LATER], ids=["2020", "later"])
def test_parity_with_diffusers(changes):
    torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**{**CONFIG, **changes}).eval()
    for parameter in net.parameters():  # also what starts as one or zero
        torch.nn.init.normal_(parameter, std=0.05)
    layout = unet.from_config(dict(net.config))
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    params = unet.to_jaxgen(arrays, *layout)

    x = np.random.default_rng(1).normal(size=(2, *layout.image_shape)).astype(np.float32)
    image = jnp.asarray(x)
    t, labels = np.array([3, 700]), [] if layout.num_classes is None else [np.array([1, 3])]
    with torch.no_grad():
        theirs = net(torch.tensor(x).permute(0, 3, 1, 2), *map(torch.tensor, [t, *labels])).sample
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    told = [Condition(jnp.eye(4)[label]) for label in labels]
    ours = jit(
        lambda p: layout.network.apply({"params": p}, image, jnp.asarray(t), *told, train=False)
    )(params)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())

    other = diffusers.UNet2DModel(**unet.to_config(*layout))
    back = unet.from_jaxgen(params, *layout)
    other.load_state_dict({name: torch.tensor(array) for name, array in back.items()})
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("cosines_first", [False, True])
def test_there_and_back(old_names, cosines_first):
    params, layout = randomized(SMALL, num_classes=5), (SMALL, SHAPE, 5, cosines_first)
    state = unet.from_jaxgen(params, *layout, old_names=old_names)
    assert ("mid_block.attentions.0.proj_attn.weight" in state) == old_names
    assert ("up_blocks.0.attentions.1.to_out.0.bias" in state) != old_names
    back = unet.to_jaxgen(state, *layout)
    flat, expected = (tables.flatten_dict(tree, sep="/") for tree in (back, params))
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(flat[name], array)
    first = state["time_embedding.linear_1.weight"][:, :16].T
    half = params["time1"]["kernel"][16:] if cosines_first else params["time1"]["kernel"][:16]
    np.testing.assert_array_equal(first, half)


def test_configs_there_and_back():
    for network, classes, first in ((WIDE, None, False), (WIDE.clone(style=ADM), 5, True)):
        layout = unet.from_config(unet.to_config(network, SHAPE, classes, first))
        assert layout[1:] == (SHAPE, classes, first)
        for field in ("channels", "multipliers", "num_res_blocks", "attention_resolutions"):
            assert getattr(layout.network, field) == getattr(network, field)
        assert layout.network.style.epsilon == network.style.epsilon


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_in.bias"), r"missing conv_in\.bias"),
        (lambda s: s.update(more=np.zeros(2)), "unknown more"),
        (
            lambda s: s.update({"conv_in.wieght": s.pop("conv_in.weight")}),
            r"missing conv_in\.weight \(near is conv_in\.wieght\); unknown conv_in\.wieght",
        ),
        (
            lambda s: s.update({"conv_in.weight": np.zeros((32, 1, 3, 3), np.float32)}),
            r"conv_in.weight of .* has shape \[32, 1, 3, 3\], \[32, 3, 3, 3\] is expected for our",
        ),
        (lambda s: s["conv_out.bias"].__setitem__(0, np.nan), "conv_out.bias .* finite numbers"),
        (lambda s: s.update({"conv_out.bias": np.zeros(3, int)}), "finite floats, got int64"),
        (lambda s: s.update({"conv_out.bias": np.full(3, 1e39)}), "conv_out.bias .* float32"),
    ],
)
def test_every_array_is_used_once(change, message, small):
    shapes, rows = small
    state = tables.from_jaxgen(randomized(SMALL), shapes, rows)
    change(state)
    with pytest.raises(ValueError, match=message):
        tables.to_jaxgen(state, shapes, rows)


def test_arrays_of_other_floats(small):
    """bfloat16, as many files have them, and float64."""
    shapes, rows = small
    state = tables.from_jaxgen(randomized(SMALL), shapes, rows)
    for dtype in (jnp.bfloat16, np.float64):
        given = {**state, "conv_out.bias": np.array([0.5, -2, 3], dtype)}
        bias = tables.to_jaxgen(given, shapes, rows)["conv_out"]["bias"]
        assert bias.dtype == np.float32
        np.testing.assert_array_equal(bias, [0.5, -2, 3])


def test_every_parameter_is_used_once():
    params = randomized(SMALL)
    lost = {**params, "conv_out": {**params["conv_out"], "bias": np.full(3, np.nan)}}
    with pytest.raises(ValueError, match="our parameter conv_out/bias is not finite"):
        unet.from_jaxgen(lost, SMALL, SHAPE)
    with pytest.raises(ValueError, match="our parameters are of another network: missing time1/b"):
        unet.from_jaxgen({**params, "time1": {"kernel": params["time1"]["kernel"]}}, SMALL, SHAPE)
    with pytest.raises(ValueError, match=r"has shape \[3, 3, 3, 32\], and \[3, 3, 1, 32\] in the"):
        unet.from_jaxgen(params, SMALL.clone(out_channels=3), (8, 8, 1))
    reads = SMALL.clone(transformer_depth=1)
    with pytest.raises(ValueError, match="UNet2DModel has no place for our down1_attention0/"):
        unet.from_jaxgen(randomized(reads, num_classes=2), reads, SHAPE, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_padding": 1}, "downsample_padding must be 0 for our network, got 1"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu'"),
        ({"norm_num_groups": 16}, r"norm_num_groups is 16, and our .* of \[32\] groups"),
        ({"block_out_channels": [128, 192]}, "must be multiples of the first"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types must be"),
        ({"down_block_types": ["DownBlock2D", "ResnetDownsampleBlock2D"]}, "down_block_types must"),
        ({"freq_shift": 2}, "freq_shift must be 0 or 1, got 2"),
        ({"resnet_time_scale_shift": "spatial"}, "must be default or scale_shift, got 'spatial'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups must be 32"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups must be 32 for our network, got 16"),
        ({"sample_size": None}, "sample_size must be a number, or height and width, got None"),
        ({"time_embedding_dim": 64}, "time_embedding_dim must be 512 for our network, got 64"),
    ],
)
def test_configs_that_ours_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        unet.from_config({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 2}, "num_heads must be 1, or head_width given, got 2"),
        ({"time_features": lambda t, n: t}, "time_features must be timestep_embedding"),
        ({"multipliers": (2, 2)}, "multipliers must begin with 1"),
        ({"style": EDM}, "blocks be those of DDPM"),
        ({"multipliers": (1, 2)}, r"as many groups, got 32 with \[8, 16"),
    ],
)
def test_networks_that_theirs_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        unet.to_config(SMALL.clone(**fields), SHAPE)
