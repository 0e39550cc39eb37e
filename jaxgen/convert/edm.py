"""Weights of EDM's networks (Karras et al. 2022), and of our `ScoreUNet`.

    ema = persistence.read("edm-cifar10-32x32-cond-vp.pkl")["ema"]
    layout = from_module(ema)
    params = to_jaxgen(ema.arrays(), *layout)

`SongUNet` (DDPM++ and NCSN++) and `DhariwalUNet` (ADM) are read. What they are told as their time,
and what is made of their output, is a parametrization: EDM's is `jaxgen.noise.parametrization.edm`.
The weights of NVIDIA's own files are not for commercial use.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxgen.conditioning.base import Condition
from jaxgen.convert import tables
from jaxgen.convert.persistence import Module
from jaxgen.convert.tables import (
    CONV,
    DENSE,
    HALVES_SWAPPED,
    NORM,
    SAME,
    Form,
    Shapes,
    StateDict,
    Table,
)
from jaxgen.core import Params
from jaxgen.models.blocks.resample import BINOMIAL, BOX
from jaxgen.models.score_unet import ScoreUNet, adm, edm_ddpmpp

INTERLEAVED = Form(
    lambda x: tuple(x.reshape(-1, 3, x.shape[1])[:, i].T for i in range(3)),
    lambda *xs: np.stack([x.T for x in xs], 1).reshape(-1, xs[0].shape[0])[..., None, None],
)
"""A 1x1 convolution to queries, keys and values, of which each channel has the three together."""

INTERLEAVED_BIAS = Form(
    lambda x: tuple(x.reshape(-1, 3)[:, i] for i in range(3)),
    lambda *xs: np.stack(xs, 1).reshape(-1),
)
"""The bias of an `INTERLEAVED` convolution."""

POINTWISE = Form(lambda x: x[:, :, 0, 0].T, lambda x: x.T[..., None, None])
"""A 1x1 convolution elsewhere, a linear map here."""

OUTPUTS_SWAPPED = Form(
    lambda x: np.roll(x.T, len(x) // 2, 1), lambda x: np.roll(x, x.shape[1] // 2, 1).T
)
"""A linear map to features of a time, whose cosines come first elsewhere, the sines here."""

_QKV = ("query", "key", "value")
BLOCK = (
    ("norm0", "norm1", NORM),
    ("conv0", "conv1", CONV),
    ("affine", "time", DENSE),
    ("norm1", "norm2", NORM),
    ("conv1", "conv2", CONV),
    ("skip", "shortcut", CONV),
)
ATTENTION = (
    ("norm2", "norm", NORM),
    ("qkv.weight", [f"{name}/kernel" for name in _QKV], INTERLEAVED),
    ("qkv.bias", [f"{name}/bias" for name in _QKV], INTERLEAVED_BIAS),
    ("proj", "out", (("weight", "kernel", POINTWISE), ("bias", "bias", SAME))),
)
LEVELS = (
    ("enc.{size}x{size}_conv", "conv_in", CONV),
    ("enc.{size}x{size}_block{i}", "down{level}_block{i}", BLOCK),
    ("enc.{size}x{size}_block{i}", "down{level}_attention{i}", ATTENTION),
    ("enc.{half}x{half}_down", "down{level}_downsample", BLOCK),
    ("enc.{half}x{half}_aux_residual", "down{level}_pyramid/conv", CONV),
    ("dec.{least}x{least}_in{i}", "mid_block{i}", BLOCK),
    ("dec.{least}x{least}_in0", "mid_attention", ATTENTION),
    ("dec.{size}x{size}_block{i}", "up{level}_block{i}", BLOCK),
    ("dec.{size}x{size}_block{i}", "up{level}_attention{i}", ATTENTION),
    ("dec.{double}x{double}_up", "up{level}_upsample", BLOCK),
)
SONG = (
    ("map_layer0", "time1", DENSE),
    ("map_layer1", "time2", DENSE),
    ("map_label", "condition", DENSE),
    ("map_augment", "augment", DENSE),
    *LEVELS,
    ("dec.{size}x{size}_aux_norm", "norm_out", NORM),
    ("dec.{size}x{size}_aux_conv", "conv_out", CONV),
)
DHARIWAL = (
    ("map_layer0", "time1", (("weight", "kernel", HALVES_SWAPPED), ("bias", "bias", SAME))),
    ("map_layer1", "time2", DENSE),
    ("map_label", "condition", DENSE),
    ("map_augment.weight", "augment/kernel", OUTPUTS_SWAPPED),
    *LEVELS,
    ("out_norm", "norm_out", NORM),
    ("out_conv", "conv_out", CONV),
)

_FREQUENCIES = "map_noise.freqs"
_IGNORED = (r".*\bresample_filter", r"map_noise\.freqs", "u")  # constants, and iDDPM's levels


class Layout(NamedTuple):
    """Our network for their weights, and what decides the shapes: the arguments of `to_jaxgen`.

    Attributes:
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None for a network without a condition.
    """

    network: ScoreUNet
    image_shape: tuple[int, int, int]
    num_classes: int | None = None


def table(network: ScoreUNet, size: int) -> Table:
    """The table of a network: a `DhariwalUNet` where the condition joins late, else a `SongUNet`.

    Args:
        network: Our network.
        size: Height and width of the images.
    """
    least = size >> (len(network.multipliers) - 1)

    def derived(level: int = 0, **_: int) -> Mapping[str, int]:
        sizes = {"size": size >> level, "half": size >> (level + 1), "double": 2 * size >> level}
        return {**sizes, "least": least}

    name = "SongUNet" if network.condition_first else "DhariwalUNet"
    rows = SONG if network.condition_first else DHARIWAL
    return Table(f"EDM's {name}", rows, derived, _IGNORED)


def to_jaxgen(
    state_dict: StateDict,
    network: ScoreUNet,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Our parameters, of theirs.

    Args:
        state_dict: Arrays by their names, with "model." before them or without.
        network: Our network, of the same sizes (`from_module`).
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite; or
            if the network has other frequencies of the time than theirs was trained with.
    """
    arrays = {name.removeprefix("model."): array for name, array in state_dict.items()}
    if _FREQUENCIES in arrays:
        ours = getattr(network.time_features, "keywords", {}).get("frequencies")
        if ours is None or not np.array_equal(ours, arrays[_FREQUENCIES]):
            raise ValueError(
                f"time_features must have the frequencies {_FREQUENCIES} that theirs was trained "
                "with: take the network of from_module, or partial(frozen_fourier, frequencies=...)"
            )
    shapes = _shapes(network, image_shape, num_classes)
    return tables.to_jaxgen(arrays, shapes, table(network, image_shape[0]))


