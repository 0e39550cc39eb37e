"""The extractors' networks in PyTorch, written apart from ours: for parity tests and benchmarks.

Module names are those of the published weights, so a `state_dict` of these is read by
`jaxgen.metrics.inception` and `jaxgen.metrics.lite0`. Needs the `parity` extra.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(self, channels: int, features: int, kernel: Any = 1, **options: Any):
        super().__init__()
        self.conv = nn.Conv2d(channels, features, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(features, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Branches(nn.Module):
    """Chains of named layers from one input, joined by channels.

    `chains` holds for each branch (pool or None, layer, layer...), a layer being (name, features,
    kernel, options), or a list of two such that split the branch's end.
    """

    def __init__(self, channels: int, chains: list[tuple]):
        super().__init__()
        self.plan: list[tuple[Any, list[Any]]] = []
        for pool, *layers in chains:
            names: list[Any] = []
            width = channels
            for layer in layers:
                ends = layer if isinstance(layer, list) else [layer]
                for name, features, kernel, options in ends:
                    setattr(self, f"branch{name}", ConvNormRelu(width, features, kernel, **options))
                names.append([f"branch{end[0]}" for end in ends])
                width = ends[0][1]
            self.plan.append((pool, names))

    def forward(self, x: Tensor) -> Tensor:
        joined = []
        for pool, names in self.plan:
            outputs = [x if pool is None else pool(x)]
            for ends in names:
                outputs = [getattr(self, end)(outputs[0]) for end in ends]
            joined += outputs
        return torch.cat(joined, 1)


def _padded(name: str, features: int, height: int, width: int) -> tuple:
    return name, features, (height, width), {"padding": (height // 2, width // 2)}


def _one(name: str, features: int) -> tuple:
    return name, features, 1, {}


def _halving(name: str, features: int) -> tuple:
    return name, features, 3, {"stride": 2}


def _halving_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def _same_max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def _block_a(channels: int, pooled: int) -> Branches:
    double = [_one("3x3dbl_1", 64), _padded("3x3dbl_2", 96, 3, 3), _padded("3x3dbl_3", 96, 3, 3)]
    return Branches(
        channels,
        [
            (None, _one("1x1", 64)),
            (None, _one("5x5_1", 48), _padded("5x5_2", 64, 5, 5)),
            (None, *double),
            (average, _one("_pool", pooled)),
        ],
    )


def _block_b(channels: int) -> Branches:
    double = [_one("3x3dbl_1", 64), _padded("3x3dbl_2", 96, 3, 3), _halving("3x3dbl_3", 96)]
    return Branches(channels, [(None, _halving("3x3", 384)), (None, *double), (_halving_pool,)])


def _block_c(channels: int, c: int) -> Branches:
    double = [
        _one("7x7dbl_1", c),
        _padded("7x7dbl_2", c, 7, 1),
        _padded("7x7dbl_3", c, 1, 7),
        _padded("7x7dbl_4", c, 7, 1),
        _padded("7x7dbl_5", 192, 1, 7),
    ]
    seven = [_one("7x7_1", c), _padded("7x7_2", c, 1, 7), _padded("7x7_3", 192, 7, 1)]
    chains = [(None, _one("1x1", 192)), (None, *seven), (None, *double)]
    return Branches(channels, [*chains, (average, _one("_pool", 192))])


def _block_d(channels: int) -> Branches:
    seven = [
        _one("7x7x3_1", 192),
        _padded("7x7x3_2", 192, 1, 7),
        _padded("7x7x3_3", 192, 7, 1),
        _halving("7x7x3_4", 192),
    ]
    three = [_one("3x3_1", 192), _halving("3x3_2", 320)]
    return Branches(channels, [(None, *three), (None, *seven), (_halving_pool,)])


def _block_e(channels: int, pool: Any) -> Branches:
    three = [
        _one("3x3_1", 384),
        [_padded("3x3_2a", 384, 1, 3), _padded("3x3_2b", 384, 3, 1)],
    ]
    double = [
        _one("3x3dbl_1", 448),
        _padded("3x3dbl_2", 384, 3, 3),
        [_padded("3x3dbl_3a", 384, 1, 3), _padded("3x3dbl_3b", 384, 3, 1)],
    ]
    chains = [(None, _one("1x1", 320)), (None, *three), (None, *double)]
    return Branches(channels, [*chains, (pool, _one("_pool", 192))])


class TorchInception(nn.Module):
    """Inception-v3 as the FID uses it: images [N, 3, 299, 299] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormRelu(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormRelu(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormRelu(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormRelu(64, 80)
        self.Conv2d_4a_3x3 = ConvNormRelu(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, average)
        self.Mixed_7c = _block_e(2048, _same_max)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2))
        x = F.max_pool2d(self.Conv2d_4a_3x3(x), 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c"):
            x = getattr(self, f"Mixed_{name}")(x)
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7]
        for name in ("6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        features = x.mean((2, 3))
        return {
            "features": features,
            "logits": features @ self.fc.weight.T,
            "spatial": spatial.permute(0, 2, 3, 1).flatten(1),
        }


def resize_tensorflow(x: Tensor, size: int = 299) -> Tensor:
    """Bilinear as TensorFlow 1 did it, pixel i at i * scale: [N, C, H, W] floats."""
    for axis in (2, 3):
        at = torch.arange(size, dtype=torch.float32) * torch.tensor(x.shape[axis] / size)
        low = at.long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        shape = [size if a == axis else 1 for a in range(4)]
        mix = (at - low).reshape(shape)
        a, b = x.index_select(axis, low), x.index_select(axis, high)
        x = a + (b - a) * mix
    return x


class SamePadding(nn.Conv2d):
    """A convolution padded as TensorFlow pads `SAME`: what is odd goes to the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (3, 2):
            n, k, s = x.shape[axis], self.kernel_size[axis - 2], self.stride[axis - 2]
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class InvertedBottleneck(nn.Module):
    """Expand by 1x1, depthwise, project by 1x1; added to the input where the shapes agree."""

    def __init__(self, channels: int, features: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = channels * expand
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expand > 1:
            parts["_expand_conv"] = nn.Conv2d(channels, wide, 1, bias=False)
            parts["_bn0"] = nn.BatchNorm2d(wide, eps=1e-3)
            parts["relu0"] = nn.ReLU6()
        parts["_depthwise_conv"] = SamePadding(wide, wide, kernel, stride, groups=wide, bias=False)
        parts["_bn1"] = nn.BatchNorm2d(wide, eps=1e-3)
        parts["relu1"] = nn.ReLU6()
        parts["_project_conv"] = nn.Conv2d(wide, features, 1, bias=False)
        parts["_bn2"] = nn.BatchNorm2d(features, eps=1e-3)
        for name, part in parts.items():
            self.add_module(name, part)
        self.skip = stride == 1 and channels == features

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for part in self.children():
            y = part(y)
        return x + y if self.skip else y


class TorchLite0(nn.Module):
    """EfficientNet-Lite0: images [N, 3, 224, 224]."""

    # (repeats, kernel, stride, expansion, features)
    STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadding(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for repeats, kernel, stride, expand, features in self.STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedBottleneck(channels, features, kernel, step, expand))
                channels = features
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return {"features": features, "logits": self._fc(features)}


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random weights and batch statistics, under which activations keep a size."""
    generator = torch.Generator().manual_seed(seed)
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            nn.init.normal_(part.weight, 0, (2 / fan_in) ** 0.5, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.normal_(part.bias, 0, 0.1, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.8, 1.2, generator=generator)
            nn.init.normal_(part.bias, 0, 0.1, generator=generator)
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, 0, 0.1, generator=generator)
            nn.init.uniform_(part.running_var, 0.8, 1.2, generator=generator)
    return net.eval()
