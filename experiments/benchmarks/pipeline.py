"""Images a second of the input pipeline alone, by each of its ways.

    python -m experiments.benchmarks.pipeline
    python -m experiments.benchmarks.pipeline --data-dir DIR --name cifar10

The first three ways serve 50,000 images of 32x32x3 from memory: gathered inside a compiled step,
gathered by NumPy, and streamed by Grain's threads. With a data directory, a prepared TFDS set is
also streamed with its decoding, and decoded whole once. The ways are timed one after the other, not
interleaved: a stream reads ahead, and would do so in the others' time.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource, Source, decode, load

from .harness import interleaved, machine


def images_per_second(
    data_dir: str | None = None, name: str = "cifar10", batch_size: int = 128, num_steps: int = 100
) -> dict[str, float]:
    """Rates by way: medians of rounds of `num_steps` batches each."""
    image = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    memory = Pipeline(ArraySource({"image": image}), batch_size, seed=0)
    arrays = jax.device_put(memory.arrays)

    @jax.jit
    def step(arrays, index):
        # A consumer that reads every byte, as a model does; the images themselves stay inside.
        return jnp.sum(memory.gather(arrays, index)["image"], dtype=jnp.uint32)

    num_images = batch_size * num_steps
    rates = {
        "resident, gathered in the step": _rate(
            num_images, lambda: [step(arrays, index) for index in range(num_steps)]
        ),
        "NumPy, one gather a batch": _rate(
            num_images, lambda: [memory.host_batch(index) for index in range(num_steps)]
        ),
        "streamed from memory": _stream_rate(memory.source, batch_size, num_steps),
    }
    if data_dir is not None:
        source = load(name, "train", data_dir)
        rates[f"streamed from {source.name}"] = _stream_rate(source, batch_size, num_steps)
        rates[f"{source.name}, decoded whole"] = _rate(
            len(source), lambda: decode(source).arrays, repeats=1, warmup=0
        )
    return rates


def _rate(num_images: int, fn: Callable[[], object], **rounds: int) -> float:
    return num_images / interleaved({"": fn}, **rounds)[""]


def _stream_rate(source: Source, batch_size: int, num_steps: int) -> float:
    stream = Pipeline(source, batch_size, seed=0, limit_bytes=0).stream()
    return _rate(batch_size * num_steps, lambda: [next(stream) for _ in range(num_steps)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--data-dir", help="Directory of TFDS data.")
    parser.add_argument("--name", default="cifar10", help="Prepared set to read from it.")
    parser.add_argument("--batch-size", type=int, default=128, help="Number of images in a batch.")
    args = parser.parse_args()
    print(machine())
    for label, rate in images_per_second(args.data_dir, args.name, args.batch_size).items():
        print(f"{label:36} {rate:12,.0f} images/s")


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The docstring as it is written, and each default."""


if __name__ == "__main__":
    main()