def from_jaxgen(
    params: Params,
    network: ScoreUNet,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> dict[str, np.ndarray]:
    """Their arrays, without "model." before the names and without their constant filters.

    Args:
        params: Parameters of the network.
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.

    Raises:
        ValueError: If a parameter is missing, too many, or has no place in theirs.
    """
    shapes = _shapes(network, image_shape, num_classes)
    return tables.from_jaxgen(params, shapes, table(network, image_shape[0]))


def from_module(module: Module) -> Layout:
    """Our network for one of theirs.

    Args:
        module: The network as `persistence.read` gives it, within its preconditioning or without.

    Raises:
        ValueError: If it is none of the two, or has what ours has not; names it.
    """
    module = dict(module.state.get("_modules") or {}).get("model", module)
    if module.class_name not in ("SongUNet", "DhariwalUNet"):
        raise ValueError(f"the network must be SongUNet or DhariwalUNet, got {module.class_name}")
    given = module.options
    song = module.class_name == "SongUNet"
    try:
        size, channels = int(given["img_resolution"]), int(given["in_channels"])
        fields: dict[str, Any] = {"out_channels": int(given["out_channels"])}
    except KeyError as error:
        raise ValueError(f"{module.class_name} does not say its {error}") from error
    _require(given, "channel_mult_emb", 4)
    names = {
        "model_channels": "channels",
        "channel_mult": "multipliers",
        "num_blocks": "num_res_blocks",
        "attn_resolutions": "attention_resolutions",
        "dropout": "dropout",
        "augment_dim": "augmentation_labels",
    }
    # Where they differ from those of our functions: their defaults.
    fields |= {"dropout": 0.1, **({"multipliers": (1, 2, 2, 2)} if song else {})}
    for theirs, ours in names.items():
        if theirs in given:
            value = given[theirs]
            fields[ours] = tuple(value) if isinstance(value, list | tuple) else value
    network = edm_ddpmpp(**fields, **_song(module)) if song else adm(**fields)
    if not song and network.multipliers[0] != 1:
        raise ValueError(f"channel_mult must begin with 1, got {network.multipliers}")
    return Layout(network, (size, size, channels), int(given.get("label_dim") or 0) or None)


def _song(module: Module) -> dict[str, Any]:
    """What tells NCSN++ from DDPM++."""
    given = module.options
    _require(given, "decoder_type", "standard")
    fourier = given.get("embedding_type", "positional") == "fourier"
    _require(given, "channel_mult_noise", 2 if fourier else 1)
    encoder = given.get("encoder_type", "standard")
    if encoder not in ("standard", "residual"):
        raise ValueError(f"encoder_type must be standard or residual, got {encoder!r}")
    taps = tuple(given.get("resample_filter", BOX))
    if taps not in (BOX, BINOMIAL):
        raise ValueError(f"resample_filter must be {BOX} or {BINOMIAL}, got {taps}")
    fields: dict[str, Any] = {"taps": taps, "input_pyramid": encoder == "residual"}
    if fourier:
        arrays = module.arrays()
        if _FREQUENCIES not in arrays:
            raise ValueError(f"SongUNet of embedding_type fourier has no {_FREQUENCIES}")
        fields["time_features"] = partial(frozen_fourier, frequencies=arrays[_FREQUENCIES])
    return fields


def _require(given: Mapping[str, Any], name: str, needed: Any) -> None:
    if given.get(name, needed) != needed:
        raise ValueError(f"{name} must be {needed!r} for our network, got {given[name]!r}")


def frozen_fourier(
    t: Num[Array, " batch"], channels: int, *, frequencies: np.ndarray
) -> Float[Array, "batch features"]:
    r"""Sines and cosines of a time at given frequencies W, $$[\sin(2\pi W t), \cos(2\pi W t)]$$.

    Args:
        t: Times.
        channels: Number of frequencies.
        frequencies: Frequencies that a network was trained with, f32[channels].

    Raises:
        ValueError: If there are other numbers of frequencies than channels.
    """
    if len(frequencies) != channels:
        raise ValueError(
            f"frequencies must be {channels}, as many as channels, got {len(frequencies)}"
        )
    turns = 2 * np.pi * np.asarray(frequencies, np.float32)
    angles = t.astype(jnp.float32)[:, None] * turns[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _shapes(
    network: ScoreUNet, image_shape: tuple[int, int, int], num_classes: int | None
) -> Shapes:
    x, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jnp.zeros(1)
    condition = None if num_classes is None else Condition(jnp.zeros((1, num_classes)))
    return tables.shapes_of(network.init, x, t, condition, train=False)
