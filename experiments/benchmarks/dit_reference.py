"""An independent diffusion transformer in PyTorch, of the shape of a `jaxgen.models.dit.DiT`.

`TorchDiT` is written after the paper (Peebles & Xie 2023), as PyTorch's users would: one map to
queries, keys and values, fused attention. `to_params` carries its weights into ours. The parity
test and the benchmark share both. Needs the `parity` extra.
"""

import math
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxgen.models.dit import DiT


class TorchBlock(nn.Module):
    """Attention and MLP, modulated and gated."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Makes the layers, freshly initialized by PyTorch's defaults."""
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.out = nn.Linear(width, hidden * width), nn.Linear(hidden * width, width)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """The sequence after the block, modulated by `silu(time + condition)`."""
        batch, length, width = x.shape
        b1, s1, g1, b2, s2, g2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x, (width,), eps=1e-6) * (1 + s1) + b1
        split = self.qkv(h).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        x = x + g1 * self.attention_out(h.reshape(batch, length, width))
        h = F.layer_norm(x, (width,), eps=1e-6) * (1 + s2) + b2
        return x + g2 * self.out(F.gelu(self.hidden(h), approximate="tanh"))


class TorchDiT(nn.Module):
    """The whole network, on images [N, C, H, W], with classes or without."""

    def __init__(
        self, model: DiT, size: int, image_channels: int, num_classes: int | None = None
    ) -> None:
        """Makes the network of the shape of ours, for square images of that size."""
        super().__init__()
        width, patch = model.width, model.patch_size
        self.patch, self.out_channels = patch, model.out_channels or image_channels
        self.patches = nn.Conv2d(image_channels, width, patch, patch)
        self.time1, self.time2 = nn.Linear(256, width), nn.Linear(width, width)
        self.classes = None if num_classes is None else nn.Embedding(num_classes, width)
        self.blocks = nn.ModuleList(
            TorchBlock(width, model.num_heads, model.hidden) for _ in range(model.depth)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, patch * patch * self.out_channels)
        self.register_buffer("positions", _positions(size // patch, width))

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the network predicts, [N, C, H, W]."""
        batch, _, height, width = x.shape
        embedding = self.time2(F.silu(self.time1(_time_features(t))))
        if label is not None:
            assert self.classes is not None
            embedding = embedding + self.classes(label)
        embedding = F.silu(embedding)
        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        h = self.last(F.layer_norm(h, (h.shape[-1],), eps=1e-6) * (1 + scale) + shift)
        rows, columns, patch = height // self.patch, width // self.patch, self.patch
        h = h.view(batch, rows, columns, patch, patch, self.out_channels)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.out_channels, height, width)


def _time_features(t: torch.Tensor) -> torch.Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, device=t.device) / 128)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _positions(side: int, width: int) -> torch.Tensor:
    """One place after another, as the paper's text has it: sines and cosines of column, of row."""
    quarter = width // 4
    table = torch.zeros(side, side, width, dtype=torch.float64)
    for i in range(quarter):
        angles = torch.arange(side, dtype=torch.float64) / 10_000 ** (i / quarter)
        table[:, :, i], table[:, :, quarter + i] = angles.sin()[None], angles.cos()[None]
        table[:, :, 2 * quarter + i] = angles.sin()[:, None]
        table[:, :, 3 * quarter + i] = angles.cos()[:, None]
    return table.view(side * side, width).float()


def to_params(net: TorchDiT) -> dict[str, Any]:
    """Carries the network's weights into our parameter tree.

    Args:
        net: Network.

    Returns:
        The tree under "params" of `DiT.init`, NumPy float32.
    """

    def dense(layer: Any) -> dict[str, np.ndarray]:
        return {"kernel": _array(layer.weight).T, "bias": _array(layer.bias)}

    def block(layer: Any) -> dict[str, Any]:
        names = ("query", "key", "value")
        joint = dense(layer.qkv)
        parts = [np.split(joint[kind], 3, axis=-1) for kind in ("kernel", "bias")]
        maps = {n: {"kernel": k, "bias": b} for n, k, b in zip(names, *parts, strict=True)}
        return {
            "modulation": dense(layer.modulation),
            "attention": {**maps, "out": dense(layer.attention_out)},
            "hidden": dense(layer.hidden),
            "out": dense(layer.out),
        }

    patches: Any = net.patches
    kernel = np.transpose(_array(patches.weight), (2, 3, 1, 0))
    params = {
        "patches": {
            "kernel": kernel.reshape(-1, kernel.shape[-1]),
            "bias": _array(patches.bias),
        },
        **{name: dense(getattr(net, name)) for name in ("time1", "time2", "modulation", "last")},
        "blocks": jax.tree.map(lambda *each: np.stack(each), *map(block, net.blocks)),
    }
    if net.classes is not None:
        params["condition"] = {"kernel": _array(net.classes.weight)}
    return params


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
