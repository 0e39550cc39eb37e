"""Training of a diffusion transformer on latents beside PyTorch.

    python -m experiments.benchmarks.dit [--size tiny|small] [--batch 4] [--repeats 5]

`small` is DiT-S/2 on latents of 32x32x4, without conditions. The peer is the independent definition
of `dit_reference`, in the same process, interleaved, medians. A training step is loss, gradient,
Adam and average, as in `jaxgen.training.step`; each turn takes two, ours in one dispatch of the
loop that the package runs them in.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgen.families.diffusion import diffusion
from jaxgen.models.dit import DiT, dit_s
from jaxgen.noise.chain import chain, linear_betas
from jaxgen.training.averages import constant
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

from .dit_reference import TorchDiT
from .harness import first_call, interleaved, machine, print_table
from .torch_peer import TorchSetup

CHAIN = chain(linear_betas(1000))
TRAIN_STEPS = 2  # a turn
SIZES = {"tiny": DiT(width=64, depth=2, num_heads=4), "small": dit_s()}
SHAPE = (32, 32, 4)


def jax_side(model: DiT, batch: int) -> Callable[[], Any]:
    """Our training steps, in the compiled loop."""
    family = diffusion(model, CHAIN, adam(1e-4), image_shape=SHAPE)
    state, run = prepare_fit(
        family,
        {"image": np.random.default_rng(0).normal(size=(batch, *SHAPE)).astype(np.float32)},
        averages={"ema": constant(0.9999)},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    box = [state]

    def train() -> Any:
        box[0], *report = run(box[0], TRAIN_STEPS)
        return report

    return train


def torch_side(model: DiT, batch: int, setup: TorchSetup) -> Callable[[], None]:
    """The same in PyTorch."""
    height, width, channels = SHAPE
    net = setup.network(TorchDiT(model, height, channels))
    parameters = list(net.parameters())
    x0 = setup.images(torch.randn(batch, channels, height, width))
    alphas = torch.as_tensor(np.asarray(CHAIN.alphas_cumprod)).to(setup.device)
    optimizer = setup.adam(net, 1e-4)
    average = [p.detach().clone() for p in parameters]

    def step() -> None:
        t = torch.randint(0, 1000, (batch,), device=setup.device)
        eps, a = torch.randn_like(x0), alphas[t].reshape(-1, 1, 1, 1)
        with setup.autocast():
            predicted = net(a.sqrt() * x0 + (1 - a).sqrt() * eps, t).float()
        loss = (predicted - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)

    def train() -> None:
        for _ in range(TRAIN_STEPS):
            step()
        setup.wait()

    return train


def measure(
    model: DiT, name: str, batch: int, setup: TorchSetup, repeats: int = 5
) -> dict[str, Any]:
    """Times of a training step, ours in the peer's precision.

    Args:
        model: Network.
        name: Name of the size, for the row.
        batch: Number of latents in a step.
        setup: How PyTorch runs.
        repeats: Number of timed rounds.

    Returns:
        `rows` (label -> side -> seconds), and the seconds of our first call.
    """
    train = jax_side(model.clone(dtype=jnp.dtype(setup.precision)), batch)
    sides = {"torch": torch_side(model, batch, setup), "jaxgen": train}
    compiled = first_call(train)
    times = interleaved(sides, repeats, warmup=1)
    row = {side: seconds / TRAIN_STEPS for side, seconds in times.items()}
    return {"rows": {f"train step, {name}, batch {batch}": row}, "compiled": compiled}


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="Size to time.")
    parser.add_argument("--batch", type=int, default=4, help="Number of latents in a step.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    setup = TorchSetup()
    print(f"{machine()}; {setup}")
    model = SIZES[options.size]
    result = measure(model, options.size, options.batch, setup, options.repeats)
    print_table(result["rows"], "torch")
    (row,) = result["rows"].values()
    for side, seconds in row.items():
        print(f"{side}: {options.batch / seconds:.4g} latents/s trained")
    print(f"jaxgen's training step compiled in {result['compiled']:.1f} s")


if __name__ == "__main__":
    main()
