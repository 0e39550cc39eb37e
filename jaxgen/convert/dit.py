"""Weights of the authors' DiT (Peebles & Xie 2023), as their .pt files have them, and of ours.

    network = dit_xl(out_channels=8)
    params = to_jaxgen(read_state_dict("DiT-XL-2-256x256.pt"), network, (32, 32, 4), 1000)
    y = network.apply({"params": params}, latents, t, Condition(one_hot), train=False)

Theirs has a row of the classes' table for no class; here that is a vector of zeros. So that row
joins the embedding of the time, and is taken from the rows of the classes: every output is the
same. `jaxgen.metrics.torch_weights.read_state_dict` reads the file.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxgen.conditioning.base import Condition
from jaxgen.convert import tables
from jaxgen.convert.tables import (
    DENSE,
    FUSED,
    FUSED_BIAS,
    HALVES_SWAPPED,
    SAME,
    Form,
    Shapes,
    StateDict,
    Table,
)
from jaxgen.core import Params
from jaxgen.models.dit import DiT, sincos_positions


class Names(NamedTuple):
    """The names of those arrays that are not ours in another layout.

    Attributes:
        positions: Name of the embeddings of the positions, which ours computes.
        classes: Name of the classes' table, whose last row is of no class.
        time: Name of the bias of the time's last map, which that row joins.
    """

    positions: str
    classes: str
    time: str


_OWN = Names("pos_embed", "y_embedder.embedding_table.weight", "t_embedder.mlp.2.bias")
_QKV = [f"attention/{name}" for name in ("query", "key", "value")]
BLOCK = (
    ("adaLN_modulation.1", "modulation", DENSE),
    ("attn.qkv.weight", [f"{name}/kernel" for name in _QKV], FUSED),
    ("attn.qkv.bias", [f"{name}/bias" for name in _QKV], FUSED_BIAS),
    ("attn.proj", "attention/out", DENSE),
    ("mlp.fc1", "hidden", DENSE),
    ("mlp.fc2", "out", DENSE),
)


def patches(network: DiT) -> tuple[tuple[str, str, Form], ...]:
    """The rows of the map of patches: a convolution elsewhere, whose windows do not overlap.

    Args:
        network: Our network.
    """
    side = network.patch_size
    kernel = Form(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(side, side, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    )
    return (("weight", "kernel", kernel), ("bias", "bias", SAME))


def table(network: DiT) -> Table:
    """The table of a network.

    Args:
        network: Our network.
    """
    rows = (
        ("x_embedder.proj", "patches", patches(network)),
        ("t_embedder.mlp.0", "time1", (("weight", "kernel", HALVES_SWAPPED), DENSE[1])),
        ("t_embedder.mlp.2", "time2", DENSE),
        (_OWN.classes, "condition/kernel", SAME),
        ("blocks.{i}", "blocks/{i}", BLOCK),
        ("final_layer.adaLN_modulation.1", "modulation", DENSE),
        ("final_layer.linear", "last", DENSE),
    )
    return Table("DiT", rows, ignored=(_OWN.positions,))


def to_jaxgen(
    state_dict: StateDict,
    network: DiT,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Our parameters, of theirs.

    Args:
        state_dict: Arrays of their network by name.
        network: Our network, of the same sizes.
        image_shape: Height, width and channels of the images, or latents.
        num_classes: Number of classes, with which theirs has a row for no class or has none; None
            for a network without a condition.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite; or
            if theirs has other positions than the fixed ones.
    """
    return params_of(state_dict, network, image_shape, num_classes, table(network), _OWN)


def from_jaxgen(
    params: Params,
    network: DiT,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
) -> dict[str, np.ndarray]:
    """Their arrays, of our parameters, the positions and a row of zeros for no class among them.

    Args:
        params: Parameters of the network.
        network: Our network.
        image_shape: Height, width and channels of the images, or latents.
        num_classes: Number of classes, or None.

    Raises:
        ValueError: If a parameter is missing, too many, or has no place in theirs.
    """
    arrays = arrays_of(params, network, image_shape, num_classes, table(network), _OWN)
    return {_OWN.positions: _positions(network, image_shape), **arrays}


