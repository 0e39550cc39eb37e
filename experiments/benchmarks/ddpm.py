"""Training and sampling of the DDPM U-Net beside PyTorch.

    python -m experiments.benchmarks.ddpm [--size tiny|small|paper] [--repeats 5]

The peer is diffusers' `UNet2DModel` of the same shape, in the same process, interleaved, medians.
A training step is loss, gradient, clipping, Adam and average, as in `jaxgen.training.step`; each
turn takes eight, ours in one dispatch of the loop that the package runs them in. Sampling is DDIM
with 50 steps, in both by diffusers' formula.
"""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgen.core import Variables
from jaxgen.families.denoising import NAME
from jaxgen.families.diffusion import Sampler, diffusion
from jaxgen.models.unet import UNet
from jaxgen.noise.chain import chain, linear_betas
from jaxgen.noise.spacing import leading
from jaxgen.sampling.solvers import ddim
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

from .harness import first_call, interleaved, jit, machine, print_table
from .torch_peer import TorchSetup
from .unet_reference import build, to_params

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
    draw = jit(lambda key: sample(variables, key, size.samples))
    return train, lambda: draw(jax.random.key(0))


def torch_sides(size: Size, net, setup: TorchSetup):
    """The same in PyTorch."""
    height, width, channels = size.image
    net = setup.network(net)
    parameters = list(net.parameters())
    x0 = setup.images(torch.rand(size.batch, channels, height, width) * 2 - 1)
    alphas = torch.as_tensor(np.asarray(CHAIN.alphas_cumprod)).to(setup.device)
    one = torch.ones((), device=setup.device)
    optimizer = setup.adam(net, 2e-4)
    average = [p.detach().clone() for p in parameters]

    def predict(x, t):
        with setup.autocast():
            return net(x, t).sample.float()

    def train():
        for _ in range(TRAIN_STEPS):
            step()
        setup.wait()

    def step():
        net.train()
        t = torch.randint(0, 1000, (size.batch,), device=setup.device)
        eps = torch.randn_like(x0)
        a = alphas[t].reshape(-1, 1, 1, 1)
        loss = (predict(a.sqrt() * x0 + (1 - a).sqrt() * eps, t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)

    @torch.no_grad()  # what torch.compile takes; as quick as inference_mode
    def sample():
        net.eval()
        x = setup.images(torch.randn(size.samples, channels, height, width))
        steps = [i * 1000 // DDIM_STEPS for i in range(DDIM_STEPS)]
        for i in reversed(range(DDIM_STEPS)):
            a, b = alphas[steps[i]], alphas[steps[i - 1]] if i else one
            # A tensor, not a number: torch.compile would compile each step anew.
            eps = predict(x, torch.full((size.samples,), steps[i], device=setup.device))
            x0_hat = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
            eps = (x - a.sqrt() * x0_hat) / (1 - a).sqrt()
            x = b.sqrt() * x0_hat + (1 - b).sqrt() * eps
        setup.wait()

    return train, sample


def measure(size: Size, name: str, setup: TorchSetup, repeats: int = 5) -> dict[str, Any]:
    """Times of a training step and of a batch of samples, ours in the peer's precision.

    Args:
        size: Networks and batches.
        name: Name of the size, for the rows.
        setup: How PyTorch runs.
        repeats: Number of timed rounds.

    Returns:
        `rows` (label -> side -> seconds), `batch`, `samples`, and the seconds of our first call.
    """
    height, _, channels = size.image
    net = build(size.model, height, channels)
    size = replace(size, model=size.model.clone(dtype=jnp.dtype(setup.precision)))
    train, sample = jax_sides(size, net)
    torch_train, torch_sample = torch_sides(size, net, setup)
    compiled = first_call(train)
    times = interleaved({"torch": torch_train, "jaxgen": train}, repeats, warmup=1)
    rows = {
        f"train step, {name}, batch {size.batch}": {
            side: seconds / TRAIN_STEPS for side, seconds in times.items()
        },
        f"DDIM-{DDIM_STEPS}, {name}, batch {size.samples}": interleaved(
            {"torch": torch_sample, "jaxgen": sample}, repeats, warmup=1
        ),
    }
    return {"rows": rows, "batch": size.batch, "samples": size.samples, "compiled": compiled}


def main() -> None:
    """Print one row for training and one for sampling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny", help="Size to time.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    setup = TorchSetup()
    print(f"{machine()}; {setup}")
    result = measure(SIZES[options.size], options.size, setup, options.repeats)
    print_table(result["rows"], "torch")
    train_row, sample_row = result["rows"].values()
    for side in ("torch", "jaxgen"):
        print(
            f"{side}: {result['batch'] / train_row[side]:.4g} images/s trained, "
            f"{result['samples'] / sample_row[side]:.4g} images/s sampled"
        )
    print(f"jaxgen's training step compiled in {result['compiled']:.1f} s")


if __name__ == "__main__":
    main()
