"""Sampling of a causal transformer: the cache of keys and values beside the naive loop.

    python -m experiments.benchmarks.transformer [--width 256] [--layers 4] [--batch 4]

The naive loop is one pass over the whole sequence for each position, as the published code of
ImageGPT samples. As every pass costs the same, `--passes` of them are timed and the time of all
positions stands for them; the cached sampler draws whole sequences. Both are of this package, in
the same process, interleaved, medians.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.raster import cached_tokens
from jaxgen.models.transformer import Transformer
from jaxgen.sampling.autoregressive import draw_categorical

from .harness import first_call, interleaved, jit, machine, print_table


class Size(NamedTuple):
    """The network and its batch of sequences."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    positions: int = 1024
    tokens: int = 512
    batch: int = 4


def make_sides(size: Size, precision: str) -> tuple[Any, Any]:
    """The cached sampler of whole sequences, and one pass of the naive one.

    Args:
        size: Network and batch.
        precision: Type of the network's arithmetic.
    """
    network = Transformer(
        size.tokens,
        size.positions,
        size.width,
        size.layers,
        size.heads,
        dtype=jnp.dtype(precision),
    )
    ids = jnp.asarray(
        np.random.default_rng(0).integers(0, size.tokens, (size.batch, size.positions)), jnp.int32
    )
    params: Any = jax.jit(network.init)(jax.random.key(0), ids)["params"]
    draw = draw_categorical()
    nothing: dict[str, Any] = {"num_classes": size.tokens, "given": None, "known": None}

    @jit
    def cached(params, key):
        shape = (size.batch, size.positions, 1, 1)
        return cached_tokens(network, params, None, shape, key, draw, **nothing)

    @jit
    def naive(params, ids, key):
        logits: Any = network.apply({"params": params}, ids)
        return draw(key, logits[:, -1])

    key = jax.random.key(1)
    return lambda: cached(params, key), lambda: naive(params, ids, key)


def measure(
    size: Size, repeats: int = 5, passes: int = 1, precision: str = "float32"
) -> dict[str, Any]:
    """Times of a batch of sequences.

    Args:
        size: Network and batch.
        repeats: Number of timed rounds.
        passes: Number of the naive sampler's passes that are timed.
        precision: Type of the network's arithmetic.

    Returns:
        `rows` (label -> side -> seconds), and `first`: the seconds of the first calls.
    """
    cached, naive = make_sides(size, precision)
    first = {"cached sampler": first_call(cached), "naive pass": first_call(naive)}
    times = interleaved(
        {
            "naive": lambda: [jax.block_until_ready(naive()) for _ in range(passes)],
            "cached": cached,
        },
        repeats,
        warmup=0,
    )
    times["naive"] *= size.positions / passes
    title = f"{size.layers} blocks {size.width} wide, {size.batch} x {size.positions} positions"
    return {"rows": {title: times}, "first": first}


def main() -> None:
    """Print a row for sampling."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--width", type=int, default=256, help="Width of the sequence.")
    add("--layers", type=int, default=4, help="Number of blocks.")
    add("--heads", type=int, default=4, help="Number of heads of their attention.")
    add("--positions", type=int, default=1024, help="Number of positions of a sequence.")
    add("--tokens", type=int, default=512, help="Number of different tokens.")
    add("--batch", type=int, default=4, help="Number of sequences in a batch.")
    add("--passes", type=int, default=1, help="Number of the naive sampler's passes to time.")
    add("--repeats", type=int, default=5, help="Number of timed rounds.")
    add("--precision", default="float32", choices=("float32", "bfloat16"), help="Arithmetic.")
    options = parser.parse_args()
    size = Size(
        options.width,
        options.layers,
        options.heads,
        options.positions,
        options.tokens,
        options.batch,
    )
    print(f"{machine()}; {options.precision}")
    result = measure(size, options.repeats, options.passes, options.precision)
    for name, seconds in result["first"].items():
        print(f"{name}: first call {seconds:.1f} s")
    print_table(result["rows"], "naive", ["naive", "cached"])


if __name__ == "__main__":
    main()
