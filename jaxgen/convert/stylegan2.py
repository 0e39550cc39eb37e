"""Weights of StyleGAN2-ADA's networks (Karras et al. 2020), and of our `Generator` and
`Discriminator`.

    networks = persistence.read("cifar10.pkl")
    generator, discriminator = (convert(networks[name]) for name in ("G_ema", "D"))
    variables = variables_of(generator.collections, discriminator.collections)

They are read as the authors' PyTorch code writes them; TensorFlow's pickles are not read. The
weights of NVIDIA's own files are not for commercial use.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxgen.conditioning.base import Condition
from jaxgen.convert import tables
from jaxgen.convert.persistence import Module
from jaxgen.convert.tables import CONV, CONVOLUTION, DENSE, SAME, Form, Shapes, StateDict, Table
from jaxgen.core import PyTree, Variables
from jaxgen.families.gan_players import DISCRIMINATOR, GENERATOR
from jaxgen.models.blocks.resample import BINOMIAL
from jaxgen.models.stylegan2 import Generator, channels_at
from jaxgen.models.stylegan2_discriminator import Discriminator

FLIPPED = Form(
    lambda x: x.transpose(2, 3, 1, 0)[::-1, ::-1],
    lambda x: x[::-1, ::-1].transpose(3, 2, 0, 1),
)
"""A convolution that doubles an image: they convolve there, and correlate elsewhere, as we do."""

CHANNELS_LAST = Form(lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1))
"""An image: [channels, height, width] elsewhere, [height, width, channels] here."""

FLAT = Form(
    lambda x: x.reshape(len(x), -1, 4, 4).transpose(2, 3, 1, 0).reshape(-1, len(x)),
    lambda x: x.reshape(4, 4, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
)
"""A linear map of a 4x4 image, which is flattened channels first elsewhere, last here."""

_STYLED = (("affine", "style", DENSE), ("bias", "bias", SAME))
_NOISY = (*_STYLED, ("noise_strength", "noise_strength", SAME))
_MAPPING = (("embed", "embed", DENSE), ("fc{i}", "layer{i}", DENSE))
_BLOCK, _OURS = "synthesis.b{size}", "synthesis/block{size}"
OF_GENERATOR = (
    ("mapping", "params/mapping", _MAPPING),
    ("mapping.w_avg", "average/mapping/w", SAME),
    ("synthesis.b4.const", "params/synthesis/constant", CHANNELS_LAST),
    (f"{_BLOCK}.conv0", f"params/{_OURS}/up", (*_NOISY, ("weight", "kernel", FLIPPED))),
    (f"{_BLOCK}.conv1", f"params/{_OURS}/conv", (*_NOISY, ("weight", "kernel", CONVOLUTION))),
    (f"{_BLOCK}.torgb", f"params/{_OURS}/to_image", (*_STYLED, ("weight", "kernel", CONVOLUTION))),
    (f"{_BLOCK}.conv0.noise_const", f"noise/{_OURS}/up/constant", SAME),
    (f"{_BLOCK}.conv1.noise_const", f"noise/{_OURS}/conv/constant", SAME),
)
OF_DISCRIMINATOR = (
    ("mapping", "params/mapping", _MAPPING),
    ("b{image_size}.fromrgb", "params/from_image", CONV),
    ("b{size}.conv0", "params/block{size}/conv", CONV),
    ("b{size}.conv1", "params/block{size}/down", CONV),
    ("b{size}.skip.weight", "params/block{size}/skip/kernel", CONVOLUTION),
    ("b4.conv", "params/conv", CONV),
    ("b4.fc", "params/dense", (("weight", "kernel", FLAT), ("bias", "bias", SAME))),
    ("b4.out", "params/out", DENSE),
)

_FILTER = "resample_filter"
_FREE = ("num_fp16_res", "fp16_channels_last", "freeze_layers")  # of no effect on what is computed
_OF_CLASSES = ("cmap_dim", "mapping_kwargs")  # of a discriminator: without classes of no effect
_ACTIVATION = {"activation": "lrelu"}
_FILTERED = {**_ACTIVATION, _FILTER: list(BINOMIAL)}


class Layout(NamedTuple):
    """Our network for their weights, and what decides the shapes: the arguments of `to_jaxgen`.

    Attributes:
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None for a network without a condition.
    """

    network: Generator | Discriminator
    image_shape: tuple[int, int, int]
    num_classes: int | None = None


class Converted(NamedTuple):
    """One of their networks as one of ours.

    Attributes:
        layout: Our network, and what decides its shapes.
        collections: Its arrays by collection, which its `apply` takes: `params`, and of a generator
            `average` and `noise`.
    """

    layout: Layout
    collections: dict[str, Any]


def convert(module: Module) -> Converted:
    """Our network and arrays, of one of theirs.

    Args:
        module: The network as `persistence.read` gives it: "G_ema", "G" or "D".

    Raises:
        ValueError: What `from_module` and `to_jaxgen` raise.
    """
    layout = from_module(module)
    return Converted(layout, to_jaxgen(module.arrays(), *layout))


def variables_of(
    generator: Mapping[str, PyTree], discriminator: Mapping[str, PyTree] | None = None
) -> Variables:
    """Variables of the family `stylegan`, by which it samples, decodes and evaluates.

    Args:
        generator: The generator's arrays by collection.
        discriminator: The discriminator's, or None for a family that samples alone.
    """
    params, state = {}, {}
    for name, collections in ((GENERATOR, generator), (DISCRIMINATOR, discriminator)):
        if collections is not None:
            state[name] = {k: v for k, v in collections.items() if k != "params"}
            params[name] = collections["params"]
    return Variables(params, state)


def table(network: Generator | Discriminator, image_size: int) -> Table:
    """The table of a network.

    Args:
        network: Our network.
        image_size: Height and width of the images.
    """
    name = type(network).__name__
    rows = OF_GENERATOR if isinstance(network, Generator) else OF_DISCRIMINATOR
    return Table(
        f"StyleGAN2's {name}",
        rows,
        lambda **_: {"image_size": image_size},
        (rf"(.*\.)?{_FILTER}",),
    )


def to_jaxgen(
    state_dict: StateDict,
    network: Generator | Discriminator,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Our arrays by collection, of theirs.

    Args:
        state_dict: Arrays by their names.
        network: Our network, of the same sizes (`from_module`).
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite; or
            if a filter is another than our networks have.
    """
    taps = np.asarray(BINOMIAL, np.float64)
    expected = np.outer(taps, taps) / taps.sum() ** 2
    for name, array in state_dict.items():
        if name.split(".")[-1] != _FILTER:
            continue
        if array.shape != expected.shape or not np.allclose(array, expected, atol=1e-6):
            raise ValueError(f"{name} must be the filter of the taps {BINOMIAL}, as our networks'")
    shapes = _shapes(network, image_shape, num_classes)
    return tables.to_jaxgen(state_dict, shapes, table(network, image_shape[0]))


