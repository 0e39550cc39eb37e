"""Training, densities and sampling of flows beside other libraries; compiling, rolled and not.

    python -m experiments.benchmarks.flow [--flow glow|realnvp|maf|nsf] [--repeats 5] [--depth 16]

Peers: normflows' multiscale `glow`, and a multiscale `realnvp` of its parts with the residual
network and the full-size checkerboard couplings of ours written in PyTorch; zuko (PyTorch) and
flowjax (JAX) for `maf` and `nsf`. What is not installed is left out, and named. Same process,
interleaved, medians. A turn of training is `TRAIN_STEPS` steps of Adam, ours in one dispatch of the
loop that the package runs them in, with its average of the parameters; theirs one by one.

The last table is of the time to compile the gradient of one level of `--depth` Glow steps, in a
compiled loop (`Repeat`) and one after another.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import Variables
from jaxgen.families.flow import flow
from jaxgen.models.bijectors.algebra import ActNorm, Bijector, Logit, Repeat, Squeeze, chain
from jaxgen.models.bijectors.conditioners import ConvNet
from jaxgen.models.bijectors.coupling import Coupling
from jaxgen.models.bijectors.linear import InvertibleLinear
from jaxgen.models.bijectors.splines import neural_spline_flow
from jaxgen.models.glow import glow
from jaxgen.models.maf import maf
from jaxgen.models.realnvp import realnvp_image
from jaxgen.training.averages import warmed_up
from jaxgen.training.fit import prepare_fit
from jaxgen.training.optim import adam
from jaxgen.training.strategies import make_strategy

from .harness import interleaved, jit, machine, print_table

TRAIN_STEPS = 5  # a turn
IMAGE, IMAGES = (16, 16, 3), 32  # shape and batch
WIDTH, VECTORS = 8, 256  # as many variables as UCI's GAS
LEVELS, STEPS, CHANNELS = 2, 8, 64  # for the flows on images
LAYERS, HIDDEN, BINS = 5, (100, 100), 8  # for the flows on vectors
BOUND = 2.0  # the greatest size of log-scales
PEERS = {
    "glow": ("normflows",),
    "realnvp": ("normflows",),
    "maf": ("zuko", "flowjax"),
    "nsf": ("zuko", "flowjax"),
}
OURS: dict[str, Callable[[], Bijector]] = {
    "glow": lambda: chain(Logit(), glow(LEVELS, STEPS, CHANNELS)),
    "realnvp": lambda: chain(Logit(), realnvp_image(LEVELS, CHANNELS // 2, 1)),
    "maf": lambda: maf(LAYERS, HIDDEN),
    "nsf": lambda: neural_spline_flow(LAYERS, HIDDEN, num_bins=BINS),
}

Side = dict[str, Callable[[], Any]]  # "train", "log_prob" and "sample"


def our_side(name: str, data: np.ndarray) -> Side:
    """Training in the compiled loop, densities and samples, each one dispatch."""
    entry = "image" if data.ndim == 4 else "vector"
    family = flow(OURS[name](), adam(1e-4), event_shape=data.shape[1:])
    state, run = prepare_fit(
        family,
        {entry: data},
        averages={"ema": warmed_up(0.9999)},
        strategy=make_strategy("jit", jax.devices()[:1]),
    )
    variables = jax.tree.map(jnp.copy, Variables(state.params, state.state))  # `run` donates
    box, batch = [state], {entry: jnp.asarray(data)}

    def train():
        box[0], *report = run(box[0], TRAIN_STEPS)
        return report

    assert family.log_prob is not None
    assert family.sample is not None
    key, log_prob = jax.random.key(0), jit(family.log_prob)
    sample = jit(family.sample, static_argnums=2)
    return {
        "train": train,
        "log_prob": lambda: log_prob(variables, batch, key),
        "sample": lambda: sample(variables, key, len(data)),
    }


def flowjax_side(name: str, data: np.ndarray) -> Side:
    """The same flow of flowjax, its steps compiled one by one."""
    import equinox as eqx
    import optax
    import paramax
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow, masked_autoregressive_flow

    options: dict[str, Any] = {
        "base_dist": Normal(jnp.zeros(WIDTH)),
        "flow_layers": LAYERS,
        "nn_width": HIDDEN[0],
        "nn_depth": len(HIDDEN),
        "nn_activation": jax.nn.silu,
    }
    if name == "maf":
        model = masked_autoregressive_flow(jax.random.key(0), **options)
    else:
        spline = RationalQuadraticSpline(knots=BINS, interval=3)
        model = coupling_flow(jax.random.key(0), transformer=spline, **options)
    params, static = eqx.partition(
        model, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer, x = optax.adam(1e-4), jnp.asarray(data)

    def whole(params):
        return paramax.unwrap(eqx.combine(params, static))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: -whole(p).log_prob(x).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    box = [(params, optimizer.init(params))]

    def train():
        for _ in range(TRAIN_STEPS):
            box[0] = step(*box[0])
        return box[0]

    log_prob = jax.jit(lambda p: whole(p).log_prob(x))
    sample = jax.jit(lambda p: whole(p).sample(jax.random.key(0), (len(data),)))
    return {
        "train": train,
        "log_prob": lambda: log_prob(params),
        "sample": lambda: sample(params),
    }


def torch_side(name: str, data: np.ndarray) -> Side:
    """The same flow of a PyTorch library."""
    import torch

    model: Any
    if data.ndim == 2:
        import zuko

        if name == "maf":
            model = zuko.flows.MAF(WIDTH, transforms=LAYERS, hidden_features=HIDDEN)
        else:
            model = zuko.flows.NSF(
                WIDTH, bins=BINS, transforms=LAYERS, hidden_features=HIDDEN, passes=2
            )
        x = torch.as_tensor(data)
        log_prob = lambda: model().log_prob(x)  # noqa: E731
        sample = lambda: model().sample((len(data),))  # noqa: E731
    else:
        from . import flow_reference

        build = {"glow": flow_reference.glow, "realnvp": flow_reference.realnvp}[name]
        model = build(IMAGE, LEVELS, STEPS, CHANNELS, BOUND)
        x = torch.as_tensor((data + 1) * 127.5).round().permute(0, 3, 1, 2).contiguous()
        log_prob = lambda: model.log_prob((x + torch.rand_like(x)) / 256, None)  # noqa: E731
        sample = lambda: model.sample(len(data))  # noqa: E731
    log_prob()  # actnorm looks at the data
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    average = [p.detach().clone() for p in model.parameters()]

    def train():
        for _ in range(TRAIN_STEPS):
            optimizer.zero_grad()
            (-log_prob().mean()).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(model.parameters()), 1e-4)

    def quietly(fn: Callable[[], Any]) -> Callable[[], Any]:
        def call():
            with torch.no_grad():
                return fn()

        return call

    return {"train": train, "log_prob": quietly(log_prob), "sample": quietly(sample)}


def sides(name: str) -> dict[str, Side]:
    """Ours and the installed peers'."""
    rng = np.random.default_rng(0)
    if name in ("maf", "nsf"):
        data = rng.normal(size=(VECTORS, WIDTH)).astype(np.float32)
    else:
        bytes_ = rng.integers(0, 256, (IMAGES, *IMAGE))
        data = (bytes_ / 127.5 - 1).astype(np.float32)
    peers = {}
    for peer in PEERS[name]:
        if importlib.util.find_spec(peer) is None:
            print(f"{name}: no {peer} here, left out: pip install {peer}")
        else:
            peers[peer] = (flowjax_side if peer == "flowjax" else torch_side)(name, data)
    return {**peers, "jaxgen": our_side(name, data)}


