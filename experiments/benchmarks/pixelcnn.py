"""Training and sampling of PixelCNN++ beside PyTorch, and the cached sampler beside the naive one.

    python -m experiments.benchmarks.pixelcnn [--features 32] [--blocks 2] [--size 28] [--batch 16]

The peer is the same network in PyTorch (`pixelcnn_reference`), in the same process, interleaved,
medians. A training step is the loss of a mixture of logistics with dropout, Adam and the average of
the parameters, ours in the package's loop. The naive loops sample as the published code does: one
pass over the whole batch for each pixel. As every pass costs the same, `--passes` of them are timed
and the time of all H W stands for them; the cached sampler draws whole images.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmarks import pixelcnn_reference as reference
from experiments.benchmarks.harness import interleaved, machine, print_table
from jaxgen.core import Variables
from jaxgen.families.autoregressive import autoregressive
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

LEVELS, MIXTURES = 3, 10


def jax_sides(options: argparse.Namespace, data: np.ndarray):
    """Our training step, the cached sampler and one pass of the naive one."""
    network = PixelCNNPP(1, options.features, options.blocks, LEVELS, MIXTURES)
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
    cached = jax.jit(lambda key: sample(variables, key, options.batch))
    apply: Any = jax.jit(lambda x: network.apply({"params": variables.params["pixelcnn"]}, x))
    return train, lambda: cached(jax.random.key(0)), lambda: apply(images)


def torch_sides(options: argparse.Namespace, data: np.ndarray):
    """The same in PyTorch: a training step, and one pass of the naive sampler."""
    net = reference.PixelCNNPP(options.features, options.blocks, LEVELS, MIXTURES)
    x = torch.as_tensor(data).permute(0, 3, 1, 2).contiguous()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    average = [p.detach().clone() for p in net.parameters()]

    def train():
        net.train()
        optimizer.zero_grad()
        reference.mixture_nats(net(x), x).mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net.parameters()), 1e-4)

    drawn = torch.zeros_like(x)

    @torch.inference_mode()
    def one_pass():
        net.eval()
        drawn[:, :, 0, 0] = reference.mixture_sample(net(drawn))[:, :, 0, 0]

    return train, one_pass


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
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 1)
    data = (rng.integers(0, 256, shape) / 127.5 - 1).astype(np.float32)
    train, cached, naive = jax_sides(options, data)
    torch_train, torch_pass = torch_sides(options, data)
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, fn in (("training step", train), ("cached sampler", cached)):
        begin = time.perf_counter()
        jax.block_until_ready(fn())
        print(f"jaxgen's {name}: first call {time.perf_counter() - begin:.1f} s")
    title = f"{options.features} features, {options.blocks} blocks, batch {options.batch}"
    rows = {
        f"train step, {title}": interleaved(
            {"torch": torch_train, "jaxgen": train}, options.repeats, warmup=1
        )
    }
    pixels, passes = options.size**2, options.passes
    times = interleaved(
        {
            "torch": lambda: [torch_pass() for _ in range(passes)],
            "jaxgen naive": lambda: [jax.block_until_ready(naive()) for _ in range(passes)],
            "jaxgen": cached,
        },
        options.repeats,
        warmup=1,
    )
    whole = {k: v if k == "jaxgen" else v * pixels / passes for k, v in times.items()}
    rows[f"sampling {options.size}x{options.size}"] = whole
    print_table(rows, "torch", ["torch", "jaxgen naive", "jaxgen"])


if __name__ == "__main__":
    main()
