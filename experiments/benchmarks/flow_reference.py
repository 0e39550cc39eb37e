"""Multiscale flows of normflows, the peers of `experiments.benchmarks.flow`; needs that package."""

from typing import Any

import normflows as nf
import torch
from torch import nn

from jaxgen.models.blocks.layers import default_groups


def glow(
    image: tuple[int, int, int], levels: int, steps: int, channels: int, bound: float
) -> nn.Module:
    """normflows' Glow blocks, with actnorm in their networks, behind a logit."""
    height, width, colors = image
    bases, flows, merges = [], [], []
    for i in range(levels):  # from the latents to the image
        down, inner = 2 ** (levels - i), colors * 2 ** (levels + 1 - i)
        blocks = [nf.flows.GlowBlock(inner, channels, net_actnorm=True) for _ in range(steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        if i:
            merges.append(nf.flows.Merge())
        kept = inner // 2 if i else inner
        bases.append(nf.distributions.GlowBase((kept, height // down, width // down)))
    return nf.MultiscaleFlow(bases, flows, merges, nf.transforms.Logit(0.05), class_cond=False)


def realnvp(
    image: tuple[int, int, int], levels: int, steps: int, channels: int, bound: float
) -> nn.Module:
    """Two scales as `jaxgen.models.realnvp.realnvp_image`: residual networks of one block."""
    height, width, colors = image
    assert levels == 2

    def checkerboards(number: int, side: int, inner: int, wide: int) -> list[Any]:
        layers: list[Any] = []
        for i in range(number):
            net = ResNet(inner, wide, 2 * inner)
            layers += [Checkerboard(net, height // side, width // side, i % 2, bound)]
            layers += [nf.flows.ActNorm((inner, 1, 1))]
        return layers

    def halves(number: int, inner: int, wide: int) -> list[Any]:
        layers: list[Any] = []
        for i in range(number):
            net = Interleaved(ResNet(inner // 2, wide, inner))
            mode = "channel_inv" if i % 2 else "channel"
            layers += [nf.flows.AffineCouplingBlock(net, True, "exp", mode)]
            layers += [nf.flows.ActNorm((inner, 1, 1))]
        return layers

    half = channels // 2
    first = [
        *halves(3, 4 * colors, channels),
        nf.flows.Squeeze(),
        *checkerboards(3, 1, colors, half),
    ]
    last = checkerboards(4, 2, 2 * colors, channels)
    shape = (2 * colors, height // 2, width // 2)
    bases = [nf.distributions.DiagGaussian(shape, trainable=False) for _ in range(2)]
    logit = nf.transforms.Logit(0.05)
    return nf.MultiscaleFlow(bases, [last, first], [nf.flows.Merge()], logit, class_cond=False)


class ResNet(nn.Module):
    """`jaxgen.models.bijectors.conditioners.ResNet` of one block."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(inputs, width, 3, padding=1),
            nn.Conv2d(width, outputs, 3, padding=1),
        )
        nn.init.zeros_(self.last.weight)
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        groups = default_groups(width)
        self.norms = nn.ModuleList([nn.GroupNorm(groups, width, 1e-6) for _ in range(3)])

    def forward(self, x):
        silu, (before, between, after) = nn.functional.silu, self.norms
        x = self.first(x)
        h = self.convs[0](silu(before(x)))
        x = x + self.convs[1](silu(between(h)))
        return self.last(silu(after(x)))


class Interleaved(nn.Module):
    """Shifts and log-scales in turn, as normflows' couplings take them."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        shift, log_scale = self.net(x).chunk(2, dim=1)
        return torch.stack([shift, log_scale], dim=2).flatten(1, 2)


class Checkerboard(nf.flows.Flow):
    """An affine coupling under a checkerboard of the image's own size (normflows packs it)."""

    def __init__(self, net: nn.Module, height: int, width: int, odd: int, bound: float):
        super().__init__()
        places = torch.arange(height)[:, None] + torch.arange(width)[None]
        self.register_buffer("mask", ((places + odd) % 2 == 0).float())
        self.net, self.bound = net, bound

    def _moves(self, x):
        shift, raw = self.net(x * self.mask).chunk(2, dim=1)
        moved = 1 - self.mask
        return moved * shift, moved * self.bound * torch.tanh(raw / self.bound)

    def forward(self, z):
        shift, log_scale = self._moves(z)
        return (z - shift) * torch.exp(-log_scale), -log_scale.flatten(1).sum(1)

    def inverse(self, z):
        shift, log_scale = self._moves(z)
        return z * torch.exp(log_scale) + shift, log_scale.flatten(1).sum(1)
