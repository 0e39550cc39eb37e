"""(seed, step) -> batch: the order of training examples, resident on devices or streamed.

The batch of step t is a pure function of (seed, t). So a resumed run, a run on another number of
devices and a replayed step see the same examples, without the state of an iterator.
"""

import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.checks import check_memory
from jaxgen.data.permute import MAX_SIZE, permute
from jaxgen.data.sources import DEFAULT_LIMIT_BYTES, Source, decode, nbytes

_MAX_STEP = 2**31  # a step is an int32 in the state


class Pipeline:
    """The training batches of a source.

    Example i of step t stands at position p = t B + i of an endless sequence of epochs: it is
    example `permute(p mod N)` of epoch `p // N`, with a permutation of its own for each (seed,
    epoch). Batches straddle epochs, so every epoch visits each of the N examples exactly once,
    also where B does not divide N or exceeds it.

    There are two ways to get the batches:

    - *resident*, where the set fits into memory: put `arrays` on the devices once and call `gather`
      inside the compiled step, which costs O(B);
    - *streamed*: iterate over `stream`, whose threads read and decode ahead.

    Args:
        source: Source of the examples.
        batch_size: Number B of examples in the global batch.
        seed: Seed of the order of the examples, in [0, 2**64).
        limit_bytes: Greatest size, decoded, of a set that is resident; 0 streams every set.

    Attributes:
        resident: Whether `arrays` holds the set.

    Raises:
        ValueError: An empty source, or one of more than 2**30 examples; a batch size below 1 or
            above 2**30; a batch beyond the machine's memory; a seed out of range.

    Examples:
        >>> from jaxgen.data.sources import digits
        >>> pipeline = Pipeline(digits("train"), 128, seed=0)
        >>> pipeline.gather(pipeline.arrays, 10)["image"].shape
        (128, 8, 8, 1)
        >>> next(pipeline.stream(10))["label"].dtype
        dtype('int32')
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
    ):
        if not 1 <= batch_size <= MAX_SIZE:
            raise ValueError(f"batch_size must be between 1 and 2**30, got {batch_size}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")
        if len(source) == 0:
            raise ValueError(f"the source {source.name!r} ({source.split}) is empty")
        if len(source) > MAX_SIZE:
            raise ValueError(
                f"the source {source.name!r} has {len(source)} examples; at most 2**30 can be used"
            )
        check_memory(f"a batch of {batch_size} examples", nbytes(source, batch_size))
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.resident = nbytes(source) <= limit_bytes

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray] | None:
        """The whole set, decoded at the first access; None where it exceeds `limit_bytes`."""
        if not self.resident:
            return None
        self.source = decoded = decode(self.source)
        return dict(decoded.arrays)

    def indices(self, step: Any, xp: ModuleType = jnp) -> Any:
        """Indices of the examples in the batch of a step, a pure function.

        Args:
            step: Number t of the step in [0, 2**31), an integer scalar; it may be traced where `xp`
                is `jax.numpy`.
            xp: `numpy` or `jax.numpy`; both give identical indices.

        Returns:
            int32 [batch_size], indices into the source.
        """
        n = len(self.source)
        epoch, start = _multiply_divmod(xp.asarray(step).astype(xp.uint32), self.batch_size, n)
        position = start + xp.arange(self.batch_size, dtype=xp.uint32)
        epoch, within = epoch + position // np.uint32(n), position % np.uint32(n)
        key = (self.seed & 0xFFFFFFFF, self.seed >> 32, epoch)
        return permute(within, key, n, xp).astype(xp.int32)

    def gather(self, arrays: Mapping[str, Any], step: Any) -> dict[str, Array]:
        """The batch of a step, from the resident arrays; for use inside a compiled step.

        Args:
            arrays: `self.arrays`, placed on the devices.
            step: Number t of the step in [0, 2**31), an integer scalar; it may be traced.

        Returns:
            Name -> [batch_size, ...].
        """
        rows = self.indices(step, jnp)
        # The indices are in bounds by construction: spare the gather its clamps.
        return {
            name: jnp.asarray(array).at[rows].get(mode="promise_in_bounds")
            for name, array in arrays.items()
        }

    def host_batch(
        self, step: int, *, process_index: int = 0, process_count: int = 1
    ) -> dict[str, np.ndarray]:
        """One process's rows of the batch of a step, in NumPy: what `stream` yields for the step.

        Args:
            step: Number t of the step in [0, 2**31).
            process_index: Index of the process, and so of its block of consecutive rows.
            process_count: Number of processes, which must divide the batch size.

        Returns:
            Name -> [batch_size / process_count, ...].

        Raises:
            ValueError: A step out of range, or processes that do not divide the batch.
        """
        if not 0 <= step < _MAX_STEP:
            raise ValueError(f"step must be between 0 and 2**31 - 1, got {step}")
        rows = _block(self.batch_size, process_index, process_count)
        return self.source[self.indices(step, np)[rows]]

    def stream(
        self,
        start_step: int = 0,
        *,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 4,
        prefetch: int = 16,
        num_workers: int = 0,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The host batches of steps start_step, start_step + 1, ..., read ahead by Grain.

        Args:
            start_step: Step of the first batch.
            process_index: Index of this process among those that share the global batch.
            process_count: Number of processes that share the global batch; each yields
                batch_size / process_count rows.
            num_threads: Number of threads that read and decode whole batches.
            prefetch: Number of batches that are kept ready.
            num_workers: Number of worker processes, each with its own threads. They pay only where
                decoding is slow (large JPEG files): for small images their copies cost more than
                they save.

        Yields:
            The result of `host_batch`, step after step.

        Raises:
            ValueError: A step out of range, processes that do not divide the batch, or a number of
                threads, workers or batches that is too small.
        """
        if not 0 <= start_step < _MAX_STEP:
            raise ValueError(f"start_step must be between 0 and 2**31 - 1, got {start_step}")
        if num_threads < 1 or prefetch < 1 or num_workers < 0:
            raise ValueError(
                "num_threads and prefetch must be at least 1 and num_workers at least 0, "
                f"got {num_threads}, {prefetch} and {num_workers}"
            )
        _block(self.batch_size, process_index, process_count)
        import grain

        read = functools.partial(
            self.host_batch, process_index=process_index, process_count=process_count
        )
        batches = grain.MapDataset.range(start_step, _MAX_STEP).map(read)
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads, prefetch))
        if num_workers:
            _let_grain_start_workers()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers))
        return iter(dataset)


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    limit: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    numbers: range | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Each example once, in the source's order, in batches of one size.

    Args:
        source: Source of the examples.
        batch_size: Number of examples in a global batch.
        limit: Number of examples to read, from the first on; None for all.
        process_index: Index of this process among those that share the global batch.
        process_count: Number of processes that share the global batch; each gets
            batch_size / process_count rows.
        numbers: Numbers of the batches to read, of 0..ceil(examples / batch_size) - 1; None for
            all.

    Returns:
        An iterator over name -> [batch_size / process_count, ...], with a `weight`, float32, in
        every batch: 1 for an example, 0 for the padding of the last batch (repeats of an example).

    Raises:
        ValueError: An empty source, a batch size or limit below 1, a batch beyond the machine's
            memory, or processes that do not divide the batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all examples, got {limit}")
    if len(source) == 0:
        raise ValueError(f"the source {source.name!r} ({source.split}) is empty")
    check_memory(f"a batch of {batch_size} examples", nbytes(source, batch_size))
    rows = _block(batch_size, process_index, process_count)
    count = len(source) if limit is None else min(limit, len(source))
    chosen = range(-(-count // batch_size)) if numbers is None else numbers

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for number in chosen:
            positions = number * batch_size + np.arange(batch_size)[rows]
            batch = source[np.minimum(positions, count - 1)]
            yield {**batch, "weight": (positions < count).astype(np.float32)}

    return batches()


def _multiply_divmod(step: Any, batch_size: int, n: int) -> tuple[Any, Any]:
    """divmod(step * batch_size, n), exact in uint32 (the quotient modulo 2**32).

    The product may exceed 32 bits, and JAX has no wider integers by default. So it is built up by
    doubling, bit by bit of the batch size, and reduced at each bit: a dozen scalar operations.
    """
    size = np.uint32(n)
    step_quotient, step_remainder = step // size, step % size
    with np.errstate(over="ignore"):  # NumPy scalars warn where arrays wrap
        quotient, remainder = step * np.uint32(0), step * np.uint32(0)
        for bit in f"{batch_size:b}":
            one = np.uint32(bit)
            quotient = quotient * np.uint32(2) + one * step_quotient
            remainder = remainder * np.uint32(2) + one * step_remainder
            quotient, remainder = quotient + remainder // size, remainder % size
    return quotient, remainder


def _block(batch_size: int, index: int, count: int) -> slice:
    """The rows of the batch that belong to one of `count` processes."""
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"process_index must be in [0, process_count), got {index} of {count}")
    if batch_size % count:
        raise ValueError(f"batch_size must be divisible by the {count} processes, got {batch_size}")
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def _let_grain_start_workers() -> None:
    """Marks absl's flags as parsed: Grain's workers read them, and abort unless they are."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
