"""Weights of the authors' very deep VAE (Child 2021), as their .th files have them, and of ours.

    likelihood = likelihoods.mixture_of_logistics(10)
    network = VDVAE(ENCODER, DECODER, width=384, num_params=likelihood.num_params(3),
                    mean=120.63838 / 127.5 - 1, std=64.16736 / 127.5)
    params = to_jaxgen(read_state_dict("cifar10-seed1-iter-1050000-model-ema.th"), network)
    network.apply({"params": params}, images)

`jaxgen.metrics.torch_weights.read_state_dict` reads the file. A file does not say how its blocks
are connected; the authors' table does, each encoder above its decoder:

    cifar10      384   32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3
                       1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21
    imagenet32   512   32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6
                       1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40
    imagenet64   512   64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5
                       1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12
    ffhq256      512   256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4
                       1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128

Mean and standard deviation of the bytes are 116.2373 and 69.37404 of imagenet32, 115.92961967 and
69.37404 of imagenet64, 112.8666757481 and 69.84780273 of ffhq256, which was trained on the upper
five bits of each byte: its likelihood is of 32 values and not of 256.

Their mixture of logistics has its numbers channel by channel, ours kind by kind, so the outputs of
the last layer are put in another order.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.convert import tables
from jaxgen.convert.tables import CONV, CONVOLUTION, Form, Shapes, StateDict, Table
from jaxgen.core import Params
from jaxgen.distributions.logistic import mixture_of_logistics_rows
from jaxgen.models.blocks.vdvae_stages import decoder_stages, encoder_stages
from jaxgen.models.hierarchical_vae import VDVAE

_T = TypeVar("_T")
_CHANNELS = 3  # of all their images
_PREFIX = "module."  # of what was trained on several devices, but for its average

IMAGE = Form(lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])
"""An image to begin with: [1, channels, height, width] elsewhere, here as images are."""

CHANNEL = Form(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])
"""A number a channel: [1, channels, 1, 1] elsewhere, [channels] here."""

BLOCK = tuple((f"c{i}", f"conv{i}", CONV) for i in range(1, 5))
DECODER_BLOCK = (
    ("enc", "posterior", BLOCK),
    ("prior", "prior", BLOCK),
    ("resnet", "residual", BLOCK),
    ("z_proj", "latents", CONV),
)


def table(network: VDVAE) -> Table:
    """The table of a network, whose blocks are counted one by one.

    Args:
        network: Our network.
    """
    order = _order(network.num_params)
    back = np.argsort(order)
    pixels = (
        (
            "weight",
            "kernel",
            Form(
                lambda x: CONVOLUTION.to_jaxgen(x)[..., order],
                lambda x: CONVOLUTION.from_jaxgen(x[..., back]),
            ),
        ),
        ("bias", "bias", Form(lambda x: x[order], lambda x: x[back])),
    )
    rows = (
        ("encoder.in_conv", "encoder/conv_in", CONV),
        ("encoder.enc_blocks.{i}", "encoder/blocks/{i}/residual", BLOCK),
        ("decoder.dec_blocks.{i}", "decoder/blocks/{i}", DECODER_BLOCK),
        ("decoder.bias_xs.{index}", "decoder/bias{resolution}", IMAGE),
        ("decoder.gain", "decoder/gain", CHANNEL),
        ("decoder.bias", "decoder/bias", CHANNEL),
        ("decoder.out_net.out_conv", "decoder/conv_out", pixels),
    )
    resolutions = list(network.latent_shapes)

    def derived(resolution: int | None = None, **_: int) -> Mapping[str, int]:
        return {} if resolution is None else {"index": resolutions.index(resolution)}

    return Table("VDVAE", rows, derived)


def to_jaxgen(state_dict: StateDict, network: VDVAE) -> dict[str, Any]:
    """Our parameters, of theirs.

    Args:
        state_dict: Arrays of their network by name, with "module." before each or without.
        network: Our network, of the same blocks and widths, for a mixture of logistics of RGB.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite; or
            if the network is for another likelihood.
    """
    if all(name.startswith(_PREFIX) for name in state_dict):
        state_dict = {name.removeprefix(_PREFIX): x for name, x in state_dict.items()}
    shapes = _shapes(network)
    params = tables.to_jaxgen(state_dict, _apart(shapes, network, _one_shape), table(network))
    return unflatten_dict(_together(flatten_dict(params, sep="/"), shapes, network), sep="/")


def from_jaxgen(params: Params, network: VDVAE) -> dict[str, np.ndarray]:
    """Their arrays, of our parameters.

    Args:
        params: Parameters of the network.
        network: Our network, for a mixture of logistics of RGB.

    Raises:
        ValueError: If a parameter is missing, too many, or of another shape; or if the network is
            for another likelihood.
    """
    shapes = _shapes(network)
    given = {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}
    for name in given.keys() & shapes.keys():
        if given[name].shape != shapes[name]:
            raise ValueError(
                f"our parameter {name} has shape {list(given[name].shape)}, and "
                f"{list(shapes[name])} in the network"
            )
    apart = _apart(given, network, lambda x, i: x[i])
    tree: Any = unflatten_dict(apart, sep="/")
    return tables.from_jaxgen(tree, _apart(shapes, network, _one_shape), table(network))


def _order(num_params: int) -> np.ndarray:
    """Where each of our numbers of a pixel is in theirs."""
    rows = mixture_of_logistics_rows(_CHANNELS)
    if num_params % rows:
        raise ValueError(
            f"num_params of the network must be {rows} a logistic, as a mixture of them has of "
            f"RGB, got {num_params}"
        )
    num_mixtures = num_params // rows
    theirs = np.arange(num_params)
    logits, others = theirs[:num_mixtures], theirs[num_mixtures:]
    kinds = others.reshape(_CHANNELS, 3, num_mixtures).swapaxes(0, 1)  # mean, scale, coefficient
    return np.concatenate([logits, kinds.ravel()])


def _shapes(network: VDVAE) -> Shapes:
    """The shapes of our parameters by name, as the network has them."""
    size = max(network.latent_shapes)
    x = jax.ShapeDtypeStruct((1, size, size, _CHANNELS), jnp.float32)
    return tables.shapes_of(network.init, x)


def _one_shape(shape: tuple[int, ...], index: int) -> tuple[int, ...]:
    return shape[1:]


def _places(network: VDVAE) -> dict[str, tuple[int, int | None]]:
    """Our name of blocks -> number of the first of them, how many are stacked (None of one)."""
    places: dict[str, tuple[int, int | None]] = {}
    first = 0
    for r, num_blocks, down in encoder_stages(network.encoder_blocks):
        if num_blocks:
            places[f"encoder/blocks{r}"] = (first, num_blocks)
        if down is not None:
            places[f"encoder/down{r}"] = (first + num_blocks, None)
        first += num_blocks + (down is not None)
    first = 0
    for r, num_blocks, _ in decoder_stages(network.decoder_blocks):
        places[f"decoder/blocks{r}"] = (first, num_blocks)
        first += num_blocks
    return places


def _names(name: str, network: VDVAE) -> tuple[list[str], bool]:
    """A parameter's names where each block is apart, and whether it is stacked."""
    part, group, *rest = name.split("/")
    place = _places(network).get(f"{part}/{group}")
    if place is None:
        return [name], False
    first, count = place
    numbers = range(first, first + (count or 1))
    return ["/".join((part, "blocks", str(n), *rest)) for n in numbers], count is not None


def _apart(values: Mapping[str, _T], network: VDVAE, one: Callable[[_T, int], _T]) -> dict[str, _T]:
    """The values of each block by itself; `one(value, i)` is one of a stack."""
    apart: dict[str, _T] = {}
    for name, value in values.items():
        names, stacked = _names(name, network)
        apart |= {each: one(value, i) if stacked else value for i, each in enumerate(names)}
    return apart


def _together(
    apart: Mapping[str, np.ndarray], shapes: Shapes, network: VDVAE
) -> dict[str, np.ndarray]:
    """The arrays as the network has them."""
    arrays = {}
    for name in shapes:
        names, stacked = _names(name, network)
        parts = [apart[each] for each in names]
        arrays[name] = np.stack(parts) if stacked else parts[0]
    return arrays
