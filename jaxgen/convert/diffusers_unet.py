"""Weights of diffusers' `UNet2DModel`, of DDPM's checkpoints, and of our `UNet`.

layout = from_config(json.loads(Path("ddpm/config.json").read_text()))
arrays = safetensors.numpy.load_file("ddpm/diffusion_pytorch_model.safetensors")
params = to_jaxgen(arrays, *layout)
eps = layout.network.apply({"params": params}, x, t, train=False)
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.conditioning.base import Condition
from jaxgen.convert import tables
from jaxgen.convert.diffusers_config import check_options
from jaxgen.convert.tables import CONV, DENSE, HALVES_SWAPPED, NORM, SAME, StateDict, Table
from jaxgen.core import Params
from jaxgen.models.blocks.layers import default_groups, timestep_embedding
from jaxgen.models.blocks.unet_layers import ADM, LDM, BlockStyle
from jaxgen.models.unet import UNet

RESNET = (
    ("norm1", "norm1", NORM),
    ("conv1", "conv1", CONV),
    ("time_emb_proj", "time", DENSE),
    ("norm2", "norm2", NORM),
    ("conv2", "conv2", CONV),
    ("conv_shortcut", "shortcut", CONV),
)
ATTENTION = (
    ("group_norm", "norm", NORM),
    ("to_q", "query", DENSE),
    ("to_k", "key", DENSE),
    ("to_v", "value", DENSE),
    ("to_out.0", "out", DENSE),
)
OLD_ATTENTION = (
    ("group_norm", "norm", NORM),
    ("query", "query", DENSE),
    ("key", "key", DENSE),
    ("value", "value", DENSE),
    ("proj_attn", "out", DENSE),
)
"""The names of attention in files of 2022."""

# What a config may say that our network does not do, and what it must say instead.
_FIXED = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
# What a config that leaves them out means: diffusers' defaults.
_DEFAULTS = {
    **_FIXED,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
}
_SIZES = (
    "block_out_channels",
    "down_block_types",
    "in_channels",
    "out_channels",
    "sample_size",
    "up_block_types",
)
_UNUSED = ("num_train_timesteps",)  # of a learned embedding of the time


class Layout(NamedTuple):
    """Our network for their weights, and what decides the shapes: the arguments of `to_jaxgen`.

    Attributes:
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None for a network without a condition.
        cosines_first: Whether theirs has the cosines of the time before the sines
            (`flip_sin_to_cos`).
    """

    network: UNet
    image_shape: tuple[int, int, int]
    num_classes: int | None = None
    cosines_first: bool = False


def table(network: UNet, *, cosines_first: bool = False, old_names: bool = False) -> Table:
    """The table of a network.

    Args:
        network: Our network.
        cosines_first: Whether theirs has the cosines of the time before the sines.
        old_names: Whether attention has the names of 2022.
    """
    attention = OLD_ATTENTION if old_names else ATTENTION
    time1 = (("weight", "kernel", HALVES_SWAPPED), ("bias", "bias", SAME))
    rows = (
        ("conv_in", "conv_in", CONV),
        ("time_embedding.linear_1", "time1", time1 if cosines_first else DENSE),
        ("time_embedding.linear_2", "time2", DENSE),
        ("class_embedding", "condition", (("weight", "kernel", SAME),)),
        ("down_blocks.{level}.resnets.{i}", "down{level}_block{i}", RESNET),
        ("down_blocks.{level}.attentions.{i}", "down{level}_attention{i}", attention),
        ("down_blocks.{level}.downsamplers.0.conv", "down{level}_downsample/conv", CONV),
        ("mid_block.resnets.{i}", "mid_block{i}", RESNET),
        ("mid_block.attentions.0", "mid_attention", attention),
        ("up_blocks.{up}.resnets.{i}", "up{level}_block{i}", RESNET),
        ("up_blocks.{up}.attentions.{i}", "up{level}_attention{i}", attention),
        ("up_blocks.{up}.upsamplers.0.conv", "up{level}_upsample/conv", CONV),
        ("conv_norm_out", "norm_out", NORM),
        ("conv_out", "conv_out", CONV),
    )
    last = len(network.multipliers) - 1
    return Table("diffusers' UNet2DModel", rows, lambda level=0, **_: {"up": last - level})


def to_jaxgen(
    state_dict: StateDict,
    network: UNet,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    cosines_first: bool = False,
) -> dict[str, Any]:
    """Our parameters, of theirs by either naming of attention.

    Args:
        state_dict: Arrays of a `UNet2DModel` by name.
        network: Our network, of the same sizes (`from_config`).
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.
        cosines_first: Whether theirs has the cosines of the time before the sines.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite.
    """
    old = any(".query." in name for name in state_dict)
    rows = table(network, cosines_first=cosines_first, old_names=old)
    return tables.to_jaxgen(state_dict, _shapes(network, image_shape, num_classes), rows)


def from_jaxgen(
    params: Params,
    network: UNet,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    cosines_first: bool = False,
    *,
    old_names: bool = False,
) -> dict[str, np.ndarray]:
    """Their arrays, of our parameters: `UNet2DModel(**to_config(...))` loads them.

    Args:
        params: Parameters of the network.
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.
        cosines_first: Whether theirs is to have the cosines of the time before the sines.
        old_names: Whether attention is to have the names of 2022.

    Raises:
        ValueError: If a parameter is missing, too many, or has no place in theirs.
    """
    rows = table(network, cosines_first=cosines_first, old_names=old_names)
    return tables.from_jaxgen(params, _shapes(network, image_shape, num_classes), rows)


def from_config(config: Mapping[str, Any]) -> Layout:
    """Our network for a `UNet2DModel`.

    Args:
        config: Content of its `config.json`.

    Raises:
        ValueError: If it has what ours has not, or lacks a size; names the option, its value and
            what ours can do.
    """
    check_options(config, {*_DEFAULTS, *_SIZES, *_UNUSED}, needed=_SIZES)
    c = {**_DEFAULTS, **config}
    for name, needed in _FIXED.items():
        _require(name, c[name], needed)
    channels, *_ = widths = c["block_out_channels"]
    _require("time_embedding_dim", c["time_embedding_dim"] or 4 * channels, 4 * channels)
    if any(width % channels for width in widths):
        raise ValueError(f"block_out_channels must be multiples of the first, got {widths}")
    attends = [name == "AttnDownBlock2D" for name in c["down_block_types"]]
    _require("down_block_types", c["down_block_types"], _block_types("Down", attends))
    _require("up_block_types", c["up_block_types"], _block_types("Up", attends[::-1]))
    if c["freq_shift"] not in (0, 1):
        raise ValueError(f"freq_shift must be 0 or 1, got {c['freq_shift']}")
    size = c["sample_size"]
    if size is None:
        raise ValueError("sample_size must be a number, or height and width, got None")
    height, width = (size, size) if isinstance(size, int) else size
    network = UNet(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        num_res_blocks=c["layers_per_block"],
        attention_resolutions=tuple(height >> i for i, a in enumerate(attends) if a),
        dropout=c["dropout"],
        head_width=c["attention_head_dim"],
        out_channels=c["out_channels"],
        time_features=partial(timestep_embedding, endpoint=c["freq_shift"] == 1),
        style=_style(c),
    )
    layout = Layout(
        network, (height, width, c["in_channels"]), c["num_class_embeds"], c["flip_sin_to_cos"]
    )
    groups = _groups(_shapes(*layout[:3]))
    if groups != {c["norm_num_groups"]}:
        raise ValueError(
            f"norm_num_groups is {c['norm_num_groups']}, and our network of these channels has "
            f"normalizations of {sorted(groups)} groups"
        )
    return layout


def to_config(
    network: UNet,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    cosines_first: bool = False,
) -> dict[str, Any]:
    """The config of the `UNet2DModel` that is our network.

    Args:
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.
        cosines_first: Whether theirs is to have the cosines of the time before the sines.

    Raises:
        ValueError: If theirs cannot be as ours is; names the field.
    """
    height, width, image_channels = image_shape
    style = network.style
    features = network.time_features
    endpoint = getattr(features, "keywords", {}).get("endpoint", True)
    if getattr(features, "func", features) is not timestep_embedding:
        raise ValueError(f"time_features must be timestep_embedding, got {features}")
    if network.multipliers[0] != 1 or style.residual_scale != 1 or not style.time_bias:
        raise ValueError("multipliers must begin with 1, and blocks be those of DDPM, ADM or LDM")
    if network.transformer_depth:
        raise ValueError(f"transformer_depth must be 0, got {network.transformer_depth}")
    if network.head_width is None and network.num_heads != 1:
        raise ValueError(
            f"num_heads must be 1, or head_width given, got {network.num_heads}: theirs is fixed "
            "by the width of a head, so levels of unequal width differ in their number"
        )
    groups = _groups(_shapes(network, image_shape, num_classes))
    if len(groups) > 1:
        raise ValueError(
            "channels must be such that all normalizations have as many groups, got "
            f"{network.channels} with {sorted(groups)} groups: multiples of 128 have 32"
        )
    attends = [
        (height >> i) in network.attention_resolutions for i in range(len(network.multipliers))
    ]
    (num_groups,) = groups
    return {
        **_FIXED,
        "sample_size": height if height == width else [height, width],
        "in_channels": image_channels,
        "out_channels": network.out_channels or image_channels,
        "block_out_channels": [network.channels * m for m in network.multipliers],
        "layers_per_block": network.num_res_blocks,
        "down_block_types": _block_types("Down", attends),
        "up_block_types": _block_types("Up", attends[::-1]),
        "attention_head_dim": network.head_width,
        "dropout": network.dropout,
        "flip_sin_to_cos": cosines_first,
        "freq_shift": int(endpoint),
        "norm_eps": style.epsilon,
        "norm_num_groups": num_groups,
        "attn_norm_num_groups": num_groups if style.scale_shift else None,
        "num_class_embeds": num_classes,
        "resnet_time_scale_shift": "scale_shift" if style.scale_shift else "default",
    }


def _require(name: str, value: Any, needed: Any) -> None:
    if value != needed and list(np.atleast_1d(value)) != list(np.atleast_1d(needed)):
        raise ValueError(f"{name} must be {needed!r} for our network, got {value!r}")


def _block_types(way: str, attends: list[bool]) -> list[str]:
    return [f"{'Attn' if attend else ''}{way}Block2D" for attend in attends]


def _style(config: Mapping[str, Any]) -> BlockStyle:
    """What the blocks have of the papers' networks."""
    kind = config["resnet_time_scale_shift"]
    if kind not in ("default", "scale_shift"):
        raise ValueError(f"resnet_time_scale_shift must be default or scale_shift, got {kind!r}")
    groups, own = config["norm_num_groups"], config["attn_norm_num_groups"]
    # Of the middle's attention. Theirs has no norm there with scale_shift, unless it says so.
    if kind == "scale_shift" or own is not None:
        _require("attn_norm_num_groups", own, groups)
    style = ADM if kind == "scale_shift" else LDM
    return style._replace(epsilon=config["norm_eps"])


def _groups(shapes: tables.Shapes) -> set[int]:
    """The numbers of groups of the normalizations."""
    return {default_groups(shape[0]) for name, shape in shapes.items() if name.endswith("/scale")}


def _shapes(
    network: UNet, image_shape: tuple[int, int, int], num_classes: int | None
) -> tables.Shapes:
    x, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jnp.zeros(1, jnp.int32)
    condition = None if num_classes is None else Condition(jnp.zeros((1, num_classes)))
    return tables.shapes_of(network.init, x, t, condition, train=False)
