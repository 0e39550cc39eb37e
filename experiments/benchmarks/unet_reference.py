"""An independent U-Net to compare ours with: diffusers' `UNet2DModel`, built to the same shape.

`build` makes the PyTorch network that equals a `jaxgen.models.unet.UNet`, layer for layer;
`to_params` carries its weights into ours. The parity test and the benchmarks share both. Needs the
`parity` extra.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from jaxgen.models.blocks.layers import default_groups
from jaxgen.models.unet import UNet


def build(model: UNet, image_size: int, image_channels: int, num_classes: int | None = None) -> Any:
    """Builds the PyTorch network of the same architecture, freshly initialized.

    Args:
        model: Our network; its fields decide.
        image_size: Height and width of the images.
        image_channels: Channels of the images.
        num_classes: Number of classes, or None for a network without a condition.

    Returns:
        A `diffusers.UNet2DModel`: `net(x, t).sample`, or `net(x, t, labels).sample` with classes.

    Raises:
        ValueError: for several attention heads: diffusers fixes the width of a head, not the
            number, so levels of unequal width differ.
    """
    if model.num_heads != 1:
        raise ValueError(f"num_heads must be 1 to compare with diffusers, got {model.num_heads}")
    levels = len(model.multipliers)
    attends = [image_size >> level in model.attention_resolutions for level in range(levels)]
    net: Any = diffusers.UNet2DModel(
        sample_size=image_size,
        in_channels=image_channels,
        out_channels=image_channels if model.out_channels is None else model.out_channels,
        block_out_channels=tuple(model.channels * m for m in model.multipliers),
        layers_per_block=model.num_res_blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=1,
        dropout=model.dropout,
        attention_head_dim=None,
        num_class_embeds=num_classes,
    )
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = default_groups(module.num_channels)
    return net


def _names(model: UNet) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs of (their module's name, our path), for every module that holds parameters."""

    def block(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            yield f"{theirs}.{name}", (ours, name)
        yield f"{theirs}.time_emb_proj", (ours, "time")
        yield f"{theirs}.conv_shortcut", (ours, "shortcut")

    def attention(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield f"{theirs}.group_norm", (ours, "norm")
        for name, our_name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            yield f"{theirs}.{name}", (ours, our_name)
        yield f"{theirs}.to_out.0", (ours, "out")

    yield "time_embedding.linear_1", ("time1",)
    yield "time_embedding.linear_2", ("time2",)
    yield "class_embedding", ("condition",)
    yield "conv_in", ("conv_in",)
    yield "conv_norm_out", ("norm_out",)
    yield "conv_out", ("conv_out",)
    yield from block("mid_block.resnets.0", "mid_block0")
    yield from block("mid_block.resnets.1", "mid_block1")
    yield from attention("mid_block.attentions.0", "mid_attention")
    last = len(model.multipliers) - 1
    for level in range(last + 1):
        down, up = f"down_blocks.{level}", f"up_blocks.{last - level}"
        for i in range(model.num_res_blocks + 1):
            yield from block(f"{down}.resnets.{i}", f"down{level}_block{i}")
            yield from block(f"{up}.resnets.{i}", f"up{level}_block{i}")
            yield from attention(f"{down}.attentions.{i}", f"down{level}_attention{i}")
            yield from attention(f"{up}.attentions.{i}", f"up{level}_attention{i}")
        yield f"{down}.downsamplers.0.conv", (f"down{level}_downsample", "conv")
        yield f"{up}.upsamplers.0.conv", (f"up{level}_upsample", "conv")


def to_params(model: UNet, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Carries a PyTorch state (or gradients, by the same names) into our parameter tree.

    Args:
        model: Our network, from which `build` made theirs.
        state: Tensors by name, as `state_dict()` gives them.

    Returns:
        The tree under "params" of `model.init`, NumPy float32.

    Raises:
        ValueError: naming the tensors that have no place in ours.
    """
    params: dict[str, Any] = {}
    left = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    for theirs, path in _names(model):
        if f"{theirs}.weight" not in left:
            continue
        weight, bias = left.pop(f"{theirs}.weight"), left.pop(f"{theirs}.bias", None)
        node = params
        for part in path:
            node = node.setdefault(part, {})
        if bias is None:
            node["kernel"] = weight  # the row of a class is what a one-hot vector picks
        elif weight.ndim == 1:
            node.update(scale=weight, bias=bias)
        elif weight.ndim == 2:
            node.update(kernel=weight.T, bias=bias)
        else:
            node.update(kernel=np.transpose(weight, (2, 3, 1, 0)), bias=bias)
    if left:
        raise ValueError(f"state holds tensors that the UNet has no place for: {sorted(left)}")
    return params
