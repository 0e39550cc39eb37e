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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from jaxgen.families.gan import gan
from jaxgen.families.gan_players import GENERATOR
from jaxgen.models import dcgan, resnet_gan
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.strategies import make_strategy

from .harness import first_call, interleaved, machine, print_table
from .torch_peer import TorchSetup

STEPS = 4  # a turn
REPEATS = {"dcgan": 1, "sngan": 5}


class Size(NamedTuple):
    """Images of one discriminator update, and channels of the networks."""

    batch: int
    width: int = 64


SIZES = {"dcgan": Size(32), "sngan": Size(16)}
PAPER = {"dcgan": Size(128), "sngan": Size(64, 128)}


def jax_side(model: str, size: Size, precision: str):
    """Our iteration, in the compiled loop."""
    dtype = jnp.dtype(precision)
    if model == "dcgan":
        side, loss = 64, "non_saturating"
        networks: tuple[Any, Any] = (
            dcgan.Generator(64, 3, size.width, dtype=dtype),
            dcgan.Discriminator(size.width, dtype=dtype),
        )
    else:
        side, loss = 32, "hinge"
        networks = (
            resnet_gan.Generator(channels=size.width, dtype=dtype),
            resnet_gan.Discriminator(size.width, dtype=dtype),
        )
    repeats = REPEATS[model]
    adam = optax.adam(2e-4, b1=0.5)
    family = gan(*networks, adam, adam, loss=loss, discriminator_repeats=repeats)
    shape = (size.batch * repeats, side, side, 3)
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


def torch_dcgan(width: int):
    """The pair of PyTorch's examples."""
    up: list[nn.Module] = []
    widths = [100, 8 * width, 4 * width, 2 * width, width]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        stride = (1, 0) if i == 0 else (2, 1)
        up += [nn.ConvTranspose2d(a, b, 4, *stride, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
    generator = nn.Sequential(
        Reshape(100, 1, 1), *up, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()
    )
    down: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for a, b in itertools.pairwise(reversed(widths[1:])):
        down += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
    return generator, nn.Sequential(*down, nn.Conv2d(8 * width, 1, 4, bias=False), nn.Flatten(0))


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


def torch_sngan(width: int):
    """The residual pair."""
    generator = nn.Sequential(
        nn.Linear(128, 16 * width),
        Reshape(width, 4, 4),
        *(Up(width) for _ in range(3)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 3, 3, padding=1),
        nn.Tanh(),
    )
    return generator, Judge(width)


def torch_side(model: str, size: Size, setup: TorchSetup):
    """The same iteration in PyTorch."""
    build = torch_dcgan if model == "dcgan" else torch_sngan
    generator, judge = (setup.network(net) for net in build(size.width))
    optimizers = [setup.adam(net, 2e-4, betas=(0.5, 0.999)) for net in (generator, judge)]
    average = [p.detach().clone() for p in generator.parameters()]
    latent, side = (100, 64) if model == "dcgan" else (128, 32)
    images = [
        setup.images(torch.rand(size.batch, 3, side, side) * 2 - 1) for _ in range(REPEATS[model])
    ]
    softplus, relu = nn.functional.softplus, torch.relu

    def make():
        with setup.autocast():
            return generator(torch.randn(size.batch, latent, device=setup.device))

    def verdicts(x):
        with setup.autocast():
            return judge(x).float()

    def judged(real, fake):
        if model == "dcgan":
            return (softplus(-verdicts(real)) + softplus(verdicts(fake))).mean()
        r, f = verdicts(torch.cat([real, fake])).chunk(2)
        return (relu(1 - r) + relu(1 + f)).mean()

    def train():
        for _ in range(STEPS):
            for real in images:
                fake = make()
                optimizers[1].zero_grad()
                judged(real, fake.detach()).backward()
                optimizers[1].step()
            if model == "sngan":
                fake = make()
            logits = verdicts(fake)
            optimizers[0].zero_grad()
            (softplus(-logits) if model == "dcgan" else -logits).mean().backward()
            optimizers[0].step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(generator.parameters()), 1e-3)
        setup.wait()

    return train


def measure(model: str, size: Size, setup: TorchSetup, repeats: int = 5) -> dict[str, Any]:
    """Times of an iteration, ours in the peer's precision.

    Args:
        model: Name of the pair.
        size: Images and channels.
        setup: How PyTorch runs.
        repeats: Number of timed rounds.

    Returns:
        `rows` (label -> side -> seconds), `batch`: the images that the discriminator sees, and the
        seconds of our first call.
    """
    ours = jax_side(model, size, setup.precision)
    compiled = first_call(ours)
    times = interleaved(
        {"torch": torch_side(model, size, setup), "jaxgen": ours}, repeats, warmup=1
    )
    row = {name: seconds / STEPS for name, seconds in times.items()}
    label = f"{model}, {REPEATS[model]} x {size.batch} images, {size.width} channels"
    return {"rows": {label: row}, "batch": size.batch * REPEATS[model], "compiled": compiled}


def main() -> None:
    """Print one row a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SIZES), action="append", help="Model to time.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    setup = TorchSetup()
    print(f"{machine()}; {setup}")
    rows: dict[str, dict[str, float]] = {}
    for model in options.model or sorted(SIZES):
        result = measure(model, SIZES[model], setup, options.repeats)
        print(f"{model}: compiled in {result['compiled']:.1f} s")
        (row,) = result["rows"].values()
        rates = (f"{name} {result['batch'] / seconds:.4g}" for name, seconds in row.items())
        print(f"{model}: images/s: {', '.join(rates)}")
        rows |= result["rows"]
    print_table(rows, "torch")


if __name__ == "__main__":
    main()