def params_of(
    state_dict: StateDict,
    network: DiT,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    rows: Table,
    names: Names,
) -> dict[str, Any]:
    """Our parameters, of arrays by any names; arguments and errors are those of `to_jaxgen`.

    Args:
        state_dict: Arrays by name.
        network: Our network.
        image_shape: Height, width and channels of the images, or latents.
        num_classes: Number of classes, or None.
        rows: Table of the names.
        names: Names of the arrays that are not ours in another layout.
    """
    arrays = dict(state_dict)
    _check_positions(names.positions, arrays.get(names.positions), network, image_shape)
    classes = np.asarray(arrays.get(names.classes, np.zeros((0, 0))), np.float64)
    if num_classes is not None and len(classes) == num_classes + 1 and names.time in arrays:
        none = classes[-1]
        arrays[names.classes] = (classes[:-1] - none).astype(np.float32)
        arrays[names.time] = (np.asarray(arrays[names.time], np.float64) + none).astype(np.float32)
    params = tables.to_jaxgen(arrays, _shapes(network, image_shape, num_classes), rows)
    blocks = [params["blocks"][str(i)] for i in range(network.depth)]
    return {**params, "blocks": jax.tree.map(lambda *each: np.stack(each), *blocks)}


def arrays_of(
    params: Params,
    network: DiT,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    rows: Table,
    names: Names,
) -> dict[str, np.ndarray]:
    """Arrays by any names, of our parameters, without positions; a row of zeros is of no class.

    Args:
        params: Parameters of the network.
        network: Our network.
        image_shape: Height, width and channels of the images, or latents.
        num_classes: Number of classes, or None.
        rows: Table of the names.
        names: Names of the arrays that are not ours in another layout.
    """
    for name, x in flatten_dict(params.get("blocks", {}), sep="/").items():
        if np.shape(x)[:1] != (network.depth,):
            raise ValueError(
                f"our parameter blocks/{name} has shape {list(np.shape(x))}, and the network "
                f"{network.depth} blocks"
            )
    apart = {
        str(i): jax.tree.map(lambda x, i=i: np.asarray(x)[i], params.get("blocks", {}))
        for i in range(network.depth)
    }
    shapes = _shapes(network, image_shape, num_classes)
    arrays = tables.from_jaxgen({**params, "blocks": apart}, shapes, rows)
    if num_classes is not None:
        arrays[names.classes] = np.pad(arrays[names.classes], ((0, 1), (0, 0)))
    return arrays


def _positions(network: DiT, image_shape: tuple[int, int, int]) -> np.ndarray:
    rows, columns = (side // network.patch_size for side in image_shape[:2])
    return np.asarray(sincos_positions(rows, columns, network.width))[None]


def _check_positions(
    name: str, given: np.ndarray | None, network: DiT, image_shape: tuple[int, int, int]
) -> None:
    """Raise ValueError if there are positions, and they are not those that our network computes."""
    if given is None:
        return
    expected = _positions(network, image_shape)
    if given.shape != expected.shape:
        raise ValueError(
            f"{name} of DiT has shape {list(given.shape)}, and {list(expected.shape)} is "
            f"expected for images of {'x'.join(map(str, image_shape))}"
        )
    if not np.allclose(given, expected, rtol=0, atol=1e-3):
        raise ValueError(f"{name} of DiT must be the fixed sines and cosines of the paper")


def _shapes(network: DiT, image_shape: tuple[int, int, int], num_classes: int | None) -> Shapes:
    """The shapes of our parameters by name, each block's apart."""
    x, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jnp.zeros(1, jnp.int32)
    condition = None if num_classes is None else Condition(jnp.zeros((1, num_classes)))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tables.shapes_of(network.init, x, t, condition, train=False).items():
        if name.startswith("blocks/"):
            rest = name.removeprefix("blocks/")
            shapes |= {f"blocks/{i}/{rest}": shape[1:] for i in range(network.depth)}
        else:
            shapes[name] = shape
    return shapes
