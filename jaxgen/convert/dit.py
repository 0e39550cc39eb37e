"""Weights of the authors' DiT (Peebles & Xie 2023), as their .pt files have them, and of ours.

    network = dit_xl(out_channels=8)
    params = to_jaxgen(read_state_dict("DiT-XL-2-256x256.pt"), network, (32, 32, 4), 1000)
    y = network.apply({"params": params}, latents, t, Condition(one_hot), train=False)

Theirs has a row of the classes' table for no class; here that is a vector of zeros. So that row
joins the embedding of the time, and is taken from the rows of the classes: every output is the
same. `jaxgen.metrics.torch_weights.read_state_dict` reads the file.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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

_POSITIONS, _CLASSES = "pos_embed", "y_embedder.embedding_table.weight"
_TIME = "t_embedder.mlp.2.bias"
_QKV = [f"attention/{name}" for name in ("query", "key", "value")]
BLOCK = (
    ("adaLN_modulation.1", "modulation", DENSE),
    ("attn.qkv.weight", [f"{name}/kernel" for name in _QKV], FUSED),
    ("attn.qkv.bias", [f"{name}/bias" for name in _QKV], FUSED_BIAS),
    ("attn.proj", "attention/out", DENSE),
    ("mlp.fc1", "hidden", DENSE),
    ("mlp.fc2", "out", DENSE),
)


def table(network: DiT) -> Table:
    """The table of a network.

    Args:
        network: Our network.
    """
    patch = network.patch_size
    patches = Form(  # a convolution whose windows do not overlap is a linear map of patches
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(patch, patch, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    )
    rows = (
        ("x_embedder.proj", "patches", (("weight", "kernel", patches), ("bias", "bias", SAME))),
        ("t_embedder.mlp.0", "time1", (("weight", "kernel", HALVES_SWAPPED), DENSE[1])),
        ("t_embedder.mlp.2", "time2", DENSE),
        (_CLASSES, "condition/kernel", SAME),
        ("blocks.{i}", "blocks/{i}", BLOCK),
        ("final_layer.adaLN_modulation.1", "modulation", DENSE),
        ("final_layer.linear", "last", DENSE),
    )
    return Table("DiT", rows, ignored=(_POSITIONS,))


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
    arrays = dict(state_dict)
    _check_positions(arrays.get(_POSITIONS), network, image_shape)
    classes = np.asarray(arrays.get(_CLASSES, np.zeros((0, 0))), np.float64)
    if num_classes is not None and len(classes) == num_classes + 1 and _TIME in arrays:
        none = classes[-1]
        arrays[_CLASSES] = (classes[:-1] - none).astype(np.float32)
        arrays[_TIME] = (np.asarray(arrays[_TIME], np.float64) + none).astype(np.float32)
    shapes = _shapes(network, image_shape, num_classes)
    params = tables.to_jaxgen(arrays, shapes, table(network))
    blocks = [params["blocks"][str(i)] for i in range(network.depth)]
    return {**params, "blocks": jax.tree.map(lambda *each: np.stack(each), *blocks)}


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
    apart = {
        str(i): jax.tree.map(lambda x, i=i: np.asarray(x)[i], params.get("blocks", {}))
        for i in range(network.depth)
    }
    shapes = _shapes(network, image_shape, num_classes)
    arrays = tables.from_jaxgen({**params, "blocks": apart}, shapes, table(network))
    if num_classes is not None:
        arrays[_CLASSES] = np.pad(arrays[_CLASSES], ((0, 1), (0, 0)))
    return {_POSITIONS: _positions(network, image_shape), **arrays}


def _positions(network: DiT, image_shape: tuple[int, int, int]) -> np.ndarray:
    rows, columns = (side // network.patch_size for side in image_shape[:2])
    return np.asarray(sincos_positions(rows, columns, network.width))[None]


def _check_positions(
    given: np.ndarray | None, network: DiT, image_shape: tuple[int, int, int]
) -> None:
    """Raise ValueError if there are positions, and they are not those that our network computes."""
    if given is None:
        return
    expected = _positions(network, image_shape)
    if given.shape != expected.shape:
        raise ValueError(
            f"{_POSITIONS} of DiT has shape {list(given.shape)}, and {list(expected.shape)} is "
            f"expected for images of {'x'.join(map(str, image_shape))}"
        )
    if not np.allclose(given, expected, rtol=0, atol=1e-3):
        raise ValueError(f"{_POSITIONS} of DiT must be the fixed sines and cosines of the paper")


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
