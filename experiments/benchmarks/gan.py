"""Full iterations of GAN training beside PyTorch.

    python -m experiments.benchmarks.gan [--model dcgan|sngan] [--repeats 5]

`dcgan` is the pair of PyTorch's own examples (64x64 pixels, 64 channels), one discriminator and one
generator update; its peer reuses the discriminator's fakes for the generator, as the example does,
where ours draws new ones. `sngan` is the residual pair with spectral normalization, five
discriminator updates and one generator update. Same process, interleaved, medians; images are those
that the discriminator sees.
"""

import argparse
import itertools
import time
from typing import Any

import jax
import numpy as np
import optax
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from experiments.benchmarks.harness import interleaved, machine, print_table
from jaxgen.families.gan import gan
from jaxgen.families.gan_players import GENERATOR
from jaxgen.models import dcgan, resnet_gan
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.strategies import make_strategy

STEPS = 4  # a turn
BATCH = {"dcgan": 32, "sngan": 16}  # of one discriminator update
REPEATS = {"dcgan": 1, "sngan": 5}
WIDTH = 64  # channels of the residual pair


def jax_side(model: str):
    """Our iteration, in the compiled loop."""
    if model == "dcgan":
        size, loss = 64, "non_saturating"
        networks: tuple[Any, Any] = dcgan.Generator(64, 3, 64), dcgan.Discriminator(64)
    else:
        size, loss = 32, "hinge"
        networks = resnet_gan.Generator(channels=WIDTH), resnet_gan.Discriminator(WIDTH)
    repeats = REPEATS[model]
    adam = optax.adam(2e-4, b1=0.5)
    family = gan(*networks, adam, adam, loss=loss, discriminator_repeats=repeats)
    shape = (BATCH[model] * repeats, size, size, 3)
    data = {"image": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    first, steps = prepare_fit(
        family,
        data,
        averages={"ema": warmed_up(0.9999, of=(GENERATOR,))},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    box = [first]

    def train():
        box[0], metrics, _, _ = steps(box[0], STEPS)
        return metrics

    return train


class Reshape(nn.Module):
    """Flat features to an image."""

    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.reshape(-1, *self.shape)


def torch_dcgan():
    """The pair of PyTorch's examples."""
    up: list[nn.Module] = []
    widths = [100, 512, 256, 128, 64]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        stride = (1, 0) if i == 0 else (2, 1)
        up += [nn.ConvTranspose2d(a, b, 4, *stride, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
    generator = nn.Sequential(
        Reshape(100, 1, 1), *up, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh()
    )
    down: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for a, b in ((64, 128), (128, 256), (256, 512)):
        down += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
    return generator, nn.Sequential(*down, nn.Conv2d(512, 1, 4, bias=False), nn.Flatten(0))


class Up(nn.Module):
    """A residual block that doubles the image."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x):
        y = nn.functional.interpolate(self.norms[0](x).relu(), scale_factor=2)
        y = self.convs[1](self.norms[1](self.convs[0](y)).relu())
        return y + nn.functional.interpolate(self.shortcut(x), scale_factor=2)


class Down(nn.Module):
    """A residual block that halves the image, or does not."""

    def __init__(self, channels: int, width: int, *, halves: bool, first: bool = False):
        super().__init__()
        self.convs = nn.ModuleList(
            [spectral_norm(nn.Conv2d(c, width, 3, padding=1)) for c in (channels, width)]
        )
        self.shortcut = spectral_norm(nn.Conv2d(channels, width, 1)) if halves else nn.Identity()
        self.halves, self.first = halves, first

    def forward(self, x):
        y = self.convs[1](self.convs[0](x if self.first else x.relu()).relu())
        if self.halves:
            y, x = (nn.functional.avg_pool2d(t, 2) for t in (y, x))
        return y + self.shortcut(x)


class Judge(nn.Module):
    """SNGAN's residual discriminator."""

    def __init__(self, width: int):
        super().__init__()
        self.blocks = nn.Sequential(
            Down(3, width, halves=True, first=True),
            Down(width, width, halves=True),
            Down(width, width, halves=False),
            Down(width, width, halves=False),
        )
        self.out = spectral_norm(nn.Linear(width, 1))

    def forward(self, x):
        return self.out(self.blocks(x).relu().sum(dim=(2, 3)))[:, 0]


def torch_sngan():
    """The residual pair."""
    generator = nn.Sequential(
        nn.Linear(128, 16 * WIDTH),
        Reshape(WIDTH, 4, 4),
        *(Up(WIDTH) for _ in range(3)),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 3, 3, padding=1),
        nn.Tanh(),
    )
    return generator, Judge(WIDTH)


def torch_side(model: str):
    """The same iteration in PyTorch."""
    generator, judge = torch_dcgan() if model == "dcgan" else torch_sngan()
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for net in (generator, judge)
    ]
    average = [p.detach().clone() for p in generator.parameters()]
    batch, latent = BATCH[model], 100 if model == "dcgan" else 128
    size = 64 if model == "dcgan" else 32
    images = torch.rand(REPEATS[model], batch, 3, size, size) * 2 - 1
    softplus, relu = nn.functional.softplus, torch.relu

    def judged(real, fake):
        if model == "dcgan":
            return (softplus(-judge(real)) + softplus(judge(fake))).mean()
        r, f = judge(torch.cat([real, fake])).chunk(2)
        return (relu(1 - r) + relu(1 + f)).mean()

    def train():
        for _ in range(STEPS):
            for real in images:
                fake = generator(torch.randn(batch, latent))
                optimizers[1].zero_grad()
                judged(real, fake.detach()).backward()
                optimizers[1].step()
            if model == "sngan":
                fake = generator(torch.randn(batch, latent))
            logits = judge(fake)
            optimizers[0].zero_grad()
            (softplus(-logits) if model == "dcgan" else -logits).mean().backward()
            optimizers[0].step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(generator.parameters()), 1e-3)

    return train


def main() -> None:
    """Print one row a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(BATCH), action="append", help="Model to time.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows = {}
    for model in options.model or sorted(BATCH):
        ours = jax_side(model)
        begin = time.perf_counter()
        jax.block_until_ready(ours())
        print(f"{model}: compiled in {time.perf_counter() - begin:.1f} s")
        times = interleaved({"torch": torch_side(model), "jaxgen": ours}, options.repeats, warmup=1)
        row = {name: seconds / STEPS for name, seconds in times.items()}
        images = BATCH[model] * REPEATS[model]
        rates = ", ".join(f"{name} {images / seconds:.4g}" for name, seconds in row.items())
        print(f"{model}: images/s: {rates}")
        rows[f"{model}, {REPEATS[model]} x {BATCH[model]} images"] = row
    print_table(rows, "torch")


if __name__ == "__main__":
    main()
