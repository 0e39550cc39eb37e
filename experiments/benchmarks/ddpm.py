"""Training and sampling of the DDPM U-Net beside PyTorch.

    python -m experiments.benchmarks.ddpm [--size tiny|small|paper] [--repeats 5]

The peer is diffusers' `UNet2DModel` of the same shape, in the same process, interleaved, medians.
A training step is loss, gradient, clipping, Adam and average, as in `jaxgen.training.step`; each
turn takes eight, ours in one dispatch of the loop that the package runs them in. Sampling is DDIM
with 50 steps, in both by diffusers' formula.
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmarks.harness import interleaved, machine, print_table
from experiments.benchmarks.unet_reference import build, to_params
from jaxgen.core import Variables
from jaxgen.families.diffusion import NAME, Sampler, diffusion
from jaxgen.models.unet import UNet
from jaxgen.noise.chain import chain, linear_betas
from jaxgen.noise.spacing import leading
from jaxgen.sampling.solvers import ddim
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

CHAIN = chain(linear_betas(1000))
DDIM_STEPS = 50
TRAIN_STEPS = 8  # a turn


@dataclass(frozen=True)
class Size:
    """A network, its images and its batches."""

    model: UNet
    image: tuple[int, int, int]
    batch: int
    samples: int


SIZES = {
    "tiny": Size(UNet(32, (1, 2), 1, (4,), 0.0), (8, 8, 1), 64, 64),
    "small": Size(UNet(64, (1, 2, 2, 2), 2, (16,), 0.1), (32, 32, 3), 8, 4),
    "paper": Size(UNet(), (32, 32, 3), 8, 1),
}


def jax_sides(size: Size, net):
    """Our training step, in the compiled loop, and our sampler."""
    family = diffusion(
        size.model,
        CHAIN,
        adam(2e-4, warmup_steps=5000, clip_norm=1.0),
        image_shape=size.image,
        sampler=Sampler(ddim(), DDIM_STEPS, leading),
    )
    data = {"image": np.random.rand(size.batch, *size.image).astype(np.float32) * 2 - 1}
    state, run = prepare_fit(
        family,
        data,
        averages={"ema": warmed_up(0.9999)},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    box = [state]
    variables = Variables(
        {NAME: jax.tree.map(jnp.asarray, to_params(size.model, net.state_dict()))}
    )

    def train():
        box[0], *report = run(box[0], TRAIN_STEPS)
        return report

    sample: Any = family.sample
    draw = jax.jit(lambda key: sample(variables, key, size.samples))
    return train, lambda: draw(jax.random.key(0))


def torch_sides(size: Size, net):
    """The same in PyTorch, channels last where that is its faster layout."""
    height, width, channels = size.image
    x0 = torch.rand(size.batch, channels, height, width) * 2 - 1
    alphas = torch.as_tensor(np.asarray(CHAIN.alphas_cumprod))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    average = {k: v.detach().clone() for k, v in net.named_parameters()}

    def train():
        for _ in range(TRAIN_STEPS):
            step()

    def step():
        net.train()
        t = torch.randint(0, 1000, (size.batch,))
        eps = torch.randn_like(x0)
        a = alphas[t].reshape(-1, 1, 1, 1)
        loss = (net(a.sqrt() * x0 + (1 - a).sqrt() * eps, t).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            names = [k for k, _ in net.named_parameters()]
            torch._foreach_lerp_([average[k] for k in names], list(net.parameters()), 1e-4)

    @torch.inference_mode()
    def sample():
        net.eval()
        x = torch.randn(size.samples, channels, height, width)
        steps = [i * 1000 // DDIM_STEPS for i in range(DDIM_STEPS)]
        for i in reversed(range(DDIM_STEPS)):
            a, b = alphas[steps[i]], alphas[steps[i - 1]] if i else torch.tensor(1.0)
            eps = net(x, steps[i]).sample
            x0_hat = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
            eps = (x - a.sqrt() * x0_hat) / (1 - a).sqrt()
            x = b.sqrt() * x0_hat + (1 - b).sqrt() * eps

    return train, sample


def main() -> None:
    """Print one row for training and one for sampling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny", help="Size to time.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    size = SIZES[options.size]
    height, _, channels = size.image
    net = build(size.model, height, channels)
    torch_train, torch_sample = torch_sides(size, net)
    train, sample = jax_sides(size, net)
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    begin = time.perf_counter()
    jax.block_until_ready(train())
    compiled = time.perf_counter() - begin
    train_times = interleaved({"torch": torch_train, "jaxgen": train}, options.repeats, warmup=1)
    rows = {
        f"train step, {options.size}, batch {size.batch}": {
            name: seconds / TRAIN_STEPS for name, seconds in train_times.items()
        },
        f"DDIM-{DDIM_STEPS}, {options.size}, batch {size.samples}": interleaved(
            {"torch": torch_sample, "jaxgen": sample}, options.repeats, warmup=1
        ),
    }
    print_table(rows, "torch")
    (train_row, sample_row) = rows.values()
    for name in ("torch", "jaxgen"):
        print(
            f"{name}: {size.batch / train_row[name]:.4g} images/s trained, "
            f"{size.samples / sample_row[name]:.4g} images/s sampled"
        )
    print(f"jaxgen's training step compiled in {compiled:.1f} s")


if __name__ == "__main__":
    main()