def from_jaxgen(
    collections: Mapping[str, PyTree],
    network: Generator | Discriminator,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> dict[str, np.ndarray]:
    """Their arrays, without their constant filters.

    Args:
        collections: Our arrays by collection.
        network: Our network.
        image_shape: Height, width and channels of the images.
        num_classes: Number of classes, or None.

    Raises:
        ValueError: If an array is missing, too many, or has no place in theirs.
    """
    shapes = _shapes(network, image_shape, num_classes)
    return tables.from_jaxgen(collections, shapes, table(network, image_shape[0]))


def from_module(module: Module) -> Layout:
    """Our network for one of theirs.

    Args:
        module: The network as `persistence.read` gives it.

    Raises:
        ValueError: If it is none of the two, or has what ours has not; names it.
    """
    makers: dict[str, Callable[..., Generator | Discriminator]] = {
        "Generator": _generator,
        "Discriminator": _discriminator,
    }
    if module.class_name not in makers:
        raise ValueError(f"the network must be Generator or Discriminator, got {module.class_name}")
    given = module.options
    try:
        size, channels = int(given.pop("img_resolution")), int(given.pop("img_channels"))
        num_classes = int(given.pop("c_dim")) or None
        if module.class_name == "Discriminator" and num_classes is None:
            for name in _OF_CLASSES:
                given.pop(name, None)
        network = makers[module.class_name](given, size, channels)
    except KeyError as error:
        raise ValueError(f"{module.class_name} does not say its {error}") from error
    return Layout(network, (size, size, channels), num_classes)


def _generator(given: dict[str, Any], size: int, channels: int) -> Generator:
    latent_dim, style_dim = int(given.pop("z_dim")), int(given.pop("w_dim"))
    mapping, synthesis = (_group(given, name) for name in ("mapping_kwargs", "synthesis_kwargs"))
    fields = _sizes(synthesis)
    decay = mapping.pop("w_avg_beta", 0.995)
    if decay is None:
        raise ValueError("w_avg_beta must be a number: our network has a mean style")
    layers = _mapping_layers(mapping, style_dim)
    _refuse_others(given)
    _refuse_others(synthesis, architecture="skip", use_noise=True, **_FILTERED)
    return Generator(
        size,
        channels,
        latent_dim=latent_dim,
        style_dim=style_dim,
        mapping_layers=layers,
        average_decay=float(decay),
        **fields,
    )


def _discriminator(given: dict[str, Any], size: int, channels: int) -> Discriminator:
    groups = ("mapping_kwargs", "block_kwargs", "epilogue_kwargs")
    mapping, block, epilogue = (_group(given, name) for name in groups)
    fields = _sizes(given)
    width = channels_at(4, fields["channel_base"], fields["channel_max"])
    architecture = given.pop("architecture", "resnet")
    if architecture not in ("resnet", "orig"):
        raise ValueError(f"architecture must be resnet or orig, got {architecture!r}")
    group = epilogue.pop("mbstd_group_size", 4)
    if not isinstance(group, int):
        raise ValueError(f"mbstd_group_size must be a number, got {group!r}")
    num = epilogue.pop("mbstd_num_channels", 1)
    if num not in (0, 1):
        raise ValueError(f"mbstd_num_channels must be 0 or 1 for our network, got {num!r}")
    layers = _mapping_layers(mapping, width)
    _refuse_others(given, cmap_dim=(None, width))
    _refuse_others(block, **_FILTERED)
    _refuse_others(epilogue, **_ACTIVATION)
    return Discriminator(
        residual=architecture == "resnet", stddev_group=group * num, mapping_layers=layers, **fields
    )


def _group(given: dict[str, Any], name: str) -> dict[str, Any]:
    """A group of options, taken out."""
    return dict(given.pop(name, None) or {})


def _sizes(given: dict[str, Any]) -> dict[str, Any]:
    """Channels and clamp, taken out."""
    clamp = given.pop("conv_clamp", None)
    return {
        "channel_base": int(given.pop("channel_base", 32768)),
        "channel_max": int(given.pop("channel_max", 512)),
        "clamp": None if clamp is None else float(clamp),
    }


def _mapping_layers(given: dict[str, Any], width: int) -> int:
    layers = int(given.pop("num_layers", 8))
    if not layers:  # as where the authors' code converted TensorFlow's: there is but the embedding
        for name in ("activation", "layer_features", "lr_multiplier"):
            given.pop(name, None)
    widths = {"embed_features": (None, width), "layer_features": (None, width)}
    _refuse_others(given, lr_multiplier=0.01, **widths, **_ACTIVATION)
    return layers


def _refuse_others(given: Mapping[str, Any], **accepted: Any) -> None:
    """Raise ValueError for options that our networks do not have; a tuple holds several values."""
    for name, value in given.items():
        if name in _FREE:
            continue
        if name not in accepted:
            raise ValueError(f"{name} is no option of our network, got {value!r}")
        values = accepted[name] if isinstance(accepted[name], tuple) else (accepted[name],)
        if (list(value) if isinstance(value, tuple) else value) not in values:
            wanted = " or ".join(map(repr, values))
            raise ValueError(f"{name} must be {wanted} for our network, got {value!r}")


def _shapes(
    network: Generator | Discriminator, image_shape: tuple[int, int, int], num_classes: int | None
) -> Shapes:
    """The shapes of all collections, by name."""
    if isinstance(network, Generator):
        x = jax.ShapeDtypeStruct((1, network.latent_dim), jnp.float32)
    else:
        x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    condition = None if num_classes is None else Condition(jnp.zeros((1, num_classes)))
    init = partial(network.init, condition=condition, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), x)
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}