def compile_seconds(depth: int) -> dict[str, float]:
    """Seconds to compile the gradient of a level of Glow: rolled, unrolled."""

    def step() -> Bijector:
        return chain(ActNorm(), InvertibleLinear(), Coupling(partial(ConvNet, width=CHANNELS)))

    stacks = {
        "rolled": chain(Squeeze(), Repeat(step(), depth)),
        "unrolled": chain(Squeeze(), *(step() for _ in range(depth))),
    }
    x, seconds = jnp.zeros((IMAGES, *IMAGE)), {}
    for name, stack in stacks.items():

        def loss(params, fixed, stack=stack):
            y, log_det = stack.apply({"params": params, **fixed}, x)
            return (jnp.sum(jnp.square(y), axis=(1, 2, 3)) - log_det).mean()

        variables = dict(jax.eval_shape(stack.init, jax.random.key(0), x))
        begin = time.perf_counter()
        jax.jit(jax.grad(loss)).lower(variables.pop("params"), variables).compile()
        seconds[name] = time.perf_counter() - begin
    return seconds


def main() -> None:
    """Print a table for each flow, and one of compile times."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--flow", choices=sorted(OURS), action="append", help="Flow to measure; all by default.")
    add("--repeats", type=int, default=5, help="Number of timed rounds.")
    add("--depth", type=int, default=16, help="Number of Glow steps to compile; 0 for none.")
    options = parser.parse_args()
    print(machine())
    for name in options.flow or OURS:
        candidates, rows = sides(name), {}
        begin = time.perf_counter()
        jax.block_until_ready(candidates["jaxgen"]["train"]())
        print(f"{name}: jaxgen's training steps compiled in {time.perf_counter() - begin:.1f} s")
        for what in ("train", "log_prob", "sample"):
            times = interleaved(
                {side: fns[what] for side, fns in candidates.items()}, options.repeats
            )
            calls = TRAIN_STEPS if what == "train" else 1
            rows[f"{name}, {what}"] = {side: t / calls for side, t in times.items()}
        print_table(rows, next(iter(candidates)))
    if options.depth:
        times = compile_seconds(options.depth)
        ratio = times["unrolled"] / times["rolled"]
        print(
            f"gradient of {options.depth} Glow steps compiled: rolled {times['rolled']:.1f} s, "
            f"unrolled {times['unrolled']:.1f} s ({ratio:.1f} times as long)"
        )


if __name__ == "__main__":
    main()
