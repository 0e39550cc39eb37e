"""Weights of diffusers' `AutoencoderKL`, the first stage of latent diffusion, and of ours.

    sizes, image_channels = from_config(json.loads(Path("vae/config.json").read_text()))
    arrays = safetensors.numpy.load_file("vae/diffusion_pytorch_model.safetensors")
    params = to_jaxgen(arrays, sizes, image_channels)
    moments = Encoder(sizes, moments=2).apply({"params": params["encoder"]}, image)

What diffusion is trained on is the latents times the config's `scaling_factor`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.convert import tables
from jaxgen.convert.diffusers_config import check_options
from jaxgen.convert.diffusers_unet import ATTENTION, OLD_ATTENTION, RESNET
from jaxgen.convert.tables import CONV, NORM, Shapes, StateDict, Table
from jaxgen.core import Params
from jaxgen.models.autoencoder import Decoder, Encoder, Sizes
from jaxgen.models.blocks.layers import default_groups

# What a config may say that our networks do not do, and what it must say instead.
_FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_SIZES = ("block_out_channels", "in_channels", "latent_channels", "layers_per_block")
_TYPES = ("down_block_types", "up_block_types", "out_channels")
# Of the images that it was trained on, of the second stage, of half precision.
_UNUSED = ("sample_size", "scaling_factor", "force_upcast")


def table(sizes: Sizes, *, old_names: bool = False) -> Table:
    """The table of an autoencoder.

    Args:
        sizes: Sizes of the networks.
        old_names: Whether attention has the names of 2022.
    """
    attention = OLD_ATTENTION if old_names else ATTENTION
    middle = (
        ("mid_block.resnets.{i}", "mid_block{i}", RESNET),
        ("mid_block.attentions.0", "mid_attention", attention),
        ("conv_norm_out", "norm_out", NORM),
    )
    encoder = (
        ("conv_in", "conv_in", CONV),
        ("down_blocks.{level}.resnets.{i}", "down{level}_block{i}", RESNET),
        ("down_blocks.{level}.downsamplers.0.conv", "down{level}_downsample/conv", CONV),
        *middle,
        ("conv_out", "conv_out", CONV),
    )
    trunk = (
        ("conv_in", "conv_in", CONV),
        *middle,
        ("up_blocks.{up}.resnets.{i}", "up{level}_block{i}", RESNET),
        ("up_blocks.{up}.upsamplers.0.conv", "up{level}_upsample/conv", CONV),
    )
    rows = (
        ("quant_conv", "encoder/quant_conv", CONV),
        ("encoder", "encoder", encoder),
        ("post_quant_conv", "decoder/trunk/post_quant_conv", CONV),
        ("decoder", "decoder/trunk", trunk),
        ("decoder.conv_out", "decoder/conv_out", CONV),
    )
    last = len(sizes.multipliers) - 1
    return Table("diffusers' AutoencoderKL", rows, lambda level=0, **_: {"up": last - level})


def to_jaxgen(state_dict: StateDict, sizes: Sizes, image_channels: int = 3) -> dict[str, Any]:
    """Our parameters, of theirs by either naming of attention.

    Args:
        state_dict: Arrays of an `AutoencoderKL` by name.
        sizes: Sizes of our networks (`from_config`).
        image_channels: Channels of the images.

    Returns:
        The parameters of `Encoder(sizes, moments=2)` as `encoder`, and of `Decoder(sizes)` as
        `decoder`, as the family of first stages has them.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite.
    """
    old = any(".query." in name for name in state_dict)
    return tables.to_jaxgen(state_dict, _shapes(sizes, image_channels), table(sizes, old_names=old))


def from_jaxgen(
    params: Params, sizes: Sizes, image_channels: int = 3, *, old_names: bool = False
) -> dict[str, np.ndarray]:
    """Their arrays, of our parameters: `AutoencoderKL(**to_config(...))` loads them.

    Args:
        params: Parameters of the networks, `encoder` and `decoder`; others, such as those of a
            discriminator, are left out.
        sizes: Sizes of the networks.
        image_channels: Channels of the images.
        old_names: Whether attention is to have the names of 2022.

    Raises:
        ValueError: If a parameter is missing, too many, or has no place in theirs.
        KeyError: If there is no encoder or decoder.
    """
    both = {name: params[name] for name in ("encoder", "decoder")}
    rows = table(sizes, old_names=old_names)
    return tables.from_jaxgen(both, _shapes(sizes, image_channels), rows)


def from_config(config: Mapping[str, Any]) -> tuple[Sizes, int]:
    """The sizes of our networks, and the channels of the images, of an `AutoencoderKL`.

    Args:
        config: Content of its `config.json`.

    Raises:
        ValueError: If it has what ours has not, or lacks a size; names the option, its value and
            what ours can do.
    """
    check_options(config, {*_FIXED, *_SIZES, *_TYPES, *_UNUSED}, needed=_SIZES)
    channels, *_ = widths = config["block_out_channels"]
    if any(width % channels for width in widths):
        raise ValueError(f"block_out_channels must be multiples of the first, got {widths}")
    needed = {
        **_FIXED,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "out_channels": config["in_channels"],
    }
    for name, value in needed.items():
        given = config.get(name, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise ValueError(f"{name} must be {value!r} for our networks, got {given!r}")
    multipliers = tuple(width // channels for width in widths)
    sizes = Sizes(
        multipliers,
        config["latent_channels"],
        channels=channels,
        num_res_blocks=config["layers_per_block"],
    )
    _check_groups(sizes, config["in_channels"])
    return sizes, config["in_channels"]


def to_config(sizes: Sizes, image_channels: int = 3) -> dict[str, Any]:
    """The config of the `AutoencoderKL` that is ours; its `scaling_factor` is the caller's to add.

    Args:
        sizes: Sizes of the networks.
        image_channels: Channels of the images.

    Raises:
        ValueError: If theirs cannot be as ours is; names the field.
    """
    if sizes.attention_factors:
        raise ValueError(f"attention_factors must be (), got {sizes.attention_factors}")
    _check_groups(sizes, image_channels)
    levels = len(sizes.multipliers)
    return {
        **_FIXED,
        "in_channels": image_channels,
        "out_channels": image_channels,
        "latent_channels": sizes.latent_channels,
        "block_out_channels": [sizes.channels * m for m in sizes.multipliers],
        "layers_per_block": sizes.num_res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _check_groups(sizes: Sizes, image_channels: int) -> None:
    """Raise ValueError unless all normalizations have 32 groups, as theirs do."""
    shapes = _shapes(sizes, image_channels)
    groups = {default_groups(shape[0]) for name, shape in shapes.items() if name.endswith("/scale")}
    if groups != {32}:
        raise ValueError(
            f"channels must be a multiple of 128, so that normalizations have 32 groups as theirs, "
            f"got {sizes.channels} with {sorted(groups)} groups"
        )


def _shapes(sizes: Sizes, image_channels: int) -> Shapes:
    side = 2 * sizes.factor
    x = jax.ShapeDtypeStruct((1, side, side, image_channels), jnp.float32)
    z = jax.ShapeDtypeStruct((1, 2, 2, sizes.latent_channels), jnp.float32)
    networks = {
        "encoder": tables.shapes_of(Encoder(sizes, moments=2).init, x),
        "decoder": tables.shapes_of(Decoder(sizes, image_channels).init, z),
    }
    return {
        f"{network}/{name}": shape
        for network, shapes in networks.items()
        for name, shape in shapes.items()
    }
