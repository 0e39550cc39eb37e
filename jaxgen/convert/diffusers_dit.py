"""Weights of diffusers' `DiTTransformer2DModel`, and of our `DiT`.

    network, image_shape, num_classes = from_config(json.loads(Path(...).read_text()))
    arrays = safetensors.numpy.load_file("transformer/diffusion_pytorch_model.safetensors")
    params = to_jaxgen(arrays, network, image_shape, num_classes)

Theirs keeps a copy of the embeddings of time and class in every block, as the conversion of the
authors' weights (`jaxgen.convert.dit`) made them; copies that differ are another network.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxgen.convert import dit
from jaxgen.convert.diffusers_config import check_options
from jaxgen.convert.tables import DENSE, HALVES_SWAPPED, SAME, StateDict, Table
from jaxgen.core import Params
from jaxgen.models.blocks.layers import timestep_embedding
from jaxgen.models.dit import DiT

_FIRST = "transformer_blocks.0.norm1.emb."
_COPY = re.compile(r"transformer_blocks\.([1-9]\d*)\.norm1\.emb\.")
_NAMES = dit.Names(
    "pos_embed.pos_embed",
    f"{_FIRST}class_embedder.embedding_table.weight",
    f"{_FIRST}timestep_embedder.linear_2.bias",
)
BLOCK = (
    ("norm1.linear", "modulation", DENSE),
    ("attn1.to_q", "attention/query", DENSE),
    ("attn1.to_k", "attention/key", DENSE),
    ("attn1.to_v", "attention/value", DENSE),
    ("attn1.to_out.0", "attention/out", DENSE),
    ("ff.net.0.proj", "hidden", DENSE),
    ("ff.net.2", "out", DENSE),
)
# What a config may say that our network does not do, and what it must say instead.
_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "caption_channels": None,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "dropout": 0.0,
    "interpolation_scale": None,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_additional_conditions": None,
    "use_linear_projection": False,
}
# What a config that leaves them out means: diffusers' defaults.
_DEFAULTS = {
    "attention_head_dim": 72,
    "in_channels": 4,
    "norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": None,
    "patch_size": 2,
    "sample_size": 32,
}
_UNUSED = ("norm_num_groups", "upcast_attention")  # of other kinds of block, of half precision


def table(network: DiT) -> Table:
    """The table of a network.

    Args:
        network: Our network.
    """
    time1 = (("weight", "kernel", HALVES_SWAPPED), ("bias", "bias", SAME))
    rows = (
        ("pos_embed.proj", "patches", dit.patches(network)),
        (f"{_FIRST}timestep_embedder.linear_1", "time1", time1),
        (f"{_FIRST}timestep_embedder.linear_2", "time2", DENSE),
        (_NAMES.classes, "condition/kernel", SAME),
        ("transformer_blocks.{i}", "blocks/{i}", BLOCK),
        ("proj_out_1", "modulation", DENSE),
        ("proj_out_2", "last", DENSE),
    )
    return Table("diffusers' DiTTransformer2DModel", rows, ignored=(re.escape(_NAMES.positions),))


def to_jaxgen(
    state_dict: StateDict, network: DiT, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, Any]:
    """Our parameters, of theirs.

    Args:
        state_dict: Arrays of a `DiTTransformer2DModel` by name.
        network: Our network, of the same sizes (`from_config`).
        image_shape: Height, width and channels of the latents.
        num_classes: Number of classes, beside which theirs has a row for no class.

    Raises:
        ValueError: If an array is missing, has no place, or is of another shape or not finite; or
            if a block's embeddings are others than those of the first.
    """
    arrays = dict(state_dict)
    for name in state_dict:
        if not (copy := _COPY.match(name)):
            continue
        first = state_dict.get(f"{_FIRST}{name[copy.end() :]}")
        if first is not None and not np.array_equal(arrays.pop(name), first):
            raise ValueError(
                f"{name} of diffusers' DiTTransformer2DModel must be a copy of that of block 0: "
                "our network embeds time and class once for all blocks, as the authors' does"
            )
    rows = table(network)
    return dit.params_of(arrays, network, image_shape, num_classes, rows, _NAMES)


def from_jaxgen(
    params: Params, network: DiT, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, np.ndarray]:
    """Their arrays, of our parameters, the copies among them; a row of zeros is of no class.

    Args:
        params: Parameters of the network.
        network: Our network.
        image_shape: Height, width and channels of the latents.
        num_classes: Number of classes.

    Raises:
        ValueError: If a parameter is missing, too many, or has no place in theirs.
    """
    rows = table(network)
    arrays = dit.arrays_of(params, network, image_shape, num_classes, rows, _NAMES)
    copies = {
        name.replace("blocks.0.", f"blocks.{i}."): array
        for name, array in arrays.items()
        if name.startswith(_FIRST)
        for i in range(1, network.depth)
    }
    return {**arrays, **copies}


def from_config(config: Mapping[str, Any]) -> tuple[DiT, tuple[int, int, int], int]:
    """Our network for a `DiTTransformer2DModel`, the shape of the latents, the number of classes.

    Args:
        config: Content of its `config.json`; of the older class `Transformer2DModel` too.

    Raises:
        ValueError: If it has what ours has not; names the option, its value and what ours can do.
    """
    check_options(config, {*_DEFAULTS, *_UNUSED}, fixed=_FIXED)
    c = {**_DEFAULTS, **config}
    if c["num_embeds_ada_norm"] is None:
        raise ValueError("num_embeds_ada_norm must be the number of classes, got None")
    network = DiT(
        width=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        num_heads=c["num_attention_heads"],
        patch_size=c["patch_size"],
        out_channels=c["out_channels"] or c["in_channels"],
        # Theirs has the lowest frequency at the end, unlike the authors'.
        time_features=partial(timestep_embedding, endpoint=True),
        hidden_epsilon=c["norm_eps"],
    )
    shape = (c["sample_size"], c["sample_size"], c["in_channels"])
    return network, shape, c["num_embeds_ada_norm"]
