"""PixelCNN++ (Salimans et al. 2017) in plain PyTorch: what `benchmarks.pixelcnn` compares with."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def concat_elu(x):
    """ELU of x and of -x, side by side."""
    return F.elu(torch.cat([x, -x], dim=1))


class Shifted(nn.Module):
    """A convolution over the rows above; `right` sees no column beyond its own."""

    def __init__(self, channels, features, size, right, stride=1):
        super().__init__()
        rows, columns = size
        side = columns - 1 if right else columns // 2
        self.pad = (side, 0 if right else side, rows - 1, 0)
        self.conv = weight_norm(nn.Conv2d(channels, features, size, stride))

    def forward(self, x):
        return self.conv(F.pad(x, self.pad))


class Doubled(nn.Module):
    """A transposed convolution of stride 2."""

    def __init__(self, features, right):
        super().__init__()
        self.right = right
        self.conv = weight_norm(
            nn.ConvTranspose2d(features, features, (2, 2 if right else 3), 2), dim=1
        )

    def forward(self, x):
        y, width = self.conv(x), 2 * x.shape[3]
        return y if self.right else y[..., 1 : width + 1]


class Block(nn.Module):
    """A gated residual block."""

    def __init__(self, features, right, guides, dropout):
        super().__init__()
        size = (2, 2) if right else (2, 3)
        self.conv1 = Shifted(2 * features, features, size, right)
        self.guide = weight_norm(nn.Conv2d(2 * guides, features, 1)) if guides else None
        self.conv2 = Shifted(2 * features, 2 * features, size, right)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, guide=None):
        h = self.conv1(concat_elu(x))
        if self.guide is not None:
            h = h + self.guide(concat_elu(guide))
        value, gate = self.conv2(self.dropout(concat_elu(h))).chunk(2, dim=1)
        return x + value * torch.sigmoid(gate)


class Stream(nn.Module):
    """One stream, down and up."""

    def __init__(self, features, blocks, levels, right, dropout):
        super().__init__()
        above, size = features if right else 0, (2, 2) if right else (2, 3)

        def block(guides):
            return Block(features, right, guides, dropout)

        self.down = nn.ModuleList(
            nn.ModuleList(block(above) for _ in range(blocks)) for _ in range(levels)
        )
        ups = [blocks + 1] * (levels - 1) + [blocks]
        self.up = nn.ModuleList(
            nn.ModuleList(block(above + features) for _ in range(count)) for count in ups
        )
        self.halve = nn.ModuleList(
            Shifted(features, features, size, right, 2) for _ in range(levels - 1)
        )
        self.doubled = nn.ModuleList(Doubled(features, right) for _ in range(levels - 1))

    def forward(self, x, vertical=None):
        """The result, and the outputs of the blocks; `vertical` are those of the other stream."""
        vertical = iter(vertical or ())
        skips, outputs = [x], []

        def run(block, x, *more):
            first = next(vertical, None)
            guide = [*more] if first is None else [first, *more]
            x = block(x, torch.cat(guide, dim=1) if guide else None)
            outputs.append(x)
            return x

        for level, blocks in enumerate(self.down):
            for block in blocks.children():
                x = run(block, x)
                skips.append(x)
            if level < len(self.halve):
                x = self.halve[level](x)
                skips.append(x)
        x = skips.pop()
        ups = list(self.up)
        for level in reversed(range(len(ups))):
            for block in ups[level].children():
                x = run(block, x, skips.pop())
            if level:
                x = self.doubled[level - 1](x)
        return x, outputs


class PixelCNNPP(nn.Module):
    """The whole network, of images of one channel: `[B, 1, H, W]` to `[B, 3 M, H, W]`."""

    def __init__(self, features, blocks, levels, mixtures, dropout=0.5):
        super().__init__()
        self.vertical0 = Shifted(2, features, (2, 3), False)
        self.row0 = Shifted(2, features, (1, 3), False)
        self.column0 = Shifted(2, features, (2, 1), True)
        self.vertical = Stream(features, blocks, levels, False, dropout)
        self.horizontal = Stream(features, blocks, levels, True, dropout)
        self.head = weight_norm(nn.Conv2d(features, 3 * mixtures, 1))

    def forward(self, x):
        x = torch.cat([x, torch.ones_like(x)], dim=1)
        above, left = F.pad(x, (0, 0, 1, 0))[:, :, :-1], F.pad(x, (1, 0))[..., :-1]
        _, features = self.vertical(self.vertical0(above))
        h, _ = self.horizontal(self.row0(above) + self.column0(left), features)
        return self.head(F.elu(h))


def mixture_nats(params, x):
    """-log p of images `[B, 1, H, W]` of 256 values, summed over pixels."""
    logits, means, log_scales = params.chunk(3, dim=1)
    precision = torch.exp(-log_scales.clamp(min=-7))
    centred = x - means
    above, below = precision * (centred + 1 / 255), precision * (centred - 1 / 255)
    mass = torch.sigmoid(above) - torch.sigmoid(below)
    middle = precision * centred
    density = middle + precision.log() - 2 * F.softplus(middle) - math.log(127.5)
    inner = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    log_p = torch.where(
        x < -0.999,
        above - F.softplus(above),
        torch.where(x > 0.999, -F.softplus(below), inner),
    )
    return -torch.logsumexp(F.log_softmax(logits, dim=1) + log_p, dim=1).sum((1, 2))


def mixture_sample(params):
    """One draw of every pixel: `[B, 1, H, W]`."""
    logits, means, log_scales = params.chunk(3, dim=1)
    gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-5, 1 - 1e-5)))
    chosen = (logits + gumbel).argmax(dim=1, keepdim=True)
    mean, scale = means.gather(1, chosen), log_scales.clamp(min=-7).gather(1, chosen).exp()
    u = torch.rand_like(mean).clamp(1e-5, 1 - 1e-5)
    return (mean + scale * (u.log() - (-u).log1p())).clamp(-1, 1)
