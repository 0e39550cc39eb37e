"""Convolutions of `jaxgen.models.conv.layers` beside Flax's own and PyTorch's.

    python -m experiments.benchmarks.conv [--repeats 5] [--only NAME]

Each layer forward, and forward with both its gradients; `jaxgen` inside a `fori_loop` of traced
length, where the package runs everything, Flax outside it and inside (`flax loop`), and PyTorch, if
it is there, in both its memory layouts. Interleaved medians.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.models.conv import layers as conv

from .harness import interleaved, machine, print_table

torch: Any
try:
    import torch
except ImportError:
    torch = None

CALLS = 4  # in one timed run


class Layer(NamedTuple):
    """A convolution over square images."""

    batch: int
    size: int
    channels: int
    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    transposed: bool = False


LAYERS = {
    "U-Net 32x32x128": Layer(8, 32, 128, 128),
    "U-Net 16x16x256": Layer(8, 16, 256, 256),
    "U-Net 8x8x256": Layer(16, 8, 256, 256),
    "U-Net 16x16x512 to 256": Layer(8, 16, 512, 256),
    "8x8x32": Layer(64, 8, 32, 32),
    "8x8x64": Layer(128, 8, 64, 64),
    "28x28x64": Layer(32, 28, 64, 64),
    "VGG 2x2x512": Layer(16, 2, 512, 512),
    "1x1, 16x16x512 to 256": Layer(8, 16, 512, 256, kernel=1),
    "first, 32x32x3 to 128": Layer(8, 32, 3, 128),
    "last, 32x32x128 to 3": Layer(8, 32, 128, 3),
    "stride 2, 32x32x128": Layer(8, 32, 128, 128, stride=2),
    "transposed, 16x16x128 to 64": Layer(8, 16, 128, 64, kernel=4, stride=2, transposed=True),
    "depthwise, 32x32x128": Layer(8, 32, 128, 128, groups=128),
}


def jax_side(module: Any, layer: Layer, *, gradients: bool, looped: bool) -> Callable[[], object]:
    """The layer called `CALLS` times, each call on what the last one left."""
    options: dict[str, Any] = {"strides": (layer.stride,) * 2}
    if layer.groups > 1:
        options["feature_group_count"] = layer.groups
    net = module(layer.features, (layer.kernel,) * 2, **options)
    shape = (layer.batch, layer.size, layer.size, layer.channels)
    x = jax.random.normal(jax.random.key(0), shape)
    params = net.init(jax.random.key(1), x)

    def loss(params, x):
        return jnp.mean(jnp.square(net.apply(params, x)))

    def once(_, carry):
        if gradients:
            return jax.tree.map(lambda a, b: a - 1e-3 * b, carry, jax.grad(loss, (0, 1))(*carry))
        return carry[0], carry[1] * (1 + 1e-9 * loss(*carry))

    run = jax.jit(lambda carry, calls: lax.fori_loop(0, calls, once, carry))
    one = jax.jit(partial(once, 0))

    def outside():
        carry = (params, x)
        for _ in range(CALLS):
            carry = one(carry)
        return carry

    return (lambda: run((params, x), CALLS)) if looped else outside


def torch_side(layer: Layer, *, gradients: bool, memory_format: Any) -> Callable[[], object]:
    """The same layer in PyTorch."""
    module = torch.nn.ConvTranspose2d if layer.transposed else torch.nn.Conv2d
    # As many zeros in sum as SAME has; where the stride makes them uneven, PyTorch's are even.
    padding = (layer.kernel - layer.stride + 1) // 2
    options = {"stride": layer.stride, "padding": padding, "groups": layer.groups}
    net = module(layer.channels, layer.features, layer.kernel, **options)
    net = net.to(memory_format=memory_format)
    x = torch.randn(layer.batch, layer.channels, layer.size, layer.size)
    x = x.to(memory_format=memory_format).requires_grad_(gradients)

    def run():
        for _ in range(CALLS):
            with torch.set_grad_enabled(gradients):
                loss = net(x).square().mean()
            if gradients:
                net.zero_grad()
                x.grad = None
                loss.backward()

    return run


def candidates(layer: Layer, *, gradients: bool) -> dict[str, Callable[[], object]]:
    """All that is timed for one layer; PyTorch's first, where there is a PyTorch."""
    fns: dict[str, Callable[[], object]] = {}
    if torch is not None:
        for name, form in (("torch", "contiguous_format"), ("torch NHWC", "channels_last")):
            form = getattr(torch, form)
            fns[name] = torch_side(layer, gradients=gradients, memory_format=form)
    flax, ours = (
        (nn.ConvTranspose, conv.ConvTranspose) if layer.transposed else (nn.Conv, conv.Conv)
    )
    side = partial(jax_side, layer=layer, gradients=gradients)
    fns["flax"] = side(flax, looped=False)
    fns["flax loop"] = side(flax, looped=True)
    exact = partial(conv.conv_general_dilated, winograd=False)
    fns["no Winograd"] = side(partial(ours, conv_general_dilated=exact), looped=True)
    fns["jaxgen"] = side(ours, looped=True)
    return fns


def main() -> None:
    """Print one table for the forward pass and one with the gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    parser.add_argument("--only", default="", help="Part of the names of the layers to time.")
    options = parser.parse_args()
    print(machine())
    layers = {name: layer for name, layer in LAYERS.items() if options.only in name}
    for title, gradients in (("forward", False), ("forward and gradients", True)):
        rows = {}
        for name, layer in layers.items():
            times = interleaved(candidates(layer, gradients=gradients), options.repeats, warmup=1)
            rows[name] = {column: seconds / CALLS for column, seconds in times.items()}
        print(f"\n{title}, a call:")
        print_table(rows, "torch" if torch is not None else "flax")


if __name__ == "__main__":
    main()
