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
from jaxgen.families.autoregressive import autoregressive
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.training.optim import adam
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import Feed, make_strategy

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
    strategy = make_strategy("jit", jax.devices()[:1])
    batch = {"image": jnp.asarray(data)}
    state = strategy.init(lambda key, x: init_state(family, key, x), jax.random.key(0), batch)
    feed = Feed(lambda data, step, shard: data, lambda key, raw: raw, seed=0, resident=True)
    run = strategy.compile(make_step(family), feed, state)
    streak, box = strategy.put_replicated(np.int32(0)), [state]
    params = jax.tree.map(jnp.copy, state.params)  # training donates the state

    def train():
        box[0], report = run(box[0], streak, batch, 1)
        return report

    cached = jax.jit(lambda key: family.sample(params, {}, key, options.batch))
    apply: Any = jax.jit(lambda x: network.apply({"params": params["pixelcnn"]}, x))
    return train, lambda: cached(jax.random.key(0)), lambda: apply(batch["image"])


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
    for name, default in (
        ("features", 32), ("blocks", 2), ("size", 28), ("batch", 16), ("passes", 1), ("repeats", 5),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
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
