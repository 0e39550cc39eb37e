"""Training and sampling of PixelCNN++ beside PyTorch, and the cached sampler beside the naive one.

    python -m experiments.benchmarks.pixelcnn [--features 32] [--blocks 2] [--size 28] [--batch 16]

The peer is the same network in PyTorch (`pixelcnn_reference`), in the same process, interleaved,
medians. A training step is the loss of a mixture of logistics with dropout, Adam and the average of
the parameters, ours in the package's loop. The naive loops sample as the published code does: one
pass over the whole batch for each pixel. As every pass costs the same, `--passes` of them are timed
and the time of all H W stands for them; the cached sampler draws whole images.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgen.core import Variables
from jaxgen.families.autoregressive import autoregressive
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

from . import pixelcnn_reference as reference
from .harness import first_call, interleaved, jit, machine, print_table
from .torch_peer import TorchSetup

LEVELS, MIXTURES = 3, 10


class Size(NamedTuple):
    """The network and its batch of square gray images."""

    features: int = 32
    blocks: int = 2
    side: int = 28
    batch: int = 16


PAPER = Size(160, 5, 32, 64)


def jax_sides(size: Size, data: np.ndarray, precision: str):
    """Our training step, the cached sampler and one pass of the naive one."""
    network = PixelCNNPP(
        1, size.features, size.blocks, LEVELS, MIXTURES, dtype=jnp.dtype(precision)
    )
    family = autoregressive(
        network,
        adam(1e-3),
        image_shape=data.shape[1:],
        likelihood="mixture_of_logistics",
    )
    state, run = prepare_fit(
        family,
        {"image": data},
        averages={"ema": warmed_up(0.9999)},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    box, images = [state], jnp.asarray(data)
    variables = Variables(jax.tree.map(jnp.copy, state.params))  # training donates the state

    def train():
        box[0], *report = run(box[0], 1)
        return report

    sample: Any = family.sample
    cached = jit(lambda key: sample(variables, key, size.batch))
    apply: Any = jit(lambda x: network.apply({"params": variables.params["pixelcnn"]}, x))
    return train, lambda: cached(jax.random.key(0)), lambda: apply(images)


def torch_sides(size: Size, data: np.ndarray, setup: TorchSetup):
    """The same in PyTorch: a training step, and one pass of the naive sampler."""
    net = setup.network(reference.PixelCNNPP(size.features, size.blocks, LEVELS, MIXTURES))
    x = setup.images(torch.as_tensor(data).permute(0, 3, 1, 2).contiguous())
    optimizer = setup.adam(net, 1e-3)
    average = [p.detach().clone() for p in net.parameters()]

    def outputs(x):
        with setup.autocast():
            return net(x).float()

    def train():
        net.train()
        optimizer.zero_grad()
        reference.mixture_nats(outputs(x), x).mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net.parameters()), 1e-4)
        setup.wait()

    drawn = torch.zeros_like(x)

    @torch.no_grad()
    def one_pass():
        net.eval()
        drawn[:, :, 0, 0] = reference.mixture_sample(outputs(drawn))[:, :, 0, 0]
        setup.wait()

    return train, one_pass


def measure(size: Size, setup: TorchSetup, repeats: int = 5, passes: int = 1) -> dict[str, Any]:
    """Times of a training step and of a batch of samples, ours in the peer's precision.

    Args:
        size: Network and batch.
        setup: How PyTorch runs.
        repeats: Number of timed rounds.
        passes: Number of the naive sampler's passes that are timed.

    Returns:
        `rows` (label -> side -> seconds), `batch`, and `first`: the seconds of our first calls.
    """
    shape = (size.batch, size.side, size.side, 1)
    data = (np.random.default_rng(0).integers(0, 256, shape) / 127.5 - 1).astype(np.float32)
    train, cached, naive = jax_sides(size, data, setup.precision)
    torch_train, torch_pass = torch_sides(size, data, setup)
    first = {"training step": first_call(train), "cached sampler": first_call(cached)}
    training = interleaved({"torch": torch_train, "jaxgen": train}, repeats, warmup=1)
    times = interleaved(
        {
            "torch": lambda: [torch_pass() for _ in range(passes)],
            "jaxgen naive": lambda: [jax.block_until_ready(naive()) for _ in range(passes)],
            "jaxgen": cached,
        },
        repeats,
        warmup=1,
    )
    pixels = size.side**2
    title = f"{size.features} features, {size.blocks} blocks, batch {size.batch}"
    rows = {
        f"train step, {title}": training,
        f"sampling {size.side}x{size.side}": {
            k: v if k == "jaxgen" else v * pixels / passes for k, v in times.items()
        },
    }
    return {"rows": rows, "batch": size.batch, "first": first}


def main() -> None:
    """Print a row for training and a row for sampling."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--features", type=int, default=32, help="Number of filters of every layer.")
    add("--blocks", type=int, default=2, help="Number of residual blocks of a level.")
    add("--size", type=int, default=28, help="Height and width of the images.")
    add("--batch", type=int, default=16, help="Number of images in a batch.")
    add("--passes", type=int, default=1, help="Number of the naive sampler's passes to time.")
    add("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    size = Size(options.features, options.blocks, options.size, options.batch)
    setup = TorchSetup()
    print(f"{machine()}; {setup}")
    result = measure(size, setup, options.repeats, options.passes)
    for name, seconds in result["first"].items():
        print(f"jaxgen's {name}: first call {seconds:.1f} s")
    print_table(result["rows"], "torch", ["torch", "jaxgen naive", "jaxgen"])


if __name__ == "__main__":
    main()
