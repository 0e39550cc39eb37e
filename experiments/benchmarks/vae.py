"""Training and importance sampling of a VAE beside PyTorch.

    python -m experiments.benchmarks.vae [--size dense|conv] [--repeats 5]

The peer is the same network written in PyTorch, in the same process, interleaved, medians: its
sizes, Bernoulli pixels, one latent, the KL in closed form, Adam. Each turn takes `TRAIN_STEPS`
steps, ours in one dispatch of the loop that the package runs them in. The importance-weighted bound
is of 100 images with K = 1000, ours in one compiled call, in both in chunks of 25.
"""

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from jaxgen.core import Variables
from jaxgen.distributions import likelihoods
from jaxgen.families.vae import vae
from jaxgen.models import vae as networks
from jaxgen.training import averages
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

from .harness import first_call, interleaved, jit, machine, print_table
from .torch_peer import TorchSetup

TRAIN_STEPS = 20  # a turn
LATENT, BATCH, IMAGES, SAMPLES, CHUNK = 50, 100, 100, 1000, 25


def jax_sides(size: str, data: np.ndarray, precision: str):
    """Our training steps, in the compiled loop, and our bound."""
    dtype = jnp.dtype(precision)
    if size == "dense":
        encoder: Any = networks.DenseEncoder(LATENT, dtype=dtype)
        decoder: Any = networks.DenseDecoder((28, 28), 1, dtype=dtype)
    else:
        encoder = networks.ConvEncoder(LATENT, dtype=dtype)
        decoder = networks.ConvDecoder(28, 1, dtype=dtype)
    family = vae(
        encoder,
        decoder,
        likelihoods.bernoulli(),
        adam(1e-3),
        latent_dim=LATENT,
        image_shape=(28, 28, 1),
        bound_samples=SAMPLES,
        bound_chunk=CHUNK,
    )
    state, run = prepare_fit(
        family,
        {"image": data},
        averages={"ema": averages.warmed_up(0.9999)},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    box = [state]
    variables = Variables(jax.tree.map(jnp.copy, state.params))  # training donates the state

    def train():
        box[0], *report = run(box[0], TRAIN_STEPS)
        return report

    log_prob: Any = family.log_prob
    bound = jit(lambda x, key: log_prob(variables, {"image": x}, key))
    images = jnp.asarray(data[:IMAGES])
    return train, lambda: bound(images, jax.random.key(0))


class TorchVae(nn.Module):
    """The same network in PyTorch, of pixels 0 and 1."""

    def __init__(self, size: str):
        super().__init__()
        if size == "dense":
            self.encode: nn.Module = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh()
            )
            self.decode: nn.Module = nn.Sequential(
                nn.Linear(LATENT, 200),
                nn.Tanh(),
                nn.Linear(200, 200),
                nn.Tanh(),
                nn.Linear(200, 784),
            )
        else:
            self.encode = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1),
                nn.ReLU(),
                nn.Conv2d(32, 64, 4, 2, 1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(7 * 7 * 64, 256),
                nn.ReLU(),
            )
            self.decode = nn.Sequential(
                nn.Linear(LATENT, 256),
                nn.ReLU(),
                nn.Linear(256, 7 * 7 * 64),
                nn.ReLU(),
                nn.Unflatten(1, (64, 7, 7)),
                nn.ConvTranspose2d(64, 32, 4, 2, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(32, 1, 4, 2, 1),
                nn.Flatten(),
            )
        hidden = 200 if size == "dense" else 256
        self.mean, self.log_variance = nn.Linear(hidden, LATENT), nn.Linear(hidden, LATENT)

    def posterior(self, x):
        h = self.encode(x)
        return self.mean(h), 15 * torch.tanh(self.log_variance(h) / 15)

    def nats(self, x, z):
        """-log p(x | z), [B]."""
        flat = x.flatten(1).expand(z.shape[0], -1)
        loss = nn.functional.binary_cross_entropy_with_logits
        return loss(self.decode(z).reshape(z.shape[0], -1), flat, reduction="none").sum(1)


def torch_sides(size: str, data: np.ndarray, setup: TorchSetup):
    """The same in PyTorch."""
    net = TorchVae(size).to(setup.device)
    x = setup.images(torch.as_tensor((data + 1) / 2).permute(0, 3, 1, 2).contiguous())
    optimizer = setup.adam(net, 1e-3)
    average = [p.detach().clone() for p in net.parameters()]

    def train():
        for _ in range(TRAIN_STEPS):
            optimizer.zero_grad()
            nats(x).mean().backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(net.parameters()), 1e-4)
        setup.wait()

    def nats(x):
        with setup.autocast():
            mean, log_variance = net.posterior(x)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            kl = 0.5 * (log_variance.exp() - 1 - log_variance + mean.square()).sum(1)
            return net.nats(x, z) + kl

    nats = torch.compile(nats) if setup.compiled else nats

    @torch.inference_mode()
    def bound():
        mean, log_variance = net.posterior(x[:IMAGES])
        repeated = x[:IMAGES].repeat(CHUNK, 1, 1, 1)
        chunks = []
        for _ in range(SAMPLES // CHUNK):
            eps = torch.randn(CHUNK, *mean.shape, device=setup.device)
            z = mean + (0.5 * log_variance).exp() * eps
            ratio = 0.5 * (eps.square() + log_variance - z.square()).sum(2)
            nats = net.nats(repeated, z.flatten(0, 1)).reshape(CHUNK, -1)
            chunks.append((ratio - nats).logsumexp(0))
        result = torch.stack(chunks).logsumexp(0) - math.log(SAMPLES)
        setup.wait()
        return result

    return train, bound


def measure(size: str, setup: TorchSetup, repeats: int = 5, batch: int = BATCH) -> dict[str, Any]:
    """Times of a training step and of the bound, ours in the peer's precision.

    Args:
        size: Kind of the networks.
        setup: How PyTorch runs.
        repeats: Number of timed rounds.
        batch: Number of images in a training step, at least those of the bound.

    Returns:
        `rows` (label -> side -> seconds), `batch`, and the seconds of our first call.
    """
    rng = np.random.default_rng(0)
    data = np.where(rng.random((batch, 28, 28, 1)) < 0.2, 1.0, -1.0).astype(np.float32)
    torch_train, torch_bound = torch_sides(size, data, setup)
    train, bound = jax_sides(size, data, setup.precision)
    compiled = first_call(train)
    times = interleaved({"torch": torch_train, "jaxgen": train}, repeats, warmup=1)
    rows = {
        f"train step, {size}, batch {batch}": {
            name: seconds / TRAIN_STEPS for name, seconds in times.items()
        },
        f"bound of {IMAGES} images, K = {SAMPLES}": interleaved(
            {"torch": torch_bound, "jaxgen": bound}, min(repeats, 3), warmup=1
        ),
    }
    return {"rows": rows, "batch": batch, "compiled": compiled}


def main() -> None:
    """Print one row for training and one for the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("dense", "conv"), default="dense", help="Networks.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    options = parser.parse_args()
    setup = TorchSetup()
    print(f"{machine()}; {setup}")
    result = measure(options.size, setup, options.repeats)
    print_table(result["rows"], "torch")
    print(f"jaxgen's training steps compiled in {result['compiled']:.1f} s")


if __name__ == "__main__":
    main()
