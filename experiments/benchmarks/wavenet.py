"""Training and sampling of a WaveNet beside PyTorch, and the cached sampler beside the naive pass.

    python -m experiments.benchmarks.wavenet [--size small|paper] [--repeats 5]

The peer is the same network written plainly in PyTorch, in the same process, interleaved, medians:
its sizes, the mu-law softmax, Adam and the parameters' average. A turn of training takes
`TRAIN_STEPS` steps, ours in one dispatch of the loop that the package runs them in. A naive sample
is one pass over all that the network sees, batch 1, of which the last position is drawn; the cached
sampler draws `SAMPLES` in one compiled call, and its time is divided by that. At 16 kHz, 16,000
samples a second would be real time.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from jaxgen.core import Variables
from jaxgen.families.wavenet import wavenet
from jaxgen.models.wavenet import WaveNet
from jaxgen.sampling.autoregressive import draw_categorical
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

from .harness import first_call, interleaved, jit, machine, print_table
from .torch_peer import TorchSetup

TRAIN_STEPS = 2  # a turn
NAIVE_SAMPLES, SAMPLES = 5, 2000
SIZES = {  # stacks, layers, channels, skip_channels, batch, window
    "small": (2, 9, 32, 128, 4, 2048),
    "paper": (3, 10, 64, 256, 2, 4000),
}


def jax_sides(size: str, data: np.ndarray, precision: str):
    """Our training steps in the compiled loop, some naive passes, and the cached sampler."""
    stacks, layers, channels, skip_channels, _, window = SIZES[size]
    network: Any = WaveNet(
        256, 256, stacks, layers, channels, skip_channels, dtype=jnp.dtype(precision)
    )
    family = wavenet(network, adam(1e-3), num_samples=window, sample_length=SAMPLES)
    state, run = prepare_fit(
        family,
        {"audio": data},
        averages={"ema": warmed_up(0.9999)},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    box = [state]
    variables = Variables(jax.tree.map(jnp.copy, state.params))  # training donates the state

    def train():
        box[0], *report = run(box[0], TRAIN_STEPS)
        return report

    draw = draw_categorical()

    @jit
    def naive_sample(variables, seen, key):
        outputs = network.apply({"params": variables.params["wavenet"]}, seen)
        value = draw(key, outputs[:, -1])
        return jnp.concatenate([seen[:, 1:], value[:, None]], axis=1)

    past = jnp.asarray(np.resize(data[0], network.receptive_field + 1)[None])

    def naive():
        seen = past
        for i in range(NAIVE_SAMPLES):
            seen = naive_sample(variables, seen, jax.random.key(i))
        return seen

    assert family.sample is not None
    sample = jit(family.sample, static_argnums=2)
    cached = {n: lambda n=n: sample(variables, jax.random.key(0), n) for n in (1, 16)}
    return train, naive, cached, network.receptive_field


class TorchLayer(nn.Module):
    """A gated residual layer."""

    def __init__(self, channels: int, skip_channels: int, dilation: int, is_last: bool):
        super().__init__()
        self.past, self.residual = dilation, 0 if is_last else channels
        self.conv = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.out = nn.Conv1d(channels, self.residual + skip_channels, 1)

    def forward(self, h):
        a, b = self.conv(nn.functional.pad(h, (self.past, 0))).chunk(2, dim=1)
        out = self.out(torch.tanh(a) * torch.sigmoid(b))
        if not self.residual:
            return h, out
        return h + out[:, : self.residual], out[:, self.residual :]


class TorchWaveNet(nn.Module):
    """The same network in PyTorch: classes [B, T] -> logits [B, 256, T]."""

    def __init__(self, stacks: int, layers: int, channels: int, skip_channels: int):
        super().__init__()
        self.embed = nn.Embedding(256, channels)
        dilations = [2**i for i in range(layers)] * stacks
        last = len(dilations) - 1
        self.layers = nn.ModuleList(
            TorchLayer(channels, skip_channels, d, i == last) for i, d in enumerate(dilations)
        )
        self.head = nn.Conv1d(skip_channels, skip_channels, 1)
        self.out = nn.Conv1d(skip_channels, 256, 1)

    def forward(self, x):
        h = nn.functional.pad(self.embed(x).transpose(1, 2), (1, 0))[:, :, :-1]
        parts = []
        for layer in self.layers:
            h, part = layer(h)
            parts.append(part)
        total = sum(parts[1:], parts[0])
        return self.out(torch.relu(self.head(torch.relu(total))))


def torch_sides(size: str, data: np.ndarray, receptive_field: int, setup: TorchSetup):
    """The same in PyTorch."""
    plain = TorchWaveNet(*SIZES[size][:4]).to(setup.device)
    net: Any = torch.compile(plain) if setup.compiled else plain
    x = torch.as_tensor(data).long().to(setup.device)
    optimizer = setup.adam(net, 1e-3)
    average = [p.detach().clone() for p in net.parameters()]

    def train():
        for _ in range(TRAIN_STEPS):
            optimizer.zero_grad()
            with setup.autocast():
                logits = net(x)
            nats = nn.functional.cross_entropy(logits.float(), x, reduction="sum") / len(x)
            nats.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(net.parameters()), 1e-3)
        setup.wait()

    past = torch.as_tensor(np.resize(data[0], receptive_field + 1)[None]).long().to(setup.device)

    @torch.inference_mode()
    def naive():
        seen = past
        for _ in range(NAIVE_SAMPLES):
            probabilities = torch.softmax(plain(seen)[:, :, -1], dim=1)
            value = torch.multinomial(probabilities, 1)
            seen = torch.cat([seen[:, 1:], value], dim=1)
        setup.wait()
        return seen

    return train, naive


def measure(size: str, setup: TorchSetup, repeats: int = 5) -> dict[str, Any]:
    """Times of a training step and of a sample, ours in the peer's precision.

    Args:
        size: Size of the network and its batch.
        setup: How PyTorch runs.
        repeats: Number of timed rounds.

    Returns:
        `rows` (label -> side -> seconds), `batch`, and the seconds of our first call.
    """
    *_, batch, window = SIZES[size]
    data = np.random.default_rng(0).integers(0, 256, (batch, window)).astype(np.int32)
    train, naive, cached, receptive_field = jax_sides(size, data, setup.precision)
    torch_train, torch_naive = torch_sides(size, data, receptive_field, setup)
    compiled = first_call(train)
    training = interleaved({"torch": torch_train, "jaxgen": train}, repeats, warmup=1)
    samplers = {"torch": torch_naive, "jaxgen naive": naive}
    drawn = dict.fromkeys(samplers, NAIVE_SAMPLES)
    for num, sample in cached.items():
        samplers[f"cached, {num}"], drawn[f"cached, {num}"] = sample, num * SAMPLES
    times = interleaved(samplers, repeats, warmup=1)
    rows = {
        f"train step, {size}, {batch} x {window}": {
            name: seconds / TRAIN_STEPS for name, seconds in training.items()
        },
        f"a sample, {size}, {receptive_field} seen": {
            name: seconds / drawn[name] for name, seconds in times.items()
        },
    }
    return {"rows": rows, "batch": batch, "compiled": compiled}


def main() -> None:
    """Print one row for training, one for a sample, and the rates of the cached sampler."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="small", help="Size of the network and its batch.")
    add("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    setup = TorchSetup()
    print(f"{machine()}; {setup}")
    result = measure(options.size, setup, options.repeats)
    _, sampling = result["rows"].values()
    print_table(result["rows"], "torch", ("torch", "jaxgen", *list(sampling)[1:]))
    rates = (f"{name} {1 / seconds:,.1f}" for name, seconds in sampling.items())
    print(f"samples/s: {'; '.join(rates)} (the number is the batch, of which all are counted)")
    print(f"jaxgen's training steps compiled in {result['compiled']:.1f} s")


if __name__ == "__main__":
    main()
